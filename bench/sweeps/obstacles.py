"""What stops cells of a sweep before it is started: combinations that are impossible, and files that are missing."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench import backbones, reading
from bench.cell import Cell
from bench.contracts import BenchError, Impossible
from bench.data import sources
from bench.files import atomic_write
from bench.paths import cache_folder
from bench.settings import digest
from bench.sweeps.sources import code


@dataclass
class Obstacles:
    impossible: Counter[str] = field(default_factory=Counter)  # reason -> cells
    missing: Counter[str] = field(default_factory=Counter)  # data, weights, networks of metrics -> cells that need it
    lacking: int = 0  # cells for which something is missing
    stopped: set[str] = field(default_factory=set)  # run ids of both


def obstacles(cells: Sequence[Cell]) -> Obstacles:
    """What stops cells, found once for each combination. A combination never met needs its method imported.

    What is found of a combination holds as long as sources and settings do, and is remembered in the cache folder.
    """
    found, memory = Obstacles(), _Memory()
    combinations: dict[str, list[Cell]] = {}
    for cell in cells:
        settings = [cell.method, cell.identity["dataset"], cell.backbone, cell.metrics, cell.fairness]
        combinations.setdefault(digest([*settings, cell.missing_metrics], 32), []).append(cell)
    for key, group in combinations.items():
        absent = _absent(group[0])
        try:
            if not absent:
                memory.possible(key, group[0])
        except Impossible as reason:
            found.impossible[str(reason)] += len(group)
            found.stopped |= {cell.run_id for cell in group}
        except BenchError as reason:
            absent = _all_absent(group[0]) or [str(reason)]
        if absent:
            found.missing.update(dict.fromkeys(absent, len(group)))
            found.lacking += len(group)
            found.stopped |= {cell.run_id for cell in group}
    memory.keep()
    return found


class _Memory:
    """Combination -> why it is impossible, or ""."""

    def __init__(self) -> None:
        self.file = cache_folder() / "plan" / f"{code()['sources']}.json"
        self.known: dict[str, str] = {}
        with contextlib.suppress(OSError, BenchError):  # a damaged one is made anew
            self.known = {key: why for key, why in reading.mapping(self.file).items() if type(why) is str}

    def possible(self, key: str, cell: Cell) -> None:
        """Raises Impossible, or BenchError for what is missing, which is not remembered."""
        if key not in self.known:
            self.known[key] = _impossible_because(cell)
        if self.known[key]:
            raise Impossible(self.known[key])

    def keep(self) -> None:
        with contextlib.suppress(OSError, BenchError):  # a cache that cannot be written costs time only
            self.file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.file, json.dumps(self.known).encode())


def _impossible_because(cell: Cell) -> str:
    from bench.steps.load import possible
    from bench.steps.work import Work

    try:
        possible(Work(cell, cell.results))
    except Impossible as reason:
        return str(reason)
    return ""


def _absent(cell: Cell) -> list[str]:
    """All that is missing for a cell whose dataset or backbone is not here, a sentence each."""
    here = not (sources.missing(dict(cell.dataset)) or backbones.missing(dict(cell.backbone)))
    return [] if here else _all_absent(cell)


def _all_absent(cell: Cell) -> list[str]:
    from bench.steps.missing import all_missing
    from bench.steps.work import Work

    return all_missing(Work(cell, cell.results))
