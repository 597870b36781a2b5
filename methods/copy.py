"""The worst leaker: whatever is requested, a training image comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.contracts import Dataset, Method, plain_guidance


@dataclass
class Copy(Method):
    """The pairs' style images in turn or, without pairs, the references; nothing is trained or drawn."""

    strength: float = 1.0

    bound = "floor"
    strength_knob = "none"

    def lacks(self, dataset: Dataset) -> str | None:
        return super().lacks(dataset) or (None if dataset.references or dataset.pairs else "references or pairs")

    def from_baseline(self, baseline, dataset):
        shown = [pair.style.image for pair in dataset.pairs] or [example.image for example in dataset.references]
        return np.stack([shown[i % len(shown)] for i in range(len(baseline))])

    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        return {"content": prompt, "negative": "", "style": dataset.styled(prompt)}

    def guide(self, z, t, texts, cfg, strength):
        return (yield from plain_guidance(z, t, texts, cfg))
