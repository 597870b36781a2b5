"""One cell of the benchmark, from its settings to its record. Read this file first; each step is a method of `Work`.

    identify -> load -> baseline -> train -> sample -> score -> record

A finished cell is shown, not done again. A finished cell that lacks a metric or a strength gets just that: stored
images are scored, the stored adapter is sampled. A killed cell goes on where its last checkpoint left it.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from bench import fairness
from bench.cell import Cell
from bench.contracts import BenchError, Impossible
from bench.record import Record, Store, atomic_write, provenance
from bench.work import Work


def run(cell: Cell) -> Record:
    """Do what is still to do for a cell and return its record, whatever became of it."""
    store = Store(cell.results)
    record = store.read(cell.run_id)
    if record is not None and settled(record, cell):
        if _judge(record, cell):
            store.update(record)
        return record
    if record is not None and record.status == "done" and cell.mode != "force":
        return _complete(cell, store, record)
    return _whole(cell, store)


def settled(record: Record, cell: Cell) -> bool:
    """Whether the record already holds all that the cell asks for."""
    refused = record.status == "skipped" and str(record.reason).startswith(fairness.PREFIX)
    if refused or cell.mode == "force" or (cell.mode == "retry" and record.status == "failed"):
        return False
    return record.status != "done" or not _todo(record, cell)


def _todo(record: Record, cell: Cell) -> list[tuple[float, list[str]]]:
    """Strengths with the metrics that the record lacks for them."""
    done = record.config["scored"]
    wanted = [(s, [name for name in cell.metrics if cell.measure(name, s) not in done]) for s in cell.strengths]
    return [(strength, names) for strength, names in wanted if names]


def _judge(record: Record, cell: Cell) -> bool:
    """Note how a cell departs from the contract that it is asked for under now. Returns whether the notes changed."""
    if record.status != "done":
        return False
    before, found = record.notes, fairness.contract(cell).deviations(cell, record.cost)
    record.notes = [note for note in before if not note.startswith(fairness.PREFIX)]
    record.notes += [fairness.PREFIX + deviation for deviation in found]
    return record.notes != before


def _whole(cell: Cell, store: Store) -> Record:
    """A cell from its beginning, or from where a killed process left it; it leaves a record in any case."""
    started = datetime.now(UTC)
    with held(store, cell.run_id) as folder:
        work = Work(cell, folder)
        record = Record(cell.run_id, "done", notes=work.notes)
        tracker = work.tracker()
        try:
            work.check()
            work.train(tracker)
            for strength in cell.strengths:
                record.scores += work.score(strength, list(cell.metrics))
            work.show(tracker, record)
        except Impossible as reason:
            record.status, record.reason = "skipped", str(reason)
        except BenchError as reason:
            record.status, record.reason = "failed", str(reason)
        except Exception as error:  # a bug of ours or of a library: kept with its traceback, the sweep goes on
            record.status, record.reason = "failed", f"{type(error).__name__}: {error}"
            atomic_write(folder / "error.txt", traceback.format_exc().encode())
        finally:
            work.close()
        record.config, record.cost = work.config(), work.costs()
        _judge(record, cell)
        identity = cell.identity
        record.provenance = provenance(identity["dataset"]["content"], identity["backbone"]["weights"], started)
        tracker.finish(record.status)
        store.publish(record)
    return record


def _complete(cell: Cell, store: Store, record: Record) -> Record:
    """A finished cell is asked for more strengths or metrics: nothing is trained."""
    with held(store, cell.run_id) as empty:
        work = Work(cell, store.folder(cell.run_id))
        try:
            work.check()
            for strength, names in _todo(record, cell):
                old = [(strength, name) for name in names]
                record.scores = [entry for entry in record.scores if (entry["strength"], entry["group"]) not in old]
                record.scores += work.score(strength, names)
        finally:
            work.close()
        record.config["scored"] += work.scored
        record.notes += [note for note in work.notes if note not in record.notes]
        _judge(record, cell)
        store.update(record)
        empty.rmdir()
    return record


@contextmanager
def held(store: Store, run_id: str) -> Iterator[Path]:
    """The work folder of a cell, this process's own until the end."""
    folder = store.work(run_id)
    try:
        yield folder
    finally:
        store.release(run_id)
