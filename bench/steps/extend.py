"""Extend: a finished cell gets the strengths or metrics that it lacks; nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.cell import Cell
from bench.steps import tracking
from bench.steps.load import possible
from bench.steps.record import note_departures
from bench.steps.score import forget, measure
from bench.steps.work import Work
from bench.store import contents, scored
from bench.store.record import Record, Store


def extend(cell: Cell, store: Store, record: Record) -> Record:
    """Score stored images, and sample the stored adapter where images are missing; returns the updated record."""
    with held(store, cell.run_id) as empty:
        work = Work(cell, store.folder(cell.run_id), record=record)
        try:
            work.check("per_image.csv")
            possible(work)  # the backbone is loaded only when there is something to draw
            for strength, names in scored.lacks(record, cell):
                known = [name for name in names if name in work.metrics]
                forget(work, strength, [old for name in known for old in scored.drop(record, name, strength)])
                record.scores += measure(work, strength, known)
        finally:
            work.close()
        record.config["scored"] += work.scored
        record.config[contents.KEY] = contents.extended(work.folder, record.config, work.drawn)
        record.notes += [note for note in work.notes if note not in record.notes]
        note_departures(record, cell)
        store.update(record)
        empty.rmdir()
        if work.scored:
            _show(work, record)
            store.update(record)  # with the tracker's id
    return record


def _show(work: Work, record: Record) -> None:
    """What was added, in the tracker's run of the cell."""
    if work.tracker.silent:
        return
    tracking.show_record(work, record)
    work.tracker.finish(record.status)


@contextmanager
def held(store: Store, run_id: str) -> Iterator[Path]:
    """The work folder of a cell, this process's own until the end."""
    folder = store.work(run_id)
    try:
        yield folder
    finally:
        store.release(run_id)
