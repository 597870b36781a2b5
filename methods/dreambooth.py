"""DreamBooth (Ruiz et al. 2023, arXiv 2208.12242): bind a rare token to a subject or a style, as published (all weights
are tuned) or in its LoRA form. A second loss on the backbone's own images of the class keeps the class (prior
preservation, eq. 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from bench.choices import Role
from bench.contracts import (
    AdapterSpec,
    Ask,
    BenchError,
    Dataset,
    Example,
    FullSpec,
    Loss,
    Method,
    Recipe,
    Text,
    Unbound,
    plain_guidance,
    tuned,
    with_token,
)


@dataclass
class DreamBooth(Method):
    """Learns from a pair's style image, or from the references where there is no pair (or `images` says so)."""

    recipe: Recipe
    tune: Literal["lora", "full"] = "lora"
    text_encoder: bool = False  # is tuned, too (full alone)
    rank: int = 4
    token: str = "sks"
    prior_weight: float = 1.0
    class_images: int = 100
    images: Role | None = None  # role to learn from
    where: str = "attention"
    strength: float = 1.0

    needs = frozenset({"class"})
    strength_knob = "weight scale"  # s in W0 + s (W - W0), W - W0 low-rank or not

    def __post_init__(self) -> None:
        if self.prior_weight and self.class_images < 1:
            raise BenchError(
                f"method.class_images={self.class_images} was requested; give at least 1, or method.prior_weight=0 to "
                "train without prior preservation."
            )

    @property
    def rare_tokens(self) -> Sequence[str]:
        return (self.token,)

    def unbound(self, dataset: Dataset) -> Unbound:
        if dataset.style_words:
            return Unbound()
        return Unbound.among(self._learned(dataset), dataset.prompts, dataset.noun)

    def lacks(self, dataset: Dataset) -> str | None:
        return super().lacks(dataset) or (None if dataset.references or dataset.pairs else "references or pairs")

    def adapters(self, dataset: Dataset) -> Mapping[str, AdapterSpec | FullSpec]:
        return {"style": tuned(self.tune, self.rank, self.where, self.text_encoder)}

    def prior(self, dataset: Dataset) -> tuple[str, int] | None:
        return (f"a photo of a {dataset.noun}", self.class_images) if self.prior_weight else None

    def step(self, data, k, rng):
        (z,), examples = data.draw((self._role(data.dataset),), rng)
        eps, t = data.noise(z, rng)
        captions = [self._bound(example.caption, example.noun, data.dataset) for example in examples]
        if not self.prior_weight:
            out = yield Ask(data.noisy(z, eps, t), t, data.text(captions), {"style": 1.0})
            yield Loss(data.loss(out, data.target(z, eps, t), t))
            return
        (own,), owns = data.draw(("prior",), rng)
        own_eps, own_t = data.noise(own, rng)  # each sample has its own noise and timestep
        out = yield Ask(
            torch.cat([data.noisy(z, eps, t), data.noisy(own, own_eps, own_t)]),
            torch.cat([t, own_t]),
            Text.cat([data.text(captions), data.text([example.caption for example in owns])]),
            {"style": 1.0},
        )
        instance, prior = out.chunk(2)
        loss = data.loss(instance, data.target(z, eps, t), t)
        yield Loss(loss + self.prior_weight * data.loss(prior, data.target(own, own_eps, own_t), own_t))

    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        return {"content": prompt, "negative": "", "style": self._bound(prompt, dataset.noun, dataset)}

    def guide(self, z, t, texts, cfg, strength):
        return (yield from plain_guidance(z, t, texts, cfg, "style", {"style": strength}))

    def _role(self, dataset: Dataset) -> str:
        return self.images or ("style" if dataset.pairs else "references")

    def _learned(self, dataset: Dataset) -> Sequence[Example]:
        return [pair.style for pair in dataset.pairs] if self._role(dataset) == "style" else dataset.references

    def _bound(self, prompt: str, noun: str, dataset: Dataset) -> str:
        """The rare token names the style of a style dataset and the subject of a subject dataset."""
        return f"{prompt} in {self.token} style" if dataset.style_words else with_token(prompt, noun, self.token)
