"""A finished cell opened again from its folder, to draw more with what it learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import reading
from bench.cell import PARTS, Cell
from bench.contracts import Backbone, BenchError, Method
from bench.settings import class_of, digest
from bench.steps.work import Work
from bench.store import stored_classes
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
    return Work(cell, folder, record=record)


def read(folder: Path) -> Record:
    """The record of a finished cell in this folder."""
    try:
        record = loads(reading.text(folder / "record.json"))
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
    file = folder / "record.json"
    if not isinstance(requested, Mapping) or set(requested) != set(PARTS) or type(seed) is not int:
        raise BenchError(f"{file} does not hold the settings {', '.join(PARTS)} and a seed; run the cell again.")
    _check(requested, file)
    return Cell(**requested, seed=seed, metrics={}, tracker={}, strengths=(), results=folder.parent)


def _check(requested: Mapping[str, Any], file: Path) -> None:
    """Raise BenchError for settings that name what may not be built from a file, or a class of another kind."""
    for part, settings in requested.items():
        if not isinstance(settings, Mapping):
            raise BenchError(f"{file} holds {part}: {settings!r:.100}, where settings belong; run the cell again.")
    stored_classes.check(requested, file)
    for part, kind in (("method", Method), ("backbone", Backbone)):
        found = class_of(requested[part].get("_target_"), part)
        if not (isinstance(found, type) and issubclass(found, kind)):
            raise BenchError(f"{file} names {found.__name__} as its {part}, which is none; run the cell again.")
