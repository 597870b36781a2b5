"""Damaged files of a store: no traceback, no hang, and the other cells are shown as they were.

Each input damages one file in one seeded way. Expected of every command: it ends well, or with one BenchError or one
argument error; and all numbers of the undamaged cells are the same as before.
"""

import json
import random
import shutil
import signal

import pandas as pd
import pytest
from damage import damage
from light import light_cell, submitted

from bench.analysis import frames
from bench.errors import BenchError
from bench.files import atomic_write
from bench.report import gather
from bench.report.gallery import galleries
from bench.store import leases
from bench.store.record import Record, Store
from bench.sweeps.status import render, snapshot
from bench.sweeps.sweep import Sweep

SCORES = [("clip", 1.25), ("leak", 0.5)]
PER_IMAGE = 'strength,prompt,seed,clip,leak\n1.0,a cat,0,0.5,0.25\n1.0,"a dog, a car",1,0.75,\n'


def store_of(root, count=4):
    """Finished cells with scores and per-image values."""
    for seed in range(count):
        asked = {part: {"name": part} for part in ("method", "dataset", "backbone", "trainer", "sampler")}
        config = {"asked": asked, "seed": seed, "scored": []} | {key: {"name": key} for key in asked}
        scores = [
            {"strength": 1.0, "group": name, "metric": name, "value": value + seed, "higher_is_better": True,
             "network": "net", "fingerprint": {"metric": name}}
            for name, value in SCORES
        ]  # fmt: skip
        record = Record(f"m-d-b-s{seed}", "done", None, config, {"train_s": 2.0}, {}, scores, ["a note"])
        store = Store(root)
        atomic_write(store.work(record.run_id) / "per_image.csv", PER_IMAGE.encode())
        store.publish(record)
    return root


@pytest.fixture
def limit():
    """A reader that waits for a pipe ends the test, not the suite."""

    def late(*_):
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    yield lambda: signal.alarm(20)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def cases(quick, thorough):
    """Seeds: a few in the ordinary suite, the others slow."""
    return [*range(quick), *(pytest.param(n, marks=pytest.mark.slow) for n in range(quick, thorough))]


def shown(root):
    """What the readers make of a store: scores, per-image values and galleries."""
    scores, images = frames.load(root), frames.images(root)
    records, _ = gather.chosen(root, [])
    galleries(records, root, [])
    frames.wide(scores)
    frames.summary(scores)
    return scores, images


def of_others(frame, run_id):
    """The lines of the other cells, to compare."""
    kept = frame[frame.run_id != run_id]
    return kept.sort_values(list(kept.columns[:3]), kind="stable").reset_index(drop=True)


@pytest.mark.parametrize("name", ["record.json", "per_image.csv", "config.yaml"])
@pytest.mark.parametrize("block", cases(2, 40))
def test_a_damaged_file_of_a_cell_leaves_the_others_as_they_are(tmp_path, limit, caplog, name, block):
    store_of(tmp_path / "a")
    limit()
    scores, images = shown(tmp_path / "a")
    for n in range(10):
        rng, root = random.Random(f"{name} {block} {n}"), tmp_path / f"b{n}"
        shutil.copytree(tmp_path / "a", root)
        shutil.rmtree(root / ".index")
        how = damage(root / "m-d-b-s1" / name, rng)
        limit()
        now_scores, now_images = shown(root)
        for now, before in ((now_scores, scores), (now_images, images)):
            columns = list(before.columns)
            same = of_others(now[columns], "m-d-b-s1")
            pd.testing.assert_frame_equal(
                same, of_others(before, "m-d-b-s1"), check_dtype=False, check_categorical=False, obj=how
            )


@pytest.mark.parametrize("name", ["scores", "images"])
@pytest.mark.parametrize("block", cases(2, 40))
def test_a_damaged_index_changes_no_number(tmp_path, limit, name, block):
    root = store_of(tmp_path)
    before = shown(root)
    whole = (root / ".index" / f"{name}.parquet").read_bytes()
    for n in range(10):
        path = root / ".index" / f"{name}.parquet"
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        path.write_bytes(whole)
        how = damage(path, random.Random(f"{name} {block} {n}"))
        limit()
        for now, then in zip(shown(root), before, strict=True):
            pd.testing.assert_frame_equal(now, then, check_dtype=False, check_categorical=False, obj=how)


@pytest.mark.parametrize("block", cases(2, 40))
def test_a_damaged_lease_is_a_sentence_or_is_taken(tmp_path, limit, block):
    for n in range(20):
        path = tmp_path / f"{n}.lease"
        claim = leases.take(path, "It")
        damage(path, random.Random(f"lease {block} {n}"))
        limit()
        leases.holder(path), leases.deaths(path), claim.mine(), claim.release()
        try:
            leases.take(path, "It").release()
        except BenchError:
            pass


WORKER = {
    "done": 0,
    "failed": 0,
    "loads": 0,
    "cells": [],
    "why": "",
    "gpu": None,
    "host": "h",
    "pid": 1,
    "machine": "m",
}
SWEEP_FILES = ["sweep.json", "redo.json", "refused", "worker"]


@pytest.mark.parametrize("name", SWEEP_FILES)
@pytest.mark.parametrize("block", cases(1, 40))
def test_a_damaged_file_of_a_sweep_is_a_sentence_or_left_out(tmp_path, limit, name, block):
    from rich.console import Console

    for n in range(10):
        made = submitted([light_cell(tmp_path / str(n), seed) for seed in (0, 1)])
        made.refuse(made.entries[0].run_id, "It was refused.")
        (made.folder / "workers" / "w.json").write_text(json.dumps(WORKER))
        files = {"refused": f"refused/{made.entries[0].run_id}", "worker": "workers/w.json"}
        how = damage(made.folder / files.get(name, name), random.Random(f"{name} {block} {n}"))
        limit()
        try:
            sweep = Sweep(made.folder)
            Console(quiet=True).print(render(snapshot(sweep)))
            sweep.open(), sweep.workers()
            for entry in sweep.entries:
                sweep.cell(entry)
        except BenchError as error:
            assert name == "sweep.json", (how, error)
