"""The floor: the untouched backbone requested in words for the style. Nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.contracts import Dataset, Method, plain_guidance


@dataclass
class ZeroShot(Method):
    """Classifier-free guidance on the prompt with the style words."""

    strength: float = 1.0

    bound = "floor"
    strength_knob = "none"

    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        return {"content": prompt, "negative": "", "style": dataset.styled(prompt)}

    def guide(self, z, t, texts, cfg, strength):
        return (yield from plain_guidance(z, t, texts, cfg, "style"))
