"""One cell of the benchmark, from its settings to its record. Read this file first; each step is a method of `Work`.

    identify -> load -> baseline -> train -> sample -> score -> record

A finished cell is shown, not done again. A finished cell that lacks a metric or a strength, or has a metric in an older
version, gets just that: stored images are scored, the stored adapter is sampled. A killed cell goes on where its last
checkpoint left it.

Cells that share a backbone and adapter shapes can go through these steps together (`sweeps.packs`): a cell alone is a
pack of one. What goes wrong in a cell ends that cell, and its record says why.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench import fairness
from bench.cell import Cell
from bench.contracts import BenchError, Impossible
from bench.files import atomic_write
from bench.store import scored
from bench.store.provenance import provenance
from bench.store.record import Record, Store
from bench.work import Work

if TYPE_CHECKING:
    from bench.training.slots import Size


def run(cell: Cell) -> Record:
    """Do what is still to do for a cell and return its record, whatever became of it."""
    record = settled(cell)
    if record is None:
        (record,) = whole([begin(cell)])
    return record


def settled(cell: Cell) -> Record | None:
    """The record of a finished cell, completed if it lacks something; None for a cell that is still to be trained."""
    store = Store(cell.results)
    record = store.read(cell.run_id)
    if record is not None and complete(record, cell):
        if _judge(record, cell):
            store.update(record)
        return record
    if record is not None and record.status == "done" and cell.mode != "force":
        return _complete(cell, store, record)
    return None


def complete(record: Record, cell: Cell) -> bool:
    """Whether the record already holds all that the cell asks for."""
    refused = record.status == "skipped" and str(record.reason).startswith(fairness.PREFIX)
    if refused or cell.mode == "force" or (cell.mode == "retry" and record.status == "failed"):
        return False
    return record.status != "done" or not scored.lacks(record, cell)


def _judge(record: Record, cell: Cell) -> bool:
    """Note how a cell departs from the contract that it is asked for under now. Returns whether the notes changed."""
    if record.status != "done":
        return False
    before, found = record.notes, fairness.contract(cell).deviations(cell, record.cost)
    record.notes = [note for note in before if not note.startswith(fairness.PREFIX)]
    record.notes += [fairness.PREFIX + deviation for deviation in found]
    return record.notes != before


def begin(cell: Cell) -> Work:
    """The work on a cell, this process's own from here on. Raises BenchError when another process is at it."""
    store = Store(cell.results)
    return Work(cell, store.work(cell.run_id), store=store)


def whole(
    works: Iterable[Work], size: Size = 1, stop: Callable[[], bool] = lambda: False, count: int = 1
) -> Iterator[Record]:
    """Cells from their beginning, or from where a killed process left them; each leaves a record in any case.

    Up to `size` of about `count` train together; who ends makes room for one that waits. When `stop` says so, those
    that are still training write a checkpoint and are let go without a record.
    """
    from bench.training.slots import sample, trained

    begun: list[Work] = []
    try:
        for ended in trained(_checked(works, begun), size, stop, count):
            sample(ended)
            for work in ended:
                record = _record(work)
                begun.remove(work)
                yield record
    finally:
        for work in begun:
            work.let_go()


def _checked(works: Iterable[Work], begun: list[Work]) -> Iterator[Work]:
    for work in works:
        begun.append(work)
        work.attempt(work.check)
        yield work


def _record(work: Work) -> Record:
    """Score what was drawn and publish the record."""
    cell, record = work.cell, Record(work.cell.run_id, "done", notes=work.notes)
    for strength in cell.strengths:
        record.scores += work.attempt(partial(work.score, strength, list(cell.metrics))) or []
    work.attempt(lambda: work.show(record))
    record.status, record.reason = _verdict(work)
    record.config, record.cost = work.config(), work.costs()
    _judge(record, cell)
    identity = cell.identity
    record.provenance = provenance(identity["dataset"]["content"], identity["backbone"]["weights"], work.started)
    work.publish(record)
    return record


def _verdict(work: Work) -> tuple[str, str | None]:
    """Status and reason; the traceback of a bug, ours or a library's, is kept, and the sweep goes on."""
    error = work.error
    if error is None:
        return "done", None
    if isinstance(error, BenchError):
        return "skipped" if isinstance(error, Impossible) else "failed", str(error)
    atomic_write(work.folder / "error.txt", "".join(traceback.format_exception(error)).encode())
    return "failed", f"{type(error).__name__}: {error}"


def _complete(cell: Cell, store: Store, record: Record) -> Record:
    """A finished cell is asked for more strengths or metrics: nothing is trained."""
    with held(store, cell.run_id) as empty:
        work = Work(cell, store.folder(cell.run_id))
        try:
            work.possible()  # the backbone is loaded only when there is something to draw
            for strength, names in scored.lacks(record, cell):
                known = [name for name in names if name in work.metrics]
                work.forget(strength, [old for name in known for old in scored.drop(record, name, strength)])
                record.scores += work.score(strength, known)
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
