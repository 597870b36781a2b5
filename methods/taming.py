"""Taming-style joint training: a RECONSTRUCTION after Jia et al. 2023 (arXiv 2304.02642), not the authors' method.

Neither code nor weights were published and the paper's text was not at hand; abstract and reviews name the parts. Ours:

    L = MSE(E(z_t, caption, d * e(x_ref)), target) + w * MSE(E(z'_t, caption', 0), target')
        + beta * mean(abar_t * (1 - cos(phi(x0_hat), phi(x_ref))))

cross-reference (x_ref is another picture than the one that is denoised), object-embedding dropping (d is Bernoulli;
general pictures z' train without an embedding), identity preservation (phi: the frozen image encoder; weighted by
alpha-bar, since x0_hat means nothing at high noise), and low-rank adapters in place of whole-network tuning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import cosine_similarity

from bench.adapters.image_encoder import ImageEncoder
from bench.contracts import (
    AdapterSpec,
    Ask,
    CrossAttentionSpec,
    Dataset,
    Example,
    Loss,
    Method,
    Recipe,
    Text,
    TrainingData,
    at_least_one,
    plain_guidance,
)


@dataclass
class TamingStyle(Method):
    """Learns from references with their captions; the general pictures are the backbone's own of the class."""

    encoder: ImageEncoder
    recipe: Recipe
    rank: int = 8
    tokens: int = 4
    where: str = "attention"
    drop: float = 0.1  # share of references that are denoised without an embedding
    general_weight: float = 1.0
    class_images: int = 100
    identity: float = 0.1  # beta
    strength: float = 1.0

    needs = frozenset({"references", "class"})
    strength_knob = "encoder scale"
    notes = (
        "taming is a reconstruction from the abstract and public reviews of arXiv 2304.02642, not the authors' method: "
        "image tokens at the cross-attention and low-rank adapters stand for whole-network tuning; drop, identity and "
        "general_weight are ours",
    )

    def missing(self) -> str | None:
        return self.encoder.missing()

    def lacks(self, dataset: Dataset) -> str | None:
        few = "two references, one to see and one to draw" if len(dataset.references) < 2 else None
        return super().lacks(dataset) or few

    def __post_init__(self) -> None:
        at_least_one(class_images=self.class_images, tokens=self.tokens)

    def adapters(self, dataset: Dataset) -> Mapping[str, AdapterSpec | CrossAttentionSpec]:
        image, style = CrossAttentionSpec(self.encoder.width, self.tokens), AdapterSpec(self.rank, self.where)
        return {"image": image, "style": style}

    def prior(self, dataset: Dataset) -> tuple[str, int] | None:
        return (f"a photo of a {dataset.noun}", self.class_images)

    def step(self, data, k, rng):
        (z,), examples = data.draw(("references",), rng)
        (own,), owns = data.draw(("prior",), rng)
        (eps, t), (own_eps, own_t) = data.noise(z, rng), data.noise(own, rng)
        seen = self.encoder([self.other(example, data.dataset.references, rng).image for example in examples])
        kept = (torch.rand(len(z), generator=rng) >= self.drop).float()
        shown = torch.where(kept[:, None].bool(), seen, self.encoder.blank)
        text = Text.cat([
            data.text([example.caption for example in examples]).showing({"image": shown}),
            data.text([example.caption for example in owns]).showing({"image": self.encoder.blank[None]}),
        ])  # fmt: skip
        z_t = data.noisy(z, eps, t)
        both = torch.cat([z_t, data.noisy(own, own_eps, own_t)])
        out = yield Ask(both, torch.cat([t, own_t]), text, {"image": 1.0, "style": 1.0})
        drawn, general = out.split([len(z), len(own)])
        loss = data.loss(drawn, data.target(z, eps, t), t)
        loss = loss + self.general_weight * data.loss(general, data.target(own, own_eps, own_t), own_t)
        if self.identity:
            loss = loss + self.identity * self.lost_identity(data, z_t, drawn, t, seen)
        yield Loss(loss)

    @staticmethod
    def other(example: Example, references: Sequence[Example], rng: Generator) -> Example:
        """Another reference than the one to be denoised."""
        others = [reference for reference in references if reference is not example]
        return others[int(torch.randint(len(others), (), generator=rng))]

    def lost_identity(self, data: TrainingData, z_t: Tensor, drawn: Tensor, t: Tensor, seen: Tensor) -> Tensor:
        """Mean of abar_t * (1 - cos(phi(x0_hat), phi(x_ref))); z_t and drawn (B, C, H, W), seen (B, E)."""
        z0, kept = clean(data, z_t, drawn, t)
        phi = self.encoder.of_pixels(data.pixels(z0))
        away = 1 - cosine_similarity(phi, seen.to(phi), dim=-1)
        return (kept.to(away) * away).mean()

    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        return {"content": prompt, "negative": ""}

    def shown(self, dataset: Dataset) -> Mapping[str, Mapping[str, Tensor]]:
        seen = self.encoder([example.image for example in dataset.references]).mean(0, keepdim=True)
        return {"content": {"image": seen}, "negative": {"image": self.encoder.blank[None]}}

    def guide(self, z, t, texts, cfg, strength):
        """Encoder and adapters at the same scale; scale 0 is the backbone."""
        return (yield from plain_guidance(z, t, texts, cfg, adapters={"image": strength, "style": strength}))


def clean(data: TrainingData, z_t: Tensor, prediction: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x0_hat (B, C, H, W) from a prediction of eps or of v, and alpha-bar (B,).

    z_t = a z0 + s eps and prediction = p eps + q z0 are linear in z0 and eps: ones and zeros give their factors.
    """
    one, zero = torch.ones_like(z_t), torch.zeros_like(z_t)
    a, s = data.noisy(one, zero, t), data.noisy(zero, one, t)
    p, q = data.target(zero, one, t), data.target(one, zero, t)
    return (p * z_t - s * prediction) / (p * a - s * q), a.flatten(1)[:, 0] ** 2
