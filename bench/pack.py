"""Packs: cells that share a backbone and adapter shapes are trained and sampled together; each leaves its own record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bench.cell import PARTS, Cell, digest
from bench.record import Record
from bench.run import run

FREE = ("recipe", "strength", "curve", "deviations", "version", "start_t")  # of a method: what no adapter's shape tells


def packs(cells: Sequence[Cell], size: int) -> list[list[Cell]]:
    """Cells that can be trained together, at most `size` in each pack, in their order. Loads nothing heavy."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(shapes(cell), []).append(cell)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


def shapes(cell: Cell) -> str:
    """Equal for cells that may share a pack, as far as settings tell; `run_pack` looks at the adapters themselves."""
    shared = {part: getattr(cell, part) for part in PARTS if part != "dataset"}
    shared["method"] = {key: value for key, value in cell.method.items() if key not in FREE}
    return digest({**shared, "results": cell.results})


def run_pack(
    cells: Iterable[Cell],
    size: int | str = "auto",
    finished: Callable[[Cell, Record], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[Record]:
    """Do what is still to do for the cells, up to `size` of them at a time, and return their records.

    Cells are taken one by one when a seat is free, so `cells` may be a generator that claims them. `finished` is told
    each record as soon as it is published. When `stop` says so, between two steps, every unfinished cell writes its
    checkpoint and is let go without a record.
    """
    records = []
    for cell in cells:
        if stop is not None and stop():
            break
        records.append(run(cell))
        if finished is not None:
            finished(cell, records[-1])
    return records
