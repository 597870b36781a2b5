"""The table of a sweep: cells by state, rate, time left, failures with reasons, workers."""

import os

import pytest
from light import light_cell, submitted
from rich.console import Console

from bench.contracts import BenchError
from bench.store import leases
from bench.store.record import Record, Store
from bench.sweeps import status
from bench.sweeps.worker import Worker


@pytest.fixture
def made(tmp_path):
    cells = [light_cell(tmp_path, seed, does="fail" if seed < 2 else "") for seed in range(4)]
    made = submitted(cells)
    Worker(made).work()
    return submitted([*cells, light_cell(tmp_path, 7), light_cell(tmp_path, 8)])


def shown(seen):
    console = Console(width=200, record=True, file=open(os.devnull, "w"))
    with console.file:
        console.print(status.render(seen))
    return console.export_text()


def test_a_sweep_half_way(made):
    held = leases.take(made.store.lease_file(made.entries[-1].run_id), "It")
    seen = status.snapshot(made)
    assert [seen.count(state) for state in ("done", "failed", "running", "open")] == [2, 2, 1, 1]
    assert status.headline(seen).startswith("4 of 6 settled: 2 done, 2 failed, 1 running, 1 open")
    assert status.problems(seen)[0].endswith(": The loss became nan.") and " and 1 more" in status.problems(seen)[0]
    held.release()


def test_workers_and_reasons_are_shown(tmp_path):
    made = submitted([light_cell(tmp_path, 0, does="refuse"), light_cell(tmp_path, 1)])
    Worker(made).work()
    text = shown(status.snapshot(made))
    assert f"{os.getpid()}" in text and "ended: every cell has ended" in text and "This cell was refused." in text


def test_the_rate_is_verdicts_per_hour_between_the_first_and_now():
    assert status.rate([0.0, 60.0, 120.0]) == pytest.approx(60.0)
    assert status.rate([0.0, 60.0, 120.0], until=240.0) == pytest.approx(30.0)
    assert status.rate([5.0]) is None and status.rate([]) is None
    assert status.rate([float(i) for i in range(1000)]) == pytest.approx(3600.0)


def test_only_verdicts_of_this_sweep_make_its_rate(tmp_path):
    old = light_cell(tmp_path, 0)
    store = Store(tmp_path)
    store.work(old.run_id)
    store.publish(Record(old.run_id, "done", config={"scored": []}))
    os.utime(tmp_path / old.run_id / "record.json", (0, 0))
    made = submitted([old, light_cell(tmp_path, 1), light_cell(tmp_path, 2)])
    Worker(made).work()
    times = status._end_times(made, made.states())
    assert len(times) == 2 and min(times) > made.started - 1


def test_a_sweep_is_found_by_name_or_the_newest(tmp_path):
    one, two = (submitted([light_cell(tmp_path, seed, group=name)]) for seed, name in enumerate(["a", "b"]))
    os.utime(one.folder / "sweep.json", (0, 0))
    assert status.find(tmp_path, None).folder == two.folder and one.folder.name.startswith("a-")
    assert status.find(tmp_path, one.folder.name).folder == one.folder
    with pytest.raises(BenchError, match=f"no sweep x below .*; there are: {one.folder.name}, {two.folder.name}"):
        status.find(tmp_path, "x")
