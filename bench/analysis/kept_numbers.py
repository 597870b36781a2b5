"""Means, intervals and what is bold of a table's blocks, kept beside the index: a table made again is read.

They are found again by the content of what they were made of: the rows of the block, what was asked, and the sources
and libraries that work them out. So a number that is kept is never out of date. `<root>/.index/numbers.json` is JSON
behind the sha256 of it. It needs no lock, as `store.index` does not, and may be deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Hashable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.analysis.pairing import Columns
from bench.errors import BenchError
from bench.files import atomic_write

OTHERS = 2_000  # blocks that other tables used, or that have changed since: the most recent are kept
HEX = 64  # letters of a sha256
Block = Mapping[Hashable, Columns]
Line = tuple[Any, ...]  # of one row, as JSON can hold it


class Kept:
    """The numbers of blocks by their digest. `save` writes those of this table, and the latest of earlier ones."""

    def __init__(self, root: Path):
        self.path = root / ".index" / "numbers.json"
        self._known = _read(self.path)
        self._used: dict[str, Any] = {}
        self._new = False

    def lines(self, block: Block, asked: Line, make: Callable[[], list[Line]]) -> list[Line]:
        """What `make` says of a block's rows, from before where it said it; `asked` is all that it depends on besides.

        Tuples in it are lists when it was read.
        """
        name = digest(block, asked)
        found = self._known.pop(name, None) or self._used.get(name)
        if found is None:
            self._new, found = True, make()
        self._used[name] = found
        return found

    def save(self) -> None:
        """Keep them for the next table; a folder that cannot be written costs time only."""
        if not self._new:
            return
        others = list(self._known.items())[-OTHERS:]
        data = json.dumps(dict(others) | self._used).encode()
        with contextlib.suppress(OSError, BenchError):
            self.path.parent.mkdir(exist_ok=True)
            atomic_write(self.path, hashlib.sha256(data).hexdigest().encode() + data)


def digest(block: Block, asked: Line) -> str:
    """Of all that the numbers of a block depend on; equal where units of levels only have other names."""
    import pandas as pd

    made = hashlib.sha256(f"{_engine()} {asked} {[len(part['value']) for part in block.values()]}".encode())
    for name in sorted({name for part in block.values() for name in part}):
        have = [part[name] for part in block.values() if name in part]
        whole = np.concatenate(have)
        plain = whole if whole.dtype.kind in "fb" else pd.factorize(whole)[0].astype(np.int32)
        made.update(f"{name} {len(have)} {plain.dtype}".encode() + np.ascontiguousarray(plain).tobytes())
    return made.hexdigest()


@cache
def _engine() -> str:
    """The sources of this folder, which work the numbers out, and the versions of what they use."""
    import scipy

    made = hashlib.sha256(f"{sys.version} {np.__version__} {scipy.__version__}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        made.update(path.read_bytes())
    return made.hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
        known = json.loads(data[HEX:]) if hashlib.sha256(data[HEX:]).hexdigest().encode() == data[:HEX] else {}
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
