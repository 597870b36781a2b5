"""A runner for tests of sweeps: cells that take milliseconds and no torch, but checkpoint, resume, fail and kill."""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from bench.cell import Cell
from bench.contracts import BenchError
from bench.data.schema import describe
from bench.files import atomic_write
from bench.steps.extend import held
from bench.steps.identify import complete
from bench.store.record import Record, Store
from bench.sweeps.settings import Settings
from bench.sweeps.sweep import judge, submit

MINI = {
    "_target_": "bench.backbones.stable_diffusion.StableDiffusion",
    "name": "mini",
    "path": "bench/mini/weights/diffusion",
    "resolution": 64,
    "dtype": "float32",
}
SETTINGS = Settings(runner="light.run_light", poll_s=0.02, idle_s=20.0, pack=4)


def light_cell(results, seed=0, name="one", does="", steps=10, pause_s=0.0, **changes):
    method = {"name": name, "does": does, "recipe": {"steps": steps}, "pause_s": pause_s}
    spec = {"method": method, "dataset": describe("halftone"), "backbone": MINI, "trainer": {}, "sampler": {}}
    spec |= {"metrics": {}, "tracker": {}, "seed": seed, "strengths": (1.0,), "results": Path(results)}
    return Cell(**spec | changes)


def submitted(cells, **changes):
    """A sweep of light cells, written down as the launchers do it."""
    settings = Settings(**{**vars(SETTINGS), **changes})
    return submit(cells, settings, judge(cells))


def run_light(cells, size=1, finished=None, stop=None):
    """As bench.sweeps.packs.run_pack, one after the other."""
    for cell in cells:
        record = run_one(cell, stop or bool)
        if record is None:
            return
        if finished is not None:
            finished(record)


def run_one(cell, stop=bool):
    """The record, or None when it was asked to stop."""
    store = Store(cell.results)
    record = store.read(cell.run_id)
    if record is not None and complete(record, cell):
        return record
    with held(store, cell.run_id) as folder:
        count(cell, "began")
        misbehave(cell, folder)
        state = train(cell, folder, stop)
        if state is None:
            return None
        record = finish(cell, folder, state)
        store.publish(record)
        count(cell, "ended")
    return record


def train(cell, folder, stop):
    """A chain of hashes: the last link depends on every step, so a step lost or done twice shows."""
    file = folder / "checkpoint.json"
    saved = json.loads(file.read_text()) if file.is_file() else {"k": 0, "x": cell.run_id}
    for k in range(saved["k"], steps(cell)):
        saved = {"k": k + 1, "x": hashlib.sha256(f"{saved['x']} {k}".encode()).hexdigest()}
        time.sleep(cell.method.get("pause_s", 0.0))
        if stop() or k % 3 == 0:
            atomic_write(file, json.dumps(saved).encode())
        if stop():
            return None
    return saved["x"]


def steps(cell):
    return (cell.method.get("recipe") or {}).get("steps", 3)


def calm(cell):
    """What `train` ends at when nothing disturbs it."""
    x = cell.run_id
    for k in range(steps(cell)):
        x = hashlib.sha256(f"{x} {k}".encode()).hexdigest()
    return x


def misbehave(cell, folder):
    does = cell.method.get("does")
    if does == "raise":
        raise ValueError("no such luck")
    if does == "refuse":
        raise BenchError("This cell was refused.")
    if does == "exit":
        sys.exit("bye")
    if does == "eat":
        eaten = b"x" * (400 << 20)
        time.sleep(30)
        raise AssertionError(f"Nobody minds {len(eaten)} bytes.")
    first = not (folder / "begun").exists()
    (folder / "begun").write_text("")
    if does == "kill" or (does == "kill once" and first):
        os.kill(os.getpid(), signal.SIGKILL)


def finish(cell, folder, state):
    (folder / "adapter.bin").write_bytes(state.encode())
    (folder / "begun").unlink(missing_ok=True)
    requested = {part: dict(getattr(cell, part)) for part in ("method", "dataset", "backbone", "trainer", "sampler")}
    scored = [cell.measure(name, strength) for strength in cell.strengths for name in cell.metrics]
    config = {**cell.identity, "scored": scored, "requested": requested}
    if cell.method.get("does") == "fail":
        return Record(cell.run_id, "failed", "The loss became nan.", config)
    return Record(
        cell.run_id, "done", config=config, cost={"train_s": 2.0}, scores=[{"metric": "x", "value": len(state)}]
    )


def count(cell, event):
    """One line in a file that all processes append to."""
    Path(cell.results).mkdir(parents=True, exist_ok=True)
    with open(Path(cell.results) / "events", "a") as file:
        file.write(f"{event} {cell.run_id} {os.getpid()}\n")


def events(results, event):
    """Run ids in the order in which this happened to them."""
    file = Path(results) / "events"
    lines = file.read_text().splitlines() if file.exists() else []
    return [line.split()[1] for line in lines if line.startswith(event)]
