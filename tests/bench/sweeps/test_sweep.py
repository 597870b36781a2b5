"""Sweeps and their workers without torch: every cell gets its status once, nothing finished is done again."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from light import calm, events, light_cell, submitted

from bench.contracts import BenchError
from bench.store import leases
from bench.store.record import Record, Store
from bench.sweeps import sources, sweep, worker
from bench.sweeps.settings import Settings
from bench.sweeps.sweep import Sweep, judge, merged, submit
from bench.sweeps.worker import Leave, Worker

ROOT = Path(__file__).parents[3]


def died(store, run_id, times):
    """Leases of workers that died over a cell."""
    for i in range(times):
        owner = leases.myself() | {"pid": 100 + i, "token": f"t{i}"}
        grave = store.lease_file(run_id).with_name(f"{store.lease_file(run_id).name}.dead-t{i}")
        grave.write_text(json.dumps(owner))


def statuses(made):
    return {run_id: state.status for run_id, state in made.states().items()}


@pytest.fixture
def cells(tmp_path):
    return [light_cell(tmp_path, seed, name) for name in ("one", "two") for seed in range(3)]


def test_every_cell_is_done_once_with_what_it_would_have_made_alone(cells, tmp_path):
    made = submitted(cells)
    assert set(statuses(made).values()) == {"open"}
    assert Worker(made).work() == "every cell has ended"
    assert set(statuses(made).values()) == {"done"} and sorted(events(tmp_path, "ended")) == sorted(statuses(made))
    for cell in cells:
        assert (tmp_path / cell.run_id / "adapter.bin").read_text() == calm(cell)
    assert not list((tmp_path / ".work").iterdir())


def test_a_sweep_on_disk_gives_back_the_cells_that_were_asked_for(cells):
    read = Sweep(submitted(cells).folder)
    again = [read.cell(entry) for entry in read.entries]
    assert [cell.run_id for cell in again] == [cell.run_id for cell in cells]
    assert [vars(cell)["identity"] for cell in again] == [cell.identity for cell in cells]
    assert len(read.bases) == 2 and again == [
        replace(cell, dataset=again[0].dataset, group=read.folder.name) for cell in cells
    ]


def test_a_second_start_does_nothing(cells, tmp_path):
    Worker(submitted(cells)).work()
    assert not judge(cells).todo and not submitted(cells).open()
    Worker(submitted(cells)).work()
    assert len(events(tmp_path, "began")) == len(cells)


def test_retry_runs_what_failed_and_force_everything(tmp_path):
    cells = [light_cell(tmp_path, 0, does="fail"), light_cell(tmp_path, 1)]
    Worker(submitted(cells)).work()
    assert [len(kind) for kind in (judge(cells).failed, judge(cells).done, judge(cells).todo)] == [1, 1, 0]
    for mode, wanted in [("retry", [cells[0].run_id]), ("force", [cell.run_id for cell in cells])]:
        before = len(events(tmp_path, "ended"))
        requested = [replace(cell, mode=mode) for cell in cells]
        made = submitted(requested)
        assert [entry.run_id for entry in made.open()] == wanted
        assert Worker(made).work() == "every cell has ended"
        assert events(tmp_path, "ended")[before:] == wanted


def test_the_same_cell_asked_for_twice_is_one_cell_with_both_strengths(tmp_path):
    cell = light_cell(tmp_path)
    (one,) = merged([cell, replace(cell, strengths=(2.0,), metrics={"m": {"a": 1}}), cell])
    assert one.strengths == (1.0, 2.0) and one.metrics == {"m": {"a": 1}} and one.run_id == cell.run_id


@pytest.mark.parametrize(
    "does, reason",
    [("raise", "ValueError: no such luck"), ("exit", "SystemExit: bye"), ("refuse", "This cell was refused.")],
)
def test_an_error_that_reaches_the_worker_costs_its_own_cell_only(tmp_path, does, reason):
    cells = [light_cell(tmp_path, seed, does=does if seed == 1 else "") for seed in range(4)]
    cells = [replace(cell, method={**cell.method, "name": "one"}) for cell in cells]
    made = submitted(cells)
    Worker(made).work()
    states = made.states()
    assert [states[cell.run_id].status for cell in cells] == ["done", "failed", "done", "done"]
    assert states[cells[1].run_id].reason == reason
    again = submitted([replace(cell, mode="retry") for cell in cells])
    assert [entry.run_id for entry in again.open()] == [cells[1].run_id]


def test_a_cell_that_killed_its_workers_is_given_up_with_its_reason(cells, tmp_path):
    made = submitted(cells)
    died(made.store, cells[0].run_id, 4)
    Worker(made).work()
    record = made.store.read(cells[0].run_id)
    assert record.status == "failed" and record.reason.startswith(
        "It was given up: 4 workers died over it, the last was"
    )
    assert record.config["method"]["name"] == "one" and record.provenance["weights_hash"]
    assert cells[0].run_id not in events(tmp_path, "began") and len(events(tmp_path, "ended")) == 5
    again = submitted([replace(cell, mode="retry") for cell in cells])
    Worker(again).work()
    assert made.store.read(cells[0].run_id).status == "done"


def test_a_worker_that_just_died_is_counted_before_its_lease_is_taken_over(cells, tmp_path):
    made = submitted(cells)
    died(made.store, cells[0].run_id, 3)
    grave = next(made.store.root.glob(".work/*.dead-*"))
    os.rename(grave, made.store.lease_file(cells[0].run_id))
    assert made.deaths(made.states()) == {cells[0].run_id: 3}


def test_a_suspect_runs_last_and_alone(cells, tmp_path, monkeypatch):
    made, packs = submitted(cells), []
    died(made.store, cells[1].run_id, 2)
    run_light = Worker(made).runner

    def noted(stream, size, **options):
        packs.append((size, []))
        run_light((packs[-1][1].append(cell.run_id) or cell for cell in stream), size=size, **options)

    chosen = Worker(made)
    chosen.runner = noted
    chosen.work()
    assert packs[-1] == (1, [cells[1].run_id]) and [size for size, _ in packs] == [4, 4, 1]
    assert [len(pack) for _, pack in packs] == [2, 3, 1]


def test_a_worker_that_must_leave_keeps_its_steps_and_another_ends_at_the_same_bits(tmp_path):
    cell = light_cell(tmp_path, steps=40)
    made, leave, steps = submitted([cell]), Leave(), []

    class Soon(Leave):
        def __bool__(self):
            steps.append(1)
            return len(steps) > 20

    assert Worker(made, Soon()).work() == "asked to leave"
    kept = json.loads((tmp_path / ".work" / cell.run_id / "checkpoint.json").read_text())
    assert 0 < kept["k"] < 40 and statuses(made) == {cell.run_id: "open"} and not made.deaths(made.states())
    assert Worker(made, leave).work() == "every cell has ended"
    assert (tmp_path / cell.run_id / "adapter.bin").read_text() == calm(cell)


def test_nothing_is_begun_that_cannot_end_but_by_a_fresh_worker(cells, tmp_path):
    each = {cell.run_id: 100.0 for cell in cells}
    made = submit(cells, Settings(runner="light.run_light", poll_s=0.01), judge(cells), {"each": each, "off_s": None})
    late = Worker(made, limit_s=120.0)
    late.began -= 60.0
    assert late.work() == "no cell ends in the time left" and events(tmp_path, "began") == []
    fresh = Worker(made, limit_s=120.0)
    assert fresh.work() == "every cell has ended"  # and it learned that a cell takes 2 s
    assert len(events(tmp_path, "ended")) == len(cells)


def test_a_worker_ends_when_the_gpu_is_lost(cells):
    made = submitted(cells)
    chosen = Worker(made)

    def lost(stream, size, finished, stop):
        cell = next(iter(stream))
        record = Record(cell.run_id, "failed", "RuntimeError: CUDA error: an illegal memory access", {"scored": []})
        Store(cell.results).publish(record)
        finished(record)

    chosen.runner = lost
    assert chosen.work() == "the GPU was lost" and list(statuses(made).values()).count("open") == 5


def test_a_runner_that_forgets_a_cell_does_not_run_for_ever(tmp_path):
    cell = light_cell(tmp_path)
    made = submitted([cell])
    chosen = Worker(made)
    chosen.runner = lambda stream, **options: list(stream)
    chosen.work()
    assert made.states()[cell.run_id] == sweep.State("failed", "It ended without a record.")


def test_workers_share_what_is_open(tmp_path):
    """Of eight cells and four workers, one worker holds at most two at a time."""
    made = submitted([light_cell(tmp_path, seed) for seed in range(8)], workers=4)
    chosen = Worker(made)
    stream = chosen.lease_each(made.entries)
    most = [next(stream, None) for _ in range(4)]
    assert [cell is not None for cell in most] == [True, True, False, False]
    [lease.release() for lease in chosen.leases.values()]


# --- code


def test_another_code_is_refused_unless_told(cells, monkeypatch):
    made = submitted(cells)
    Store(made.results).publish(Record(cells[0].run_id, "done", config={"scored": []}))
    monkeypatch.setattr(sweep, "code", lambda: {"commit": "f" * 40, "dirty": True, "sources": "other"})
    with pytest.raises(
        BenchError, match="was started with .*; here is commit ffffffffff with changes .* mix_code=true"
    ):
        Worker(made).work()
    with pytest.raises(BenchError, match="mix_code=true"):
        submitted(cells)
    assert Worker(submitted(cells, mix_code=True)).work() == "every cell has ended"


def test_a_sweep_of_which_nothing_is_done_may_begin_anew_with_other_code(cells, monkeypatch):
    submitted(cells)
    monkeypatch.setattr(sweep, "code", lambda: {"commit": None, "dirty": None, "sources": "other"})
    assert Worker(submitted(cells)).work() == "every cell has ended"


def test_the_code_is_known_by_what_is_in_its_files(tmp_path, monkeypatch):
    for folder in sources.SOURCES:
        (tmp_path / folder).mkdir()
    (tmp_path / "bench" / "a.py").write_text("a = 1")
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    found = []
    for text in ("a = 1", "a = 2", "a = 1"):
        (tmp_path / "bench" / "a.py").write_text(text)
        sources.code.cache_clear()
        found.append(sources.code()["sources"])
    sources.code.cache_clear()
    assert found[0] == found[2] != found[1]


# --- processes


def process(made, **options):
    env = {**os.environ, "BENCH_TRUST": "light", "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-m", "bench.sweeps.worker", str(made.folder)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, **options)


def wait_for(found, seconds=60):
    for _ in range(seconds * 50):  # of 20 ms
        if result := found():
            return result
        time.sleep(0.02)
    raise AssertionError("nothing came")


def test_a_signal_gives_back_what_a_process_works_on(tmp_path):
    slow = light_cell(tmp_path, 0, steps=400, pause_s=0.02)
    made = submitted([slow])
    first = process(made)
    wait_for(lambda: slow.run_id in events(tmp_path, "began"))
    assert made.states()[slow.run_id].status == "running" and made.workers()[0]["alive"]
    first.send_signal(signal.SIGUSR2)
    assert first.wait(20) == 0 and made.workers()[0]["why"] == "asked to leave"
    assert statuses(made) == {slow.run_id: "open"} and not made.deaths(made.states()) and not made.workers()[0]["alive"]
    assert json.loads((tmp_path / ".work" / slow.run_id / "checkpoint.json").read_text())["k"] < 400


@pytest.mark.slow
def test_chaos_two_hundred_cells_four_workers_and_sigkill_at_random(tmp_path):
    """Every cell ends once, and the records are those of a calm run, bit for bit."""
    import random

    rng = random.Random(0)
    cells = [light_cell(tmp_path / "c", seed, f"m{seed % 5}", steps=20, pause_s=0.01) for seed in range(200)]
    made, kills = submitted(cells, workers=4, attempts=6, lease_s=5.0, idle_s=60.0), 0
    pool = [process(made) for _ in range(4)]
    deadline = time.monotonic() + 240
    while made.open():
        assert time.monotonic() < deadline
        time.sleep(rng.uniform(0.2, 0.9))
        victim = rng.randrange(4)
        if pool[victim].poll() is None and events(tmp_path / "c", "began") and kills < 40:
            pool[victim].kill()
            pool[victim].wait()
            kills += 1
        pool = [process(made) if one.poll() is not None and made.open() else one for one in pool]
    [one.wait(60) for one in pool]
    assert kills >= 15 and set(statuses(made).values()) == {"done"}
    ended, began = events(tmp_path / "c", "ended"), events(tmp_path / "c", "began")
    assert len(began) > 200 and len(set(ended)) == len(ended)
    assert {path.name for path in (tmp_path / "c").glob("*-s*")} == {cell.run_id for cell in cells}
    for cell in cells:
        assert (tmp_path / "c" / cell.run_id / "adapter.bin").read_text() == calm(cell)
    print(f"{kills} kills, {len(began)} begun, {len(ended)} ended")


def test_the_worker_has_no_other_signals(tmp_path):
    before = signal.getsignal(signal.SIGUSR2)
    leave = Leave().catch(signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert leave and leave.by == signal.SIGUSR2
    signal.signal(signal.SIGUSR2, before)
    assert worker.LOST_GPU.search("CUDA error: device-side assert triggered")
    assert not worker.LOST_GPU.search("CUDA out of memory. Tried to allocate 2 GiB")
