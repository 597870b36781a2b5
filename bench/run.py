"""One cell of the benchmark, from its settings to its record. Read this file first; each step is a module of `steps`.

    identify -> load -> baseline -> train -> sample -> score -> record

A finished cell is shown, not run again. A finished cell that lacks a metric or a strength, or has a metric in an older
version, gets just that: stored images are scored, the stored adapter is sampled. A killed cell goes on from its last
checkpoint.

Cells that share a backbone and adapter shapes can go through these steps together (`sweeps.packs`): a cell alone is a
pack of one. What goes wrong in a cell ends that cell, and its record says why.
What goes wrong in the environment (a full disk, missing weights) is no result: the cell stays open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from bench.cell import Cell
from bench.errors import Stopped, Unavailable
from bench.steps.identify import begin, identify
from bench.store.record import Record

if TYPE_CHECKING:
    from bench.steps.slots import Size
    from bench.steps.work import Work


def run(cell: Cell, stop: Callable[[], bool] = lambda: False) -> Record:
    """Do what is still to do for a cell and return its record, whatever became of it.

    Raises Stopped when `stop` said so before the cell was done; its checkpoint is kept.
    """
    record = identify(cell)
    if record is None:
        record = next(iter(run_together([begin(cell)], stop=stop)), None)
    if record is None:
        raise Stopped
    return record


def run_together(
    works: Iterable[Work], size: Size = 1, stop: Callable[[], bool] = lambda: False, count: int = 1
) -> Iterator[Record]:
    """Cells from their beginning, or from where a killed process left them; each leaves a record in any case.

    Up to `size` of about `count` train together; a cell that ends frees its slot for one that waits. When `stop` says
    so, between two steps, batches or metrics, what is unfinished is let go with its checkpoint and without a record.
    Raises Unavailable, at the end, for cells that the environment stopped.
    """
    from bench.steps.record import record
    from bench.steps.sample import sample
    from bench.steps.score import score
    from bench.steps.train import train

    under_way: list[Work] = []
    stopped: dict[str, Unavailable] = {}
    try:
        for ended in train(_ready(works, under_way, stop), size, stop, count):
            sample(ended)
            for work in ended:
                try:
                    made: Record | None = record(work, score(work))
                except Unavailable as error:  # no result: the cell stays open, with its checkpoint
                    stopped[str(error)] = error
                    work.let_go()
                    made = None
                under_way.remove(work)
                if made is not None:
                    yield made
    except Stopped:
        return
    else:
        if stopped:
            raise Unavailable(" ".join(stopped)) from next(iter(stopped.values()))
    finally:
        for work in under_way:
            work.let_go()


def _ready(works: Iterable[Work], under_way: list[Work], stop: Callable[[], bool]) -> Iterator[Work]:
    """Each work with its parts loaded and the baseline drawn, when a slot is free for it."""
    from bench.steps.baseline import baseline
    from bench.steps.load import load

    for work in works:
        work.stop = stop
        under_way.append(work)
        work.attempt(partial(load, work))
        work.attempt(partial(baseline, work))
        yield work
