"""What a study asks of a program that chooses between two images as its raters do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Comparison:
    """What a rater sees: two pictures, the text and the examples; each picture uint8 (3, H, W)."""

    left: np.ndarray
    right: np.ndarray
    examples: tuple[np.ndarray, ...]
    prompt: str


class Judge(ABC):
    """A program that answers the question of a study."""

    name: str

    @property
    @abstractmethod
    def id(self) -> str:
        """16 hex digits that change with its weights; fingerprints of its metrics hold them as "judge"."""

    @abstractmethod
    def missing(self) -> str | None:
        """A sentence that names the weights that are not on this machine, or None."""

    @abstractmethod
    def left_is_better(self, question: str, comparisons: Sequence[Comparison]) -> np.ndarray:
        """float64 (N, 2): the probability of the left picture, shown on the left and shown on the right."""
