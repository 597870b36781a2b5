"""Progress of a long phase with rate and time left: a bar on a terminal, a plain line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TextIO, TypeVar

T = TypeVar("T")
EVERY_S = 10.0


def progress(work: Iterable[T] | int, label: str, unit: str = "it", total: int | None = None) -> Iterator[Any]:
    """Yield what `work` yields (or 0, 1, ... for a number) while showing how far it is on stderr."""
    items: Iterable[Any] = range(work) if isinstance(work, int) else work
    total = total if total is not None else len(items) if isinstance(items, Sized) else None
    if sys.stderr.isatty():
        return _bar(items, label, unit, total)
    return _lines(items, label, unit, total, sys.stderr)


def _bar(items: Iterable[Any], label: str, unit: str, total: int | None) -> Iterator[Any]:
    from tqdm import tqdm

    yield from tqdm(items, desc=label, unit=unit, total=total, dynamic_ncols=True, leave=False)


def _lines(items: Iterable[Any], label: str, unit: str, total: int | None, file: TextIO) -> Iterator[Any]:
    start = said = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        if time.monotonic() - said >= EVERY_S and done != total:
            said = time.monotonic()
            print(line(label, done, total, said - start, unit), file=file, flush=True)
    print(line(label, done, total, time.monotonic() - start, unit), file=file, flush=True)


def line(label: str, done: int, total: int | None, passed_s: float, unit: str) -> str:
    """ "train 120/500 (24 %), 8.1 step/s, 0:47 left" or, at the end, "train 500/500, 8.2 step/s, took 1:01"."""
    rate = done / passed_s if passed_s > 0 else 0.0
    if total is None or done >= total:
        of = f"/{total}" if total is not None else ""
        return f"{label} {done}{of}, {rate:.3g} {unit}/s, took {clock(passed_s)}"
    left = clock((total - done) / rate) if rate else "?"
    return f"{label} {done}/{total} ({100 * done // total} %), {rate:.3g} {unit}/s, {left} left"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
