"""Packs: cells that share a backbone and adapter shapes train and sample together; each leaves its own record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING

from bench.cell import PARTS, Cell
from bench.contracts import BenchError
from bench.errors import Unavailable
from bench.run import run_together
from bench.settings import digest
from bench.steps.identify import begin, identify
from bench.steps.work import Work
from bench.store.record import Record

if TYPE_CHECKING:
    from bench.steps.slots import Size

FREE = (
    "recipe",
    "title",
    "strength",
    "strength_sweep",
    "curve",
    "deviations",
    "version",
    "start_t",
)  # of a method: what no adapter's shape tells


def packs(cells: Sequence[Cell], size: int | None = None) -> list[list[Cell]]:
    """Cells that can be trained together, in their order, at most `size` in each list. Loads nothing heavy."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(shapes(cell), []).append(cell)
    parts = ((group, size or len(group)) for group in groups.values())
    return [group[i : i + most] for group, most in parts for i in range(0, len(group), most)]


def shapes(cell: Cell) -> str:
    """Equal for cells that may share a pack, as far as settings tell; `run_pack` looks at the adapters themselves."""
    shared = {part: getattr(cell, part) for part in PARTS if part != "dataset"}
    shared["method"] = {key: value for key, value in cell.method.items() if key not in FREE}
    return digest({**shared, "results": cell.results})


def run_pack(
    cells: Iterable[Cell],
    size: int | str = "auto",
    finished: Callable[[Record], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Record]:
    """Do what is still to do for the cells, up to `size` of them at a time; returns their records as they ended.

    Cells are taken one by one when a slot is free, so `cells` may be a generator that leases them; those that cannot
    sit together follow each other. `size` "auto" finds out by trial. `finished` is told each record as
    soon as it is published. Cells that can have no record raise BenchError when the others are done. When `stop` says
    so, between two steps, every unfinished cell writes its checkpoint and is let go without a record.
    """
    records: dict[str, Record] = {}
    refused: list[str] = []
    under_way: set[str] = set()
    later: list[Cell] = []

    def begun() -> Iterator[Work]:
        for cell in cells:
            try:
                if cell.run_id in under_way:  # the same images requested at another strength
                    later.append(cell)
                elif (record := identify(cell)) is not None:
                    tell(record)
                else:
                    under_way.add(cell.run_id)
                    yield begin(cell)
            except BenchError as error:  # another process is at it, or it cannot even be named
                refused.append(str(error))

    def tell(record: Record) -> None:
        records[record.run_id] = record
        under_way.discard(record.run_id)
        if finished is not None:
            finished(record)

    count = len(cells) if isinstance(cells, Sized) else 1
    try:
        for record in run_together(begun(), _size(cells, size), stop, count):
            tell(record)
    except Unavailable as error:  # some cells stay open; the others have ended
        refused.append(str(error))
    if later and not stop():
        records |= {record.run_id: record for record in run_pack(later, size, finished, stop)}
    if refused:
        raise BenchError(" ".join(dict.fromkeys(refused)))
    return list(records.values())


def _size(cells: Iterable[Cell], requested: int | str) -> Size:
    """The size of a pack, or what finds it by trial: no larger than the number of cells where that is known."""
    if str(requested).isdigit() and int(requested) > 0:
        return int(requested)
    if requested != "auto":
        raise BenchError(f"pack={requested} was requested; type pack=auto or a number of cells, pack=4.")

    def size(first: Work) -> int:
        from bench.steps.probe import MOST, best_size

        return best_size(first, len(cells) if isinstance(cells, Sized) else MOST)

    return size
