"""B-LoRA (Frenkel, Vinker, Shamir, Cohen-Or 2024, arXiv 2403.14572): two blocks learn one image, one its style.

Low-rank adapters sit in the attention of two blocks alone and train together on one image under the prompt "A [v]".
Afterwards each block is used by itself: one holds the content, the other the style.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.choices import Role
from bench.contracts import (
    AdapterSpec,
    Ask,
    Dataset,
    Loss,
    Method,
    Recipe,
    Unbound,
    learned_from,
    plain_guidance,
    with_token,
)


@dataclass
class BLoRA(Method):
    """Learns from a pair's style image, or from the references where there is no pair (or `images` says so)."""

    recipe: Recipe
    rank: int = 64
    content_where: str = "attention in up_blocks.0.attentions.0"
    style_where: str = "attention in up_blocks.0.attentions.1"
    use: Literal["style", "content", "both"] = "style"  # block that draws
    token: str = "[v]"
    images: Role | None = None  # role to learn from
    strength: float = 1.0

    strength_knob = "LoRA scale"

    @property
    def rare_tokens(self) -> Sequence[str]:
        return (self.token,)

    def unbound(self, dataset: Dataset) -> Unbound:
        return Unbound() if self.use == "style" else Unbound.among([], dataset.prompts, dataset.noun)

    def lacks(self, dataset: Dataset) -> str | None:
        return None if learned_from(dataset, self.images)[1] else self.images or "references or pairs"

    def adapters(self, dataset: Dataset) -> Mapping[str, AdapterSpec]:
        return {
            "content": AdapterSpec(self.rank, self.content_where),
            "style": AdapterSpec(self.rank, self.style_where),
        }

    def step(self, data, k, rng):
        role, _ = learned_from(data.dataset, self.images)
        (z,), _ = data.draw((role,), rng)
        eps, t = data.noise(z, rng)
        text = data.text([f"A {self.token}"] * len(z))
        out = yield Ask(data.noisy(z, eps, t), t, text, {"content": 1.0, "style": 1.0})
        yield Loss(data.loss(out, data.target(z, eps, t), t))

    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        drawn = prompt if self.use == "style" else with_token(prompt, dataset.noun, self.token, keep_noun=False)
        return {
            "content": prompt,
            "negative": "",
            "style": drawn if self.use == "content" else f"{drawn} in {self.token} style",
        }

    def guide(self, z, t, texts, cfg, strength):
        blocks = ("content", "style") if self.use == "both" else (self.use,)
        return (yield from plain_guidance(z, t, texts, cfg, "style", dict.fromkeys(blocks, strength)))
