"""A process that was paused until another one took its cell over writes nothing more into the store."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_run import PAIR, composed

from bench.errors import Unavailable
from bench.run import run_together
from bench.steps.identify import begin
from bench.store import leases
from bench.store.record import Store

ROOT = Path(__file__).parents[2]
SHORT = ["method.recipe.steps=4", "method.content_steps=1", "dataset.prompts=[a photo of a red tree]"]
SHORT += ["dataset.seeds=[0,1]", "sampler.batch=1", "dataset.controls=[]"]


def files(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("place", "after"),
    [
        ("bench.training.trainer._descend", 2),
        ("bench.sampling.sampler._chunk", 1),
        ("bench.sampling.sampler._chunk", 2),
        ("bench.steps.score._measured", 1),
        ("bench.steps.score._measured", 2),
    ],
)
def test_nothing_is_written_after_another_process_took_over(tmp_path, monkeypatch, place, after):
    cell = composed(tmp_path, *PAIR, *SHORT)
    module, _, name = place.rpartition(".")
    real, count = getattr(__import__(module, fromlist=[name]), name), itertools.count(1)
    lease, work, seen = tmp_path / ".work" / f".{cell.run_id}.lease", tmp_path / ".work" / cell.run_id, {}

    def taken_over(*words):
        made = real(*words)
        if next(count) == after:
            lease.write_text(json.dumps({"host": "far", "machine": "far", "pid": 1, "started": 0.0, "token": "theirs"}))
            for held in leases._held:
                leases._renew(held)  # as the process does first when it goes on
            seen.update(files(work))
        return made

    with monkeypatch.context() as patch:
        patch.setattr(place, taken_over)
        with pytest.raises(Unavailable, match="was taken over while this process was paused; nothing is lost"):
            list(run_together([begin(cell)]))
    assert seen and files(work) == seen
    assert Store(tmp_path).read(cell.run_id) is None and "theirs" in lease.read_text()


RUN = """
import sys
from bench.store import leases
leases.take.__defaults__ = (1.0,)
from bench.command import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_paused_process_finds_its_cell_taken_over(tmp_path):
    """Two real processes: the first is stopped until its lease is old, the second does the cell, the first goes on."""
    words = [sys.executable, "-c", RUN, "method=dreambooth", "dataset=blueprint", "tracker=none", f"results={tmp_path}"]
    words += ["dataset.prompts=[a photo of a red tree]", "dataset.seeds=[0]", "method.recipe.steps=40"]
    words += ["method.class_images=2"]
    first = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while time.monotonic() < until and not list(tmp_path.glob(".work/*/log.csv")):
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGSTOP)
    time.sleep(1.5)
    second = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stderr
    (record,) = Store(tmp_path).records()
    before = files(tmp_path / record.run_id)
    os.kill(first.pid, signal.SIGCONT)
    _, said = first.communicate(timeout=120)
    assert first.returncode == 1 and "Traceback" not in said, said
    assert files(tmp_path / record.run_id) == before
    assert [path.name for path in (tmp_path / ".work").iterdir()] == []
