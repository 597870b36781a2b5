"""Pair Customization (Jones, Wang, Kumari, Bau, Zhu 2024, arXiv 2405.01536): a style from one pair of images.

Two adapters learn together: one explains the content image, the other what is left in the stylised image. Their
frozen `down` halves are disjoint rows of one orthonormal basis (section 3.2). Only the style adapter is used to draw,
through style guidance (eq. 10, several styles eq. 11).

Several pairs share the style adapter and have a content adapter each (the authors' advice in issue 11 of their
repository). The content adapters read the same rows: no two of them are on in one row of a batch, so A_c A_s^T = 0 and
r_c + r_s <= n hold for any number of pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.contracts import (
    AdapterSpec,
    Ask,
    Dataset,
    Example,
    Loss,
    Method,
    Recipe,
    Text,
    Unbound,
    check_entries,
    with_token,
)


@dataclass
class PairCustomization(Method):
    """Content steps come first; then each step is one on the content image and one on the style image."""

    recipe: Recipe
    rank: int = 64
    content_steps: int = 250
    content_adapter: bool = True  # False: the style adapter alone explains the style image, for an ablation
    token: str = "sbu"
    strength: float = 3.0
    start_t: float = 800
    where: str = "attention"
    blend: Sequence[Mapping[str, Any]] = ()  # further styles: {file, style_words, strength}

    needs = frozenset({"pairs"})
    words = frozenset({"style_words"})
    strength_knob = "style guidance"

    def __post_init__(self) -> None:
        check_entries("blend", self.blend, ("file", "style_words", "strength"))

    @property
    def rare_tokens(self) -> Sequence[str]:
        return (self.token,)

    def unbound(self, dataset: Dataset) -> Unbound:
        return Unbound.among([pair.content for pair in dataset.pairs])  # evaluation prompts get no token

    def adapters(self, dataset: Dataset) -> Mapping[str, AdapterSpec]:
        content = AdapterSpec(self.rank, self.where, orthonormal_row=0)
        style = AdapterSpec(self.rank, self.where, orthonormal_row=self.rank)
        others = {
            f"blend{i}": AdapterSpec(self.rank, self.where, file=str(other["file"]))
            for i, other in enumerate(self.blend)
        }
        contents = dict.fromkeys(content_names(dataset), content) if self.content_adapter else {}
        return {**contents, "style": style, **others}

    def step(self, data, k, rng):
        (content, style), examples = data.draw(("content", "style"), rng)
        eps, t = data.noise(content, rng)  # shared by both passes
        captions = [with_token(example.caption, example.noun, self.token) for example in examples]
        own = content_scales(examples, data.dataset) if self.content_adapter else {}

        if own:
            out = yield Ask(data.noisy(content, eps, t), t, data.text(captions), own)
            yield Loss(data.loss(out, data.target(content, eps, t), t))

        if k >= self.content_steps or not own:
            styled = data.text([data.dataset.styled(caption) for caption in captions])
            both = {**own, "style": 1.0}
            out = yield Ask(data.noisy(style, eps, t), t, styled, both, frozen=frozenset(own))
            yield Loss(data.loss(out, data.target(style, eps, t), t))

    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        others = {f"blend{i}": f"{prompt} {other['style_words']}" for i, other in enumerate(self.blend)}
        return {"content": prompt, "negative": "", "style": dataset.styled(prompt), **others}

    def guide(self, z, t, texts, cfg, strength):
        """e0 + cfg (ec - e0) + sum_i g_i (es_i - ec): adapters are on in the style rows alone."""
        styles = {"style": strength} | {f"blend{i}": other["strength"] for i, other in enumerate(self.blend)}
        styles = {name: g for name, g in styles.items() if g != 0}
        n, parts = len(z), 2 + len(styles)
        rows = torch.arange(n * parts) // n
        out = yield Ask(
            torch.cat([z] * parts),
            t.repeat(parts),
            Text.cat([texts[role] for role in ("negative", "content", *styles)]),
            {name: (rows == i).float() for i, name in enumerate(styles, start=2)},
        )
        unconditional, content, *styled = out.chunk(parts)
        guided = unconditional + cfg * (content - unconditional)
        for g, prediction in zip(styles.values(), styled, strict=True):
            guided = guided + g * (prediction - content)
        return guided


def content_names(dataset: Dataset) -> list[str]:
    """One content adapter per pair: "content", "content1", "content2", ..."""
    return [f"content{i}" if i else "content" for i in range(len(dataset.pairs))]


def content_scales(examples: Sequence[Example], dataset: Dataset) -> dict[str, torch.Tensor]:
    """For each content adapter that these rows use, 1 in the rows of its own image; one that is not drawn is absent."""
    images = [pair.content for pair in dataset.pairs]
    own = torch.tensor([next(i for i, image in enumerate(images) if image is example) for example in examples])
    return {name: (own == i).float() for i, name in enumerate(content_names(dataset)) if i in own}
