"""The readers of `mini`: a classifier of thing, artist and background, trained on drawings by all artists.

Shapes: N images, P pixels per side.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bench.contracts import BenchError
from metrics.networks.network import Network, exact, resize_clean, weights_path

if TYPE_CHECKING:
    from bench.mini.readers import Readers

SIZE = 64


@dataclass(frozen=True, kw_only=True)
class ReadersNet(Network):
    """`folder` holds config.json with the answers and the measured accuracy, and readers.safetensors."""

    folder: str = "bench/mini/weights/readers"
    name: str = "mini-readers"
    packages: ClassVar[tuple[str, ...]] = ("torch",)

    def files(self) -> tuple[Path, ...]:
        place = weights_path(self.folder)
        found = (place / "readers.safetensors", place / "config.json")
        for path in found:
            if not path.is_file():
                raise BenchError(f"The readers were requested from {place}, which holds no {path.name}; copy it there.")
        return found

    @property
    def recipe(self) -> str:
        return f"bench.mini.readers, clean bicubic {SIZE}"

    def _config(self) -> Mapping[str, Mapping]:
        return json.loads(self.files()[1].read_text())

    @property
    def classes(self) -> Mapping[str, Sequence[str]]:
        """The answers to each question."""
        return self._config()["classes"]

    @property
    def accuracy(self) -> Mapping[str, float]:
        """Share of right answers on real drawings that the readers were not trained on, by question."""
        return self._config().get("accuracy", {})

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, 3, P, P) -> index of the likeliest answer to each question, in the order of `classes`, (N, Q)."""
        import torch

        with exact():
            small = resize_clean(torch.from_numpy(np.ascontiguousarray(images)), SIZE)
            said = _load(self)(small)
        return np.stack([said[question].argmax(1).numpy() for question in self.classes], axis=1).astype(np.float32)


@functools.cache
def _load(network: ReadersNet) -> Readers:
    from bench.mini.readers import Readers

    return Readers.load(network.files()[0].parent)
