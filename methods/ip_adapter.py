"""IP-Adapter (Ye et al. 2023, arXiv 2308.06721): an image as a prompt, without training for it.

Every cross-attention layer reads image tokens beside the text (section 3.2). With a scale for each block and the
content subtracted from the image's embedding it takes the style alone: InstantStyle (Wang et al., arXiv 2404.02733).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from bench.adapters.image_encoder import ImageEncoder
from bench.choices import Role
from bench.contracts import (
    Ask,
    BenchError,
    CrossAttentionSpec,
    Dataset,
    Example,
    Loss,
    Method,
    Recipe,
    plain_guidance,
)


@dataclass
class IPAdapter(Method):
    """Shows a pair's style image, or the mean of the references (or what `images` says), with weights from `file`.

    With a `recipe` instead of a file it trains projection, keys and values on (image, caption) pairs, the references.
    """

    encoder: ImageEncoder
    file: str | None = None
    recipe: Recipe | None = None
    tokens: int = 4  # of a new adapter: tokens, and heads of a resampler (0: the base kind)
    heads: int = 0
    scales: float | Mapping[str, Any] = 1.0  # by block, in diffusers' form
    subtract: float = 0.0  # times the embedding of the image's caption, taken off the image's (InstantStyle)
    dropout: Sequence[float] = (0.05, 0.05, 0.05)  # image only, text only, both
    images: Role | None = None  # role to show
    combine: Literal["mean", "tokens"] | None = None  # several images as their mean (None), or each with its own tokens
    template: str | None = None  # of the drawn prompt, "{prompt}, best quality"; None: the prompt itself
    negative: str | None = None  # negative prompt; None: there is none
    strength: float = 0.5
    _seen: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)  # by content of the dataset

    strength_knob = "image scale"

    def __post_init__(self) -> None:
        if (self.file is None) == (self.recipe is None):
            raise BenchError("An image adapter is read from method.file or trained by method.recipe; give one of them.")
        if self.subtract and self.encoder.features != "pooled":
            raise BenchError("Content is subtracted from pooled features only; give method.subtract=0 with patches.")
        if self.template is not None and self.template.count("{prompt}") != 1:
            raise BenchError(f"method.template={self.template} was requested; write {{prompt}} once into it.")

    def missing(self) -> str | None:
        return self.encoder.missing() or (self.file and absent(self.file))

    def lacks(self, dataset: Dataset) -> str | None:
        if self.recipe is not None and not dataset.references:
            return "references"
        return None if self._examples(dataset) else self.images or "references or pairs"

    def adapters(self, dataset: Dataset) -> Mapping[str, CrossAttentionSpec]:
        new = (self.encoder.width, self.tokens, self.heads)
        return {"image": CrossAttentionSpec(*new, scales=self.scales, file=self.file)}

    def step(self, data, k, rng):
        """The image is its own condition; sometimes it, its caption or both are dropped."""
        (z,), examples = data.draw(("references",), rng)
        eps, t = data.noise(z, rng)
        no_image, no_text = self.dropped(len(z), rng)
        seen = self.encoder([example.image for example in examples])
        seen[no_image] = self.encoder.blank
        captions = ["" if drop else e.caption for e, drop in zip(examples, no_text.tolist(), strict=True)]
        text = data.text(captions).showing({"image": seen})
        out = yield Ask(data.noisy(z, eps, t), t, text, {"image": 1.0})
        yield Loss(data.loss(out, data.target(z, eps, t), t))

    def dropped(self, n: int, rng: Generator) -> tuple[Tensor, Tensor]:
        """Which of n samples lose their image, which their text, (n,) each; one number decides between the cases."""
        image, text, both = self.dropout
        u = torch.rand(n, generator=rng)
        neither = (u >= image + text) & (u < image + text + both)
        return (u < image) | neither, ((u >= image) & (u < image + text)) | neither

    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        """The words of the authors' demos are settings; the backbone's own steps before a late start have none of
        the template's."""
        drawn = {} if self.template is None else {"style": self.template.replace("{prompt}", prompt)}
        return {"content": prompt, "negative": self.negative or "", **drawn}

    def shown(self, dataset: Dataset) -> Mapping[str, Mapping[str, Tensor]]:
        """The image beside the prompt; no image, as in training, beside the empty one."""
        if dataset.content_hash not in self._seen:
            seen = self._features(self._examples(dataset))
            self._seen[dataset.content_hash] = seen[None] if self.combine == "tokens" else seen.mean(0, keepdim=True)
        content, blank = self._seen[dataset.content_hash], self.encoder.blank[None]
        if self.combine == "tokens":
            blank = blank[None].expand_as(content)
        return {self._drawn: {"image": content}, "negative": {"image": blank}}

    @property
    def _drawn(self) -> str:
        """The role of the prompt that draws."""
        return "content" if self.template is None else "style"

    def guide(self, z, t, texts, cfg, strength):
        """lambda = strength in both rows; lambda 0 is the backbone."""
        return (yield from plain_guidance(z, t, texts, cfg, self._drawn, {"image": strength}))

    def _examples(self, dataset: Dataset) -> Sequence[Example]:
        role = self.images or ("style" if dataset.pairs else "references")
        return [pair.style for pair in dataset.pairs] if role == "style" else dataset.references

    def _features(self, examples: Sequence[Example]) -> Tensor:
        seen = self.encoder([example.image for example in examples])
        if not self.subtract:
            return seen
        return seen - self.subtract * self.encoder.words([example.caption for example in examples])


def absent(file: str) -> str | None:
    """A sentence when the weights are not on this machine."""
    from bench.data.weights import weights_at

    try:
        weights_at(file)
    except BenchError as error:
        return str(error)
    return None
