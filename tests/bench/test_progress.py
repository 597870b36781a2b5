"""Progress yields what it is given; in a log file it is a plain line now and then."""

import io
import re
import sys

import pytest

from bench import progress as module
from bench.progress import clock, line, progress


@pytest.mark.parametrize(
    "work, total, expected", [(3, None, [0, 1, 2]), ("abc", None, list("abc")), (iter("ab"), 2, list("ab"))]
)
def test_everything_comes_through_and_the_end_is_told(capsys, work, total, expected):
    assert list(progress(work, "train", "step", total)) == expected
    assert re.fullmatch(rf"train {len(expected)}/{len(expected)}, .* step/s, took 0:00\n", capsys.readouterr().err)


def test_lines_come_every_so_often(capsys, monkeypatch):
    now = iter(range(0, 1000, 4))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    list(progress(10, "train", "step"))
    said = capsys.readouterr().err.splitlines()
    assert 2 <= len(said) < 10 and all(text.startswith("train ") and "step/s" in text for text in said)


def test_a_terminal_gets_a_bar(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    assert list(progress(3, "train", "step")) == [0, 1, 2]
    assert "train" in screen.getvalue() and "\r" in screen.getvalue()


def test_rate_and_time_left():
    assert line("train", 120, 500, 15.0, "step") == "train 120/500 (24 %), 8 step/s, 0:48 left"
    assert line("train", 500, 500, 61.0, "step") == "train 500/500, 8.2 step/s, took 1:01"
    assert line("fetch", 7, None, 2.0, "file") == "fetch 7, 3.5 file/s, took 0:02"
    assert (clock(59.6), clock(3661)) == ("1:00", "1:01:01")
