"""Vanilla T-LoRA (Soboleva et al., AAAI 2026, arXiv 2507.05964): a low-rank adapter with fewer ranks at higher noise.

At timestep t the first r(t) = floor((r - r_min) (T - t) / T) + r_min ranks take part, in training and in sampling.
One image and a rare token as in DreamBooth, without prior preservation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.choices import Role
from bench.contracts import (
    AdapterSpec,
    Ask,
    BenchError,
    Dataset,
    Loss,
    Method,
    Recipe,
    Unbound,
    learned_from,
    plain_guidance,
    with_token,
)

T = 1000  # timesteps


@dataclass
class TLora(Method):
    """Learns from a pair's style image, or from the references where there is no pair (or `images` says so)."""

    recipe: Recipe
    rank: int = 64
    least: float = 0.5  # r_min / r, at the highest noise
    where: str = "attention"
    token: str = "sks"
    images: Role | None = None  # role to learn from
    strength: float = 1.0

    strength_knob = "LoRA scale"

    def __post_init__(self) -> None:
        if not 0 < self.least <= 1:
            raise BenchError(f"method.least={self.least} was requested; give a share of the ranks above 0, up to 1.")

    @property
    def rare_tokens(self) -> Sequence[str]:
        return (self.token,)

    def unbound(self, dataset: Dataset) -> Unbound:
        if dataset.style_words:
            return Unbound()
        return Unbound.among(learned_from(dataset, self.images)[1], dataset.prompts, dataset.noun)

    def lacks(self, dataset: Dataset) -> str | None:
        return None if learned_from(dataset, self.images)[1] else self.images or "references or pairs"

    def adapters(self, dataset: Dataset) -> Mapping[str, AdapterSpec]:
        return {"style": AdapterSpec(self.rank, self.where)}

    def step(self, data, k, rng):
        role, _ = learned_from(data.dataset, self.images)
        (z,), examples = data.draw((role,), rng)
        eps, t = data.noise(z, rng)
        text = data.text([self._bound(example.caption, example.noun, data.dataset) for example in examples])
        out = yield Ask(data.noisy(z, eps, t), t, text, {"style": self.mask(t)})
        yield Loss(data.loss(out, data.target(z, eps, t), t))

    def mask(self, t: Tensor) -> Tensor:
        """Timesteps (B,) -> 1 for the ranks that take part, else 0, (B, r)."""
        r_min = max(1, int(self.least * self.rank))
        used = ((self.rank - r_min) * (T - t.double().cpu()) / T).floor() + r_min  # (B,)
        return (torch.arange(self.rank) < used[:, None]).float()

    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        return {"content": prompt, "negative": "", "style": self._bound(prompt, dataset.noun, dataset)}

    def guide(self, z, t, texts, cfg, strength):
        both = strength * self.mask(torch.cat([t, t]))
        return (yield from plain_guidance(z, t, texts, cfg, "style", {"style": both}))

    def _bound(self, prompt: str, noun: str, dataset: Dataset) -> str:
        """The rare token names the style of a style dataset and the subject of a subject dataset."""
        return f"{prompt} in {self.token} style" if dataset.style_words else with_token(prompt, noun, self.token)
