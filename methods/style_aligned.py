"""StyleAligned (Hertz, Voynov, Fruchter, Cohen-Or 2024, arXiv 2312.02133): images read a reference picture's tokens.

Nothing is trained. In every self-attention the images attend to their own tokens and to those of the reference, with
queries and keys normalised to the reference's. The reference is a given picture, whose latents come from inversion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from bench.choices import Role
from bench.contracts import (
    REFERENCE,
    Ask,
    BenchError,
    Dataset,
    Method,
    Reference,
    SharedAttentionSpec,
    Text,
    learned_from,
)


@dataclass
class StyleAligned(Method):
    """Shows a pair's style image, or the first reference where there is no pair (or `images` says so)."""

    adain: bool = True
    share_norm: bool = True
    inversion_guidance: float = 2.0
    offset: int = 5  # the reference begins at the noise of this step
    images: Role | None = None  # role to show
    strength: float = 2.0

    strength_knob = "weight of the reference's tokens"  # its logarithm is added to their attention scores

    def __post_init__(self) -> None:
        if self.offset < 0:
            raise BenchError(f"method.offset={self.offset} was requested; give 0 or more.")

    def lacks(self, dataset: Dataset) -> str | None:
        return None if learned_from(dataset, self.images)[1] else self.images or "references or pairs"

    def adapters(self, dataset: Dataset) -> Mapping[str, SharedAttentionSpec]:
        return {"shared": SharedAttentionSpec(self.adain, self.share_norm)}

    def reference(self, dataset: Dataset) -> Reference:
        example = learned_from(dataset, self.images)[1][0]
        return Reference(example.image, dataset.styled(example.caption), self.inversion_guidance, self.offset)

    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        shown = self.reference(dataset).prompt
        return {"content": prompt, "negative": "", "style": dataset.styled(prompt), REFERENCE: shown}

    def guide(self, z, t, texts, cfg, strength):
        """e0 + cfg (e - e0), where the rows of each half share with the reference's row of that half."""
        n, seen = len(z), texts[REFERENCE].images[REFERENCE][:1].to(z)
        shown = replace(texts[REFERENCE], images={})[:1]
        halves = [texts["negative"][:1], shown, texts["negative"], texts["style"]]
        answer = yield Ask(
            torch.cat([seen, seen, z, z]),
            torch.cat([t[:1], t[:1], t, t]),
            Text.cat(halves),
            {"shared": torch.tensor([0.0, 0.0] + [strength] * 2 * n)},
            references=[0, 1] + [0] * n + [1] * n,
        )
        unconditional, conditional = answer[2:].chunk(2)
        return unconditional + cfg * (conditional - unconditional)
