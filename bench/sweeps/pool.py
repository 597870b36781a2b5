"""Keeps workers on a sweep until every cell has ended: processes on this machine, or jobs of a cluster."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from bench.contracts import BenchError
from bench.sweeps.sweep import Sweep

BARREN = 3  # so many times as many workers as wanted may end without finishing a cell, then something is wrong


class Pool(ABC):
    """Where workers run."""

    @abstractmethod
    def alive(self) -> int | None:
        """Workers that run or wait for their turn, whoever started them; None when it cannot be told now."""

    @abstractmethod
    def start(self, count: int) -> int:
        """Start so many workers, or as many as are allowed now. Returns how many."""

    @abstractmethod
    def to_cancel(self) -> str:
        """What to type to end all workers of the sweep."""

    @abstractmethod
    def dismiss(self) -> None:
        """Nothing is left to do: wait for the workers that this process started."""


def watch(sweep: Sweep, pool: Pool, wanted: int, show: Callable[[], None] = lambda: None) -> None:
    """Refill workers until every cell has ended. Raises BenchError when workers only come and go."""
    barren, left = 0, len(sweep.open())
    while left:
        alive = pool.alive()
        short = 0 if alive is None else min(wanted, left) - alive
        if short > 0:
            if barren >= BARREN * wanted:
                raise BenchError(f"Workers end without finishing a cell. {last_words(sweep)}")
            barren += pool.start(short)
        show()
        time.sleep(sweep.settings.poll_s)
        before, left = left, len(sweep.open())
        barren = barren if left == before else 0
    pool.dismiss()


def last_words(sweep: Sweep) -> str:
    """Where the newest log lies and how it ends."""
    logs = sorted(sweep.folder.glob("log/**/*.*"), key=lambda path: path.stat().st_mtime)
    logs = [path for path in logs if path.suffix in (".log", ".out", ".err") and path.stat().st_size]
    if not logs:
        return f"They left no word in {sweep.folder / 'log'}."
    said: Sequence[str] = logs[-1].read_text(errors="replace").strip().splitlines()[-3:]
    return f"The last one said, in {logs[-1]}: {' / '.join(said)}"
