"""StyleForge (Park, Ko, Jang 2024, arXiv 2404.05256): DreamBooth for styles, with dual binding.

Style references are bound to "[V] style", and auxiliary pictures, more general art than the style, to the plain word
"style", so that it means artwork and not fashion:
    L = MSE(E(z_t, "a photo of [V] style", t), eps) + lambda MSE(E(z'_t', "a photo of style", t'), eps').
Multi-StyleForge has a token for references that show persons and another for the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from bench.contracts import AdapterSpec, Ask, Dataset, FullSpec, Loss, Method, Recipe, Text, plain_guidance, tuned

AUXILIARY = "a photo of style"


def dual_binding(data, z, captions, weight, rng):
    """The loss of both bindings in one forward pass; each picture has its own noise and timestep."""
    eps, t = data.noise(z, rng)
    rows = [(data.noisy(z, eps, t), t, data.text(captions), data.target(z, eps, t))]
    if weight:
        (aux,), _ = data.draw(("auxiliary",), rng)
        eps, t = data.noise(aux, rng)
        rows.append((data.noisy(aux, eps, t), t, data.text([AUXILIARY] * len(aux)), data.target(aux, eps, t)))
    noisy, times, texts, targets = zip(*rows, strict=True)
    out = yield Ask(torch.cat(noisy), torch.cat(times), Text.cat(texts), {"style": 1.0})
    parts = zip(out.chunk(len(rows)), targets, times, strict=True)
    losses = [data.loss(part, target, at) for part, target, at in parts]
    yield Loss(losses[0] + weight * losses[1] if weight else losses[0])


@dataclass
class StyleForge(Method):
    """Single-StyleForge: one token for all references."""

    recipe: Recipe
    tune: Literal["lora", "full"] = "full"
    text_encoder: bool = True  # is tuned, too (full alone)
    rank: int = 4
    token: str = "zwx"
    auxiliary_weight: float = 1.0  # lambda
    where: str = "attention"
    strength: float = 1.0

    needs = frozenset({"references", "auxiliary"})
    strength_knob = "weight scale"  # s in W0 + s (W - W0), W - W0 low-rank or not

    @property
    def rare_tokens(self) -> Sequence[str]:
        return (self.token,)

    def adapters(self, dataset: Dataset) -> Mapping[str, AdapterSpec | FullSpec]:
        return {"style": tuned(self.tune, self.rank, self.where, self.text_encoder)}

    def step(self, data, k, rng):
        (z,), _ = data.draw(("references",), rng)
        captions = [f"a photo of {self.token} style"] * len(z)
        yield from dual_binding(data, z, captions, self.auxiliary_weight, rng)

    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        return {"content": prompt, "negative": "", "style": f"a photo of {self.token} style, {prompt}"}

    def guide(self, z, t, texts, cfg, strength):
        return (yield from plain_guidance(z, t, texts, cfg, "style", {"style": strength}))


@dataclass
class MultiStyleForge(Method):
    """Two tokens: [V] for references that show a person, [W] for those that show none. All are drawn from one list."""

    recipe: Recipe
    tune: Literal["lora", "full"] = "full"
    text_encoder: bool = True  # is tuned, too (full alone)
    rank: int = 4
    token: str = "zwx"  # [V], persons
    background_token: str = "sbu"  # [W], the others
    auxiliary_weight: float = 1.0  # lambda
    where: str = "attention"
    strength: float = 1.0

    needs = frozenset({"references", "auxiliary"})
    strength_knob = "weight scale"

    @property
    def rare_tokens(self) -> Sequence[str]:
        return (self.token, self.background_token)

    def lacks(self, dataset: Dataset) -> str | None:
        kinds = {example.person for example in dataset.references}
        return super().lacks(dataset) or (None if len(kinds) == 2 else "references with and without persons")

    def adapters(self, dataset: Dataset) -> Mapping[str, AdapterSpec | FullSpec]:
        return {"style": tuned(self.tune, self.rank, self.where, self.text_encoder)}

    def step(self, data, k, rng):
        (z,), examples = data.draw(("references",), rng)
        tokens = [self.token if example.person else self.background_token for example in examples]
        captions = [f"a photo of {token} style" for token in tokens]
        yield from dual_binding(data, z, captions, self.auxiliary_weight, rng)

    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        prefix = f"a photo of {self.token} style, {self.background_token} style"
        return {"content": prompt, "negative": "", "style": f"{prefix}, {prompt}"}

    def guide(self, z, t, texts, cfg, strength):
        return (yield from plain_guidance(z, t, texts, cfg, "style", {"style": strength}))
