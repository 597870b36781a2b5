"""Situations from public bug reports that concern what surrounds a run: names of folders, no home folder, no display,
W&B that is not set up. docs/robustness.md lists all situations with their tests."""

import os
import subprocess
import sys

import pytest
from light import light_cell, run_light, submitted
from test_run import PAIR, composed

from bench.analysis import frames
from bench.paths import ROOT
from bench.report.command import value
from bench.store.record import Store
from bench.track import Wandb

NAMES = [
    "a b",
    "a=b",
    "50%",
    "a,b",
    "größe 絵",
    "it's",
    'say "x"',
    "[1]",
    "{a}",
    "#1",
    "-x",
    "a;b&c",
    "~x",
    "$HOME",
    "*",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_store_may_have_a_name_of_any_letters(tmp_path, name):
    """Situation 23. Hydra reads the name as it was typed; the sweep, its records and its table lie there."""
    place = tmp_path / name
    assert composed(value(str(place)), *PAIR).results == place
    made = submitted([light_cell(place, seed) for seed in (0, 1)])
    run_light([made.cell(entry) for entry in made.entries])
    assert sorted(frames.load(place).seed) == [0, 1] and not made.open()
    assert [Store(place).read(entry.run_id).status for entry in made.entries] == ["done", "done"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def python(code, **changes):
    """Run code in a process without a home folder and a display; a variable of the value None is left out."""
    changes = {"HOME": None, "DISPLAY": None, "XDG_CACHE_HOME": None, "XDG_CONFIG_HOME": None, **changes}
    env = {key: text for key, text in {**os.environ, **changes}.items() if text is not None}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def test_without_a_home_folder_a_run_is_tracked(tmp_path):
    """Situation 25."""
    code = f"""
from bench.track import Wandb
tracker = Wandb(mode="offline", folder={str(tmp_path)!r})
tracker.start("cell", {{}})
tracker.log(0, {{"loss": 1.0}})
tracker.finish("done")
assert not tracker.broken
"""
    done = python(code, WANDB_DATA_DIR=None, WANDB_DIR=None)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 1


def test_figures_need_no_display_whatever_the_backend_is(tmp_path):
    """Situation 29. The backend of the environment would open a window, and fail without a display."""
    code = f"""
from pathlib import Path
from bench.report import figures
point = figures.Point(1.0, 2.0, None, None, 1.5, 2.5, 1.0)
figures.write({{"a": figures.draw({{"halftone": {{"pair": [point, point]}}}}, "x", "y")}}, Path({str(tmp_path)!r}))
"""
    done = python(code, MPLBACKEND="TkAgg")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    "settings, environment",
    [({"project": "team/project"}, {}), ({"project": "a?b#c"}, {}), ({}, {"WANDB_SERVICE": "nonsense"})],
)
def test_wandb_that_is_not_set_up_costs_one_line(tmp_path, caplog, monkeypatch, settings, environment):
    """Situation 27."""
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    tracker = Wandb(folder=str(tmp_path), **settings)
    tracker.start("cell", {})
    tracker.log(0, {"loss": 1.0})
    tracker.finish("done")
    said = [record.getMessage() for record in caplog.records if record.name == "bench.track"]
    assert len(said) == tracker.broken and all("the cell goes on" in line and "\n" not in line for line in said)
    assert tracker.broken or list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
