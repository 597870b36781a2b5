"""What a metric measures, and the numbers that it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.contracts.dataset import Dataset

if TYPE_CHECKING:
    import numpy as np

    from bench.contracts.dataset import Images


@dataclass(frozen=True)
class Evaluation:
    """Everything a metric may look at. Row i of every field belongs to generated image i.

    Images may be files that are decoded when rows are taken; `np.asarray` makes an array of them.
    """

    images: Images  # uint8 (N, 3, P, P)
    baseline: Images  # uint8 (N, 3, P, P): the untouched backbone, same prompts and seeds
    prompts: Sequence[str]  # content prompts, N
    full_prompts: Sequence[str]  # as the method was asked at sampling, style words included, N
    seeds: Sequence[int]  # evaluation seeds, N
    dataset: Dataset
    cache: Path  # features may be kept here
    class_images: Callable[[], Images] | None = None  # the customised model on "a photo of a <noun>", drawn if asked


@dataclass(frozen=True)
class Score:
    """Numbers of one metric: `values` by id, per-image values where they exist, and what they depend on.

    `per_prompt` is for numbers of the whole set: for each image what its prompt adds, with the number as its mean
    (metrics/jackknife.py). Their errors over prompts, and those of differences, come from it.
    """

    values: Mapping[str, float]
    per_image: Mapping[str, np.ndarray] = field(default_factory=dict)  # id -> float (N,), NaN where undefined
    fingerprint: Mapping[str, Any] = field(default_factory=dict)  # network, weights hash, preprocessing, n, versions
    notes: Sequence[str] = ()  # sentences for the record: which value is absent and why, what was cut
    per_prompt: Mapping[str, np.ndarray] = field(default_factory=dict)  # id -> float (N,)


@dataclass(frozen=True)
class Quantity:
    """One number of a metric as docs/metrics.md describes it, in words."""

    name: str  # in full
    formula: str  # in the symbols of docs/metrics.md
    range: str
    source: str  # paper or program that defines it
    unit: str = "none"  # with its scale
    ideal: str = ""  # the best value, or what the number is for when it is not a score
    heading: str = ""  # of its column in a table, without unit and network; the id where there is none
    target: float | None = None  # the ideal where it is a value: then the number nearest to it is the best one


class Metric(ABC):
    """A measurement of a set of images. Missing is absent, with the reason; no number is ever invented."""

    version: ClassVar[int] = 1  # raise it when numbers change: finished cells are then scored again
    higher_is_better: ClassVar[Mapping[str, bool]]  # id of each value -> direction
    quantities: ClassVar[Mapping[str, Quantity]] = {}  # id of each value -> its entry in docs/metrics.md
    copying: ClassVar[bool] = False  # it measures how much training images are copied, and need not mind bad images

    def identity(self) -> list[str]:
        """What its numbers depend on besides the images and its settings: the version, and the `id` of each part that
        has one, which a network changes with its weights. Raises BenchError where weights are missing."""
        return [f"version {self.version}", *(part.id for part in vars(self).values() if hasattr(part, "id"))]

    @abstractmethod
    def missing(self) -> str | None:
        """A sentence that names the weights file that is not on this machine, or None."""

    @abstractmethod
    def score(self, evaluation: Evaluation) -> Score:
        """Raise `Impossible` with a sentence when the dataset lacks what the metric needs."""
