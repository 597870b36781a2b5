"""Features computed once: an append-only store keyed by (hash of the pixels or of the text, id of the extractor).

Shapes: N items, D features, P pixels per side.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from bench.contracts import Images
from bench.data.images import image_keys, in_batches
from bench.files import atomic_write

if TYPE_CHECKING:
    from metrics.networks import OpenClip

SHARD = 512  # items per file: what a killed process can lose


class Extractor(Protocol):
    """What the store needs: an id that changes whenever the features would, and the features themselves."""

    @property
    def id(self) -> str: ...

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, 3, P, P) -> float32 (N, D)."""
        ...


def images_hash(images: Images) -> str:
    """12 hex digits for an ordered set of images."""
    return joined(image_keys(images), 6)


def joined(keys: Sequence[str], size: int = 16) -> str:
    """One key of `size` bytes, in hex, for an ordered set of keys."""
    return hashlib.blake2b("".join(keys).encode(), digest_size=size).hexdigest()


def text_key(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class FeatureStore:
    """A folder of immutable safetensors shards, one subfolder per extractor.

    Any number of processes may read and write it: a shard is renamed into place whole, named by what it holds, and
    never changed. Two processes that miss the same item both compute it; either result is kept.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._places: dict[str, dict[str, tuple[Path, int]]] = {}  # extractor id -> key -> shard and row
        self._read: set[Path] = set()

    def features(self, images: Images, extractor: Extractor) -> np.ndarray:
        """uint8 (N, 3, P, P) -> float32 (N, D); only images that were never seen are decoded and extracted."""

        def compute(rows: list[int]) -> np.ndarray:
            return np.concatenate([extractor(batch) for batch in in_batches(images, rows)])

        return self.lookup(image_keys(images), extractor.id, compute)

    def texts(self, texts: Sequence[str], network: OpenClip) -> np.ndarray:
        """Text embeddings float32 (N, D), one row per text."""
        keys = [text_key(text) for text in texts]
        return self.lookup(keys, f"{network.id} text", lambda rows: network.embed_text([texts[row] for row in rows]))

    def lookup(self, keys: Sequence[str], extractor_id: str, compute: Callable[[list[int]], np.ndarray]) -> np.ndarray:
        """Rows of `keys`, float32 (N, D); `compute` is requested the row numbers that are missing, once per key."""
        if not keys:
            raise ValueError(f"no items to take features of with {extractor_id}")
        places = self._index(extractor_id)
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        rows = sorted(row for key, row in first.items() if key not in places)
        for start in range(0, len(rows), SHARD):
            part = rows[start : start + SHARD]
            values = np.asarray(compute(part), dtype=np.float32)
            if values.shape[0] != len(part) or not np.isfinite(values).all():
                raise ValueError(f"{extractor_id} gave features {values.shape} for {len(part)} items, or not finite")
            self._write(extractor_id, [keys[row] for row in part], values)
        return _gather([places[key] for key in keys])

    def _subfolder(self, extractor_id: str) -> Path:
        return self.folder / hashlib.blake2b(extractor_id.encode(), digest_size=8).hexdigest()

    def _index(self, extractor_id: str) -> dict[str, tuple[Path, int]]:
        """Where everything stored for one extractor lies; files seen before are not read again."""
        from safetensors import safe_open

        places = self._places.setdefault(extractor_id, {})
        for path in set(self._subfolder(extractor_id).glob("*.safetensors")) - self._read:
            with safe_open(path, "np") as shard:
                self._add(extractor_id, path, shard.get_tensor("keys"))
        return places

    def _add(self, extractor_id: str, path: Path, raw: np.ndarray) -> None:
        self._places[extractor_id].update({key.tobytes().hex(): (path, row) for row, key in enumerate(raw)})
        self._read.add(path)

    def _write(self, extractor_id: str, keys: Sequence[str], values: np.ndarray) -> None:
        from safetensors.numpy import save

        folder = self._subfolder(extractor_id)
        folder.mkdir(parents=True, exist_ok=True)
        raw = np.stack([np.frombuffer(bytes.fromhex(key), dtype=np.uint8) for key in keys])
        path = folder / f"{hashlib.blake2b(raw.tobytes(), digest_size=16).hexdigest()}.safetensors"
        data = save({"keys": raw, "features": np.ascontiguousarray(values)}, metadata={"extractor": extractor_id})
        atomic_write(path, data)
        self._add(extractor_id, path, raw)


def _gather(places: Sequence[tuple[Path, int]]) -> np.ndarray:
    """Stored rows in the order requested, (N, D); each shard is read once."""
    from safetensors.numpy import load_file

    shards = {path: load_file(path)["features"] for path in {path for path, _ in places}}
    return np.stack([shards[path][row] for path, row in places])


@functools.cache
def feature_store(cache: Path) -> FeatureStore:
    """The store inside a cache folder; one object per process, so that its index is read once."""
    return FeatureStore(cache / "features")
