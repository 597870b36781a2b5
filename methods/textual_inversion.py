"""Textual Inversion (Gal et al. 2022, arXiv 2208.01618): one new word for a subject or a style, and nothing else.

The embedding of the word is optimised through the frozen text encoder and the frozen network, under neutral prompts of
a list (eq. 2). With several vectors the word is as many tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from bench.choices import Role
from bench.contracts import (
    Ask,
    BenchError,
    Dataset,
    Loss,
    Method,
    Recipe,
    TokenSpec,
    Unbound,
    at_least_one,
    learned_from,
    plain_guidance,
    with_token,
)


@dataclass
class TextualInversion(Method):
    """Learns from a pair's style image, or from the references where there is no pair (or `images` says so).

    With a `file` instead of a recipe it draws with embeddings that were learned elsewhere.
    """

    style_templates: Sequence[str]
    object_templates: Sequence[str]
    recipe: Recipe | None = None
    file: str | None = None
    token: str = "sks"
    vectors: int = 1
    start: str | None = None  # the word that the embedding begins as; None: at random
    images: Role | None = None  # role to learn from
    strength: float = 1.0

    strength_knob = "embedding scale"  # s in e + s (learned - e), e the token's own embedding

    def __post_init__(self) -> None:
        at_least_one(vectors=self.vectors)
        if (self.file is None) == (self.recipe is None):
            raise BenchError("An embedding is read from method.file or learned by method.recipe; give one of them.")

    @property
    def rare_tokens(self) -> Sequence[str]:
        return (self.token,)

    def unbound(self, dataset: Dataset) -> Unbound:
        return Unbound() if dataset.style_words else Unbound.among([], dataset.prompts, dataset.noun)

    def lacks(self, dataset: Dataset) -> str | None:
        if self.file is not None or learned_from(dataset, self.images)[1]:
            return None
        return self.images or "references or pairs"

    def adapters(self, dataset: Dataset) -> Mapping[str, TokenSpec]:
        return {"style": TokenSpec(self.token, self.vectors, self.start, self.file)}

    def step(self, data, k, rng):
        role, _ = learned_from(data.dataset, self.images)
        (z,), _ = data.draw((role,), rng)
        templates = self.style_templates if data.dataset.style_words else self.object_templates
        drawn = torch.randint(len(templates), (len(z),), generator=rng).tolist()
        eps, t = data.noise(z, rng)
        text = data.text([templates[i].replace("{}", self._words()) for i in drawn])
        out = yield Ask(data.noisy(z, eps, t), t, text, {"style": 1.0})
        yield Loss(data.loss(out, data.target(z, eps, t), t))

    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        if dataset.style_words:
            styled = f"{prompt} in the style of {self._words()}"
        else:
            styled = with_token(prompt, dataset.noun, self._words(), keep_noun=False)
        return {"content": prompt, "negative": "", "style": styled}

    def guide(self, z, t, texts, cfg, strength):
        return (yield from plain_guidance(z, t, texts, cfg, "style", {"style": strength}))

    def _words(self) -> str:
        return " ".join([self.token] * self.vectors)
