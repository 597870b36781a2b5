"""Which training images a generated image is compared with: halves of the pairs, or references."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.contracts import Dataset, Example, Impossible


@dataclass(frozen=True)
class Content:
    """Training content c_k and style t_k, uint8 (K, 3, P, P) each, row by row; confounded when c_k wears the style."""

    plain: np.ndarray
    style: np.ndarray
    nouns: tuple[str, ...]  # K
    captions: tuple[str, ...]  # K
    confounded: bool


def content(dataset: Dataset) -> Content:
    """The plain halves of the pairs; without pairs, the references stand in for both."""
    if dataset.pairs:
        plain = [pair.content for pair in dataset.pairs]
        worn, confounded = _stack([pair.style for pair in dataset.pairs]), False
    else:
        worn, confounded = style(dataset), dataset.style_words is not None
        plain = list(dataset.references)
    nouns, captions = (tuple(getattr(example, key) for example in plain) for key in ("noun", "caption"))
    return Content(_stack(plain), worn, nouns, captions, confounded)


def style(dataset: Dataset) -> np.ndarray:
    """The images that show what is to be learned: stylised halves of the pairs, else references."""
    examples = [pair.style for pair in dataset.pairs] or list(dataset.references)
    if not examples:
        raise Impossible(f"The dataset {dataset.name} has neither pairs nor references to compare images with.")
    return _stack(examples)


def related(prompts: Sequence[str], nouns: Sequence[str]) -> np.ndarray:
    """Which prompts name the class of which training image, bool (N, K): "a dog" and a picture of a dog."""
    patterns = [re.compile(rf"\b{re.escape(noun)}(s|es)?\b", re.IGNORECASE) if noun else None for noun in nouns]
    return np.array([[bool(p and p.search(prompt)) for p in patterns] for prompt in prompts])


def _stack(examples: Sequence[Example]) -> np.ndarray:
    return np.stack([example.image for example in examples])
