"""In-context references: the network reads the style's images as further tokens and nothing is trained.

FLUX.2 (Black Forest Labs 2025) takes reference images in this way. The prompt says what to take from them, in words
that are our choice, as none are published for style. Both rows of classifier-free guidance read the references, as in
the pipeline of diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.choices import Role
from bench.contracts import CONTEXT, Dataset, Example, Method, plain_guidance

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class InContext(Method):
    """Shows a pair's style image, or the first references (or what `images` says)."""

    count: int = 1  # images to show
    words: str = "{prompt}, in the style of the reference image"
    images: Role | None = None  # role to show
    strength: float = 1.0

    strength_knob = "none"

    def lacks(self, dataset: Dataset) -> str | None:
        return None if self._examples(dataset) else self.images or "references or pairs"

    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        return {"content": prompt, "negative": "", "style": self.words.replace("{prompt}", prompt), "blank": ""}

    def shown(self, dataset: Dataset) -> Mapping[str, Mapping[str, Tensor]]:
        import numpy as np
        import torch

        pictures = torch.from_numpy(np.stack([example.image for example in self._examples(dataset)]))[None]
        return {role: {CONTEXT: pictures} for role in ("style", "blank")}

    def guide(self, z, t, texts, cfg, strength):
        shown = {"negative": texts["blank"], "style": texts["style"]}
        return (yield from plain_guidance(z, t, shown, cfg, "style"))

    def _examples(self, dataset: Dataset) -> Sequence[Example]:
        role = self.images or ("style" if dataset.pairs else "references")
        found = [pair.style for pair in dataset.pairs] if role == "style" else dataset.references
        return found[: self.count]
