"""What a dataset provides.

Shapes: N images, P pixels per side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np


class Images(Protocol):
    """Images uint8 (N, 3, P, P): an array, or files that are decoded when rows are taken (`StoredImages`)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...

    def __iter__(self) -> Iterator[Any]: ...

    def __array__(self, dtype: Any = None, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Example:
    """One training image with its caption (no style words, no rare token)."""

    image: np.ndarray  # uint8 (3, P, P)
    caption: str  # "a photo of a dog"
    noun: str  # "dog"
    person: bool = False  # whether it shows a person, or what the dataset counts as one


@dataclass(frozen=True)
class Pair:
    """The same picture plain and stylised, aligned pixel by pixel."""

    content: Example
    style: Example


@dataclass(frozen=True)
class Truth:
    """The true picture of a prompt in the style: an artist's own drawing, at every place where it may stand."""

    images: np.ndarray  # uint8 (K, 3, P, P), the first at the centre
    classes: Mapping[str, str]  # what the picture shows, by question: thing, artist, background


@dataclass(frozen=True)
class Dataset:
    """A style or a subject: what to learn from, what to ask for, what to compare with."""

    name: str
    version: int
    licence: str
    source: str
    style_words: str | None  # appended to a prompt, "in digital art style"; None for a subject
    noun: str  # the class word, "dog"
    pairs: tuple[Pair, ...]
    references: tuple[Example, ...]  # style or subject images without a plain partner
    auxiliary: tuple[Example, ...]
    prompts: tuple[str, ...]  # evaluation prompts: content only
    seeds: tuple[int, ...]  # evaluation seeds
    controls: tuple[np.ndarray, ...]  # unrelated content images, each uint8 (3, P, P)
    reference_set: Callable[[], Images] | None  # uint8 (M, 3, P, P), loaded when a metric needs it
    oracle: Callable[[np.ndarray], np.ndarray] | None  # the style itself: uint8 (3, P, P) -> uint8 (3, P, P)
    content_hash: str
    own_seeds: tuple[tuple[int, ...], ...] = ()  # of each prompt, where a published list gives each its own
    control_captions: tuple[str, ...] = ()  # one for each control, as an `Example` has it
    counts: Mapping[str, int] = field(default_factory=dict)  # images used, by role; roles without any are absent
    notes: tuple[str, ...] = ()  # what a reader of the record must know: files that were passed over, captions
    truth: Callable[[str], Truth | None] | None = None  # of an evaluation prompt; None for a prompt without any
    aligned: bool = False  # the true pictures have the outlines of the plain ones, pixel by pixel

    def seeds_of(self, index: int) -> tuple[int, ...]:
        """Evaluation seeds of the prompt at this place."""
        return self.own_seeds[index] if self.own_seeds else self.seeds

    def styled(self, prompt: str) -> str:
        """The prompt with the style words, "a photo of a dog in digital art style"; a subject's prompt is unchanged."""
        return f"{prompt} {self.style_words}" if self.style_words else prompt

    def ideal(self, image: np.ndarray, prompt: str) -> np.ndarray | None:
        """A picture in the style itself, uint8 (3, P, P): the true picture of the prompt at the centre where there is
        one, else the style function of the baseline's image (3, P, P), else None."""
        found = self.truth(prompt) if self.truth else None
        if found is not None:
            return found.images[0]
        return self.oracle(image) if self.oracle else None

    @property
    def provides(self) -> frozenset[str]:
        have: dict[str, Any] = {"pairs": self.pairs, "references": self.references, "auxiliary": self.auxiliary}
        have |= {"class": self.noun, "oracle": self.oracle or self.truth}
        return frozenset(name for name, value in have.items() if value)
