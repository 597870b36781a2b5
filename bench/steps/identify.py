"""Identify: whether a cell is finished already, needs only more scores, or is to be trained."""

from __future__ import annotations

from bench import fairness
from bench.cell import Cell
from bench.steps.extend import extend
from bench.steps.record import note_departures
from bench.steps.work import Work
from bench.store import scored
from bench.store.record import Record, Store


def identify(cell: Cell) -> Record | None:
    """The record of a finished cell, completed if it lacks something; None for a cell that is still to be trained."""
    store = Store(cell.results)
    record = store.read(cell.run_id)
    if record is not None and complete(record, cell):
        if note_departures(record, cell):
            store.update(record)
        return record
    if record is not None and record.status == "done" and cell.mode != "force":
        return extend(cell, store, record)
    return None


def complete(record: Record, cell: Cell) -> bool:
    """Whether the record already holds all that the cell asks for."""
    refused = record.status == "skipped" and str(record.reason).startswith(fairness.PREFIX)
    if refused or cell.mode == "force" or (cell.mode == "retry" and record.status == "failed"):
        return False
    return record.status != "done" or not scored.lacks(record, cell)


def begin(cell: Cell) -> Work:
    """The work on a cell, this process's own from here on. Raises BenchError when another process is at it."""
    store = Store(cell.results)
    return Work(cell, store.work(cell.run_id), store=store)
