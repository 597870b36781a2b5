"""Image files that are known by their pixels, and decoded once, in threads, only when pixels are needed.

Shapes: N images, P pixels per side.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.contracts.dataset import Images
from bench.data.image_files import load_image
from bench.errors import BenchError
from bench.files import atomic_write

if TYPE_CHECKING:
    import numpy as np

BATCH = 64  # images decoded together
AHEAD = 2  # batches that wait while one is used
KEEP_BYTES = 2 << 30  # pixels that one set keeps for the next reader
KEYS = "pixels.json"  # beside a cell's images: what each file's pixels hash to


def pixel_key(image: np.ndarray) -> str:
    """32 hex digits for the pixels and shape of one array: 0.1 ms for 64 x 64, 3 ms for 1024 x 1024."""
    import numpy as np

    if image.dtype != np.uint8:
        raise TypeError(f"image features are keyed by uint8 pixels, got {image.dtype}")
    head = str(image.shape).encode()
    return hashlib.blake2b(head + np.ascontiguousarray(image).tobytes(), digest_size=16).hexdigest()


def threads() -> int:
    """Threads that this process may use: OMP_NUM_THREADS, else the cores that the job was given."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    if named.isdigit() and int(named) > 0:
        return int(named)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class StoredImages:
    """Files in the place of an array uint8 (N, 3, P, P): rows are decoded when they are requested.

    `keys` are the pixels' hashes. `known` is a json file that remembers the key of each file with its size and time of
    change, so that a file which did not change since is not decoded to be recognised. Pixels are kept for the next
    reader while they fit into KEEP_BYTES: one decode feeds all networks. Raises BenchError from `read`.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[Path], np.ndarray], known: Path):
        self.paths, self.read, self.known = list(paths), read, known
        self._kept: dict[int, np.ndarray] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """One image (3, P, P) for a number, (n, 3, P, P) for a slice, numbers or a mask; for a tuple as an array."""
        import numpy as np

        if isinstance(rows, tuple):
            return self[:][rows]
        picked = np.arange(len(self))[rows]
        if picked.ndim == 0:
            return self._keep(int(picked), self._one(int(picked)))
        return np.concatenate(list(self.batches(picked.tolist())))

    def __iter__(self) -> Iterator[np.ndarray]:
        return (image for batch in self.batches(range(len(self))) for image in batch)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self[0].shape)

    def batches(self, rows: Sequence[int]) -> Iterator[np.ndarray]:
        """uint8 (at most BATCH, 3, P, P); AHEAD further ones are decoded while one is used."""
        waiting: deque = deque()
        with ThreadPoolExecutor(threads()) as pool:
            for start in range(0, len(rows), BATCH):
                part = rows[start : start + BATCH]
                waiting.append((part, [pool.submit(self._one, row) for row in part]))
                if len(waiting) > AHEAD:
                    yield self._together(*waiting.popleft())
            while waiting:
                yield self._together(*waiting.popleft())

    def _one(self, row: int) -> np.ndarray:
        kept = self._kept.get(row)
        return self.read(self.paths[row]) if kept is None else kept

    def _together(self, rows: Sequence[int], decoded: Sequence[Future]) -> np.ndarray:
        import numpy as np

        return np.stack([self._keep(row, image.result()) for row, image in zip(rows, decoded, strict=True)])

    def _keep(self, row: int, image: np.ndarray) -> np.ndarray:
        if row not in self._kept and self._kept_bytes + image.nbytes <= KEEP_BYTES:
            self._kept[row] = image
            self._kept_bytes += image.nbytes
        return image

    @cached_property
    def keys(self) -> list[str]:
        """`pixel_key` of each image; only files that are new or changed are decoded."""
        names = [os.path.relpath(path, self.known.parent) for path in self.paths]
        states = [_state(path) for path in self.paths]
        found = {name: entry for name, entry in _remembered(self.known).items() if name in set(names)}
        new = [row for row, name in enumerate(names) if found.get(name, [])[:2] != states[row]]
        decoded = (image for batch in self.batches(new) for image in batch)
        found |= {names[row]: [*(states[row] or ()), pixel_key(image)] for row, image in zip(new, decoded, strict=True)}
        if new:
            self._remember(found)
        return [found[name][2] for name in names]

    def _remember(self, found: dict[str, list]) -> None:
        with contextlib.suppress(OSError, BenchError):  # no right or no room to write: they are decoded again
            self.known.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.known, json.dumps(found, indent=0).encode())


def _state(path: Path) -> list[int] | None:
    """Size and time of change, or None for a file that is not there: reading it says so."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _remembered(known: Path) -> dict[str, list]:
    try:
        found = json.loads(known.read_bytes())
    except (OSError, ValueError):
        return {}
    whole = isinstance(found, dict) and all(isinstance(entry, list) and len(entry) == 3 for entry in found.values())
    return found if whole else {}


def stored(folder: Path, names: Sequence[str]) -> StoredImages:
    """The images called <name>.png of a folder that `bench.data.image_files.save_images` wrote."""
    return StoredImages([folder / f"{name}.png" for name in names], load_image, folder / KEYS)


def image_keys(images: Images) -> list[str]:
    """`pixel_key` of each image of either form."""
    return images.keys if isinstance(images, StoredImages) else [pixel_key(image) for image in images]


def in_batches(images: Images, rows: Sequence[int]) -> Iterator[np.ndarray]:
    """Rows of either form, uint8 (at most BATCH, 3, P, P) each."""
    if isinstance(images, StoredImages):
        yield from images.batches(rows)
        return
    for start in range(0, len(rows), BATCH):
        yield images[list(rows[start : start + BATCH])]
