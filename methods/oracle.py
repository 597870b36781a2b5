"""The ceiling: the style itself, what a style's metrics are measured against.

Where the dataset knows the true picture of a prompt, an artist's own drawing, that picture; else the style function of
the dataset, applied to the baseline's image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.contracts import BenchError, Dataset, Method, plain_guidance


@dataclass
class Oracle(Method):
    """All of the style and all of the content; nothing is trained or drawn."""

    strength: float = 1.0

    needs = frozenset({"oracle"})
    bound = "ceiling"
    strength_knob = "none"

    def from_baseline(self, baseline, prompts, dataset):
        ideal = [dataset.ideal(image, prompt) for image, prompt in zip(baseline, prompts, strict=True)]
        if any(image is None for image in ideal):
            raise BenchError(
                f"dataset {dataset.name} has no style function and knows no true picture of {prompts[0]!r}; "
                "type one of its own prompts, or method=pair."
            )
        return np.stack(ideal)

    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        return {"content": prompt, "negative": "", "style": dataset.styled(prompt)}

    def guide(self, z, t, texts, cfg, strength):
        return (yield from plain_guidance(z, t, texts, cfg))
