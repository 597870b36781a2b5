"""A finished cell opened again from its folder, to draw more with what it learned."""

from __future__ import annotations

from pathlib import Path

from bench.cell import Cell
from bench.contracts import BenchError
from bench.settings import digest
from bench.steps.work import Work
from bench.store.record import Record, loads


def reopen(folder: Path) -> Work:
    """The parts of a finished cell. Raises BenchError when it is not finished or what it was made from has changed."""
    record = read(folder)
    cell = _cell(record, folder)
    changed = [part for part, value in cell.identity.items() if digest(value) != digest(record.config[part])]
    if changed:
        raise BenchError(
            f"Cell {record.run_id} was made with another {' and another '.join(changed)} than is here now (other "
            "files, or another version of this project); run the cell again."
        )
    return Work(cell, folder)


def read(folder: Path) -> Record:
    """The record of a finished cell in this folder."""
    try:
        record = loads((folder / "record.json").read_text())
    except OSError:
        raise BenchError(
            f"{folder} holds no finished cell (there is no record.json); give the folder of one, results/<run id>."
        ) from None
    except BenchError as error:
        raise BenchError(f"{folder / 'record.json'} cannot be read: {error}; run the cell again.") from None
    if record.status != "done":
        raise BenchError(f"Cell {record.run_id} is {record.status} ({record.reason}); give one that is done.")
    return record


def _cell(record: Record, folder: Path) -> Cell:
    requested, seed = record.config.get("requested"), record.config.get("seed")
    if requested is None or seed is None:
        raise BenchError(f"Cell {record.run_id} is of an older version that kept fewer settings; run it again.")
    return Cell(**requested, seed=seed, metrics={}, tracker={}, strengths=(), results=folder.parent)
