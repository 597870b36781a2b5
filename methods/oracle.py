"""The ceiling: the style itself, applied to the baseline's images: what a style's metrics are measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.contracts import Dataset, Method, plain_guidance


@dataclass
class Oracle(Method):
    """All of the style and all of the content; nothing is trained or drawn."""

    strength: float = 1.0

    needs = frozenset({"oracle"})
    bound = "ceiling"
    strength_knob = "none"

    def from_baseline(self, baseline, dataset):
        return np.stack([dataset.oracle(image) for image in baseline])

    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        return {"content": prompt, "negative": "", "style": dataset.styled(prompt)}

    def guide(self, z, t, texts, cfg, strength):
        return (yield from plain_guidance(z, t, texts, cfg))
