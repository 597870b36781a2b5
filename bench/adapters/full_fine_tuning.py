"""Full fine-tuning: a trainable copy of the backbone's weights that stands in their place for some rows.

DreamBooth (Ruiz et al. 2023, arXiv 2208.12242) and StyleForge (arXiv 2404.05256) as published. B rows, n weights.
The copy lies in one flat tensor `theta` (1, n), as the numbers of an adapter do, so optimizer and checkpoints are the
same. The frozen parameters never change: they are only taken out while a forward or backward pass runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bench.backbones.embedding import read, sized_as
from bench.contracts import Ask, Backbone, BenchError, FullSpec, Impossible, Text

NETWORK_FILE, ENCODER_FILE = "diffusion_pytorch_model.safetensors", "model.safetensors"  # of diffusers
TEXTS_KEPT = 256


class FullWeights:
    """A copy of every weight of the denoiser (and of the text encoders) of one cell, and passes through it.

    Weights that a forward pass never reads (the last layer of SDXL's text encoders) get gradients of zero, so AdamW's
    weight decay reaches them, as it does not in the reference scripts.
    """

    def __init__(self, backbone: Backbone, spec: FullSpec, dtype: torch.dtype):
        self.backbone, self.spec = backbone, spec
        self.parts = {
            name: part for name, part in backbone.parts().items() if spec.text_encoder or name == backbone.part
        }
        if spec.text_encoder and len(self.parts) == 1:
            raise Impossible(
                f"The text encoder of {backbone.name} was to be trained and it has none that can be; "
                "type method.text_encoder=false."
            )
        self.places = dict(_places(self.parts))
        self.frozen = {key: getattr(module, name) for key, (module, name) in self.places.items()}
        self.theta = torch.cat([weight.detach().flatten().to(dtype) for weight in self.frozen.values()])[None]
        self.grad = torch.zeros_like(self.theta)
        self.leaves = {key: nn.Parameter(values) for key, values in self._views(self.theta).items()}
        for key, grads in self._views(self.grad).items():
            self.leaves[key].grad = grads
        self._merged: dict[float, dict[str, nn.Parameter]] = {}
        self._texts: dict[tuple[float, str | None], Text] = {}

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        """The parts of a flat (1, n) tensor in the shapes of the weights, by key."""
        sizes = [weight.numel() for weight in self.frozen.values()]
        parts = flat[0].split(sizes)
        return {key: part.view(weight.shape) for (key, weight), part in zip(self.frozen.items(), parts, strict=True)}

    # --- forward passes

    def answer(self, name: str, asks: Sequence[Ask], trained: bool) -> Tensor:
        """Predictions (B, C, H, W) for the rows of all asks: one forward pass for each scale among them."""
        z, t = torch.cat([ask.z for ask in asks]), torch.cat([ask.t for ask in asks])
        text, scales = Text.cat([ask.text for ask in asks]), [s for ask in asks for s in _scales(name, ask)]
        if trained and not set(scales) <= {0.0, 1.0}:
            raise BenchError(
                f"Full fine-tuning trains the weights themselves, at scale 1; the scales {sorted(set(scales))} were "
                "requested with gradients; use a low-rank adapter (tune=lora) for a method that needs them."
            )
        if len(set(scales)) == 1:
            return self._predict(z, t, text, scales[0], trained)
        groups = {scale: [i for i, s in enumerate(scales) if s == scale] for scale in sorted(set(scales))}
        parts = [self._predict(z[rows], t[rows], text[rows], scale, trained) for scale, rows in groups.items()]
        order = torch.tensor([i for rows in groups.values() for i in rows])
        return torch.cat(parts)[order.argsort().to(z.device)]

    def _predict(self, z: Tensor, t: Tensor, text: Text, scale: float, trained: bool) -> Tensor:
        if not scale:
            with torch.no_grad():
                return self.backbone.predict(z, t, text)
        with torch.set_grad_enabled(trained), self.placed(self.leaves if trained else self._at(scale)):
            return self.backbone.predict(z, t, self._read(text, scale, trained))

    def _read(self, text: Text, scale: float, trained: bool) -> Text:
        """The text as the trained encoders read its prompts; kept by prompt while the weights stand still."""
        if not self.spec.text_encoder:
            return text
        if len(text.prompts) != len(text):
            raise BenchError("A trained text encoder needs the prompts of every text; embed them with the backbone.")
        if trained:
            return sized_as(self.backbone, read(self.backbone, text.prompts), text)
        if len(self._texts) > TEXTS_KEPT:
            self._texts = {}
        new = sorted({prompt for prompt in text.prompts if (scale, prompt) not in self._texts}, key=_none_first)
        if new:
            texts = read(self.backbone, new)
            self._texts |= {(scale, prompt): texts[i : i + 1] for i, prompt in enumerate(new)}
        return sized_as(self.backbone, Text.cat([self._texts[scale, prompt] for prompt in text.prompts]), text)

    def _at(self, scale: float) -> dict[str, nn.Parameter]:
        """W0 + s (W - W0) without gradients; at scale 1 the weights themselves. The last scale is kept."""
        if scale not in self._merged:
            values = {key: self._weight(key, scale) for key in self.leaves}
            self._merged = {scale: {key: nn.Parameter(value, requires_grad=False) for key, value in values.items()}}
        return self._merged[scale]

    def _weight(self, key: str, scale: float) -> Tensor:
        tuned, frozen = self.leaves[key].detach(), self.frozen[key].detach()
        return tuned if scale == 1 else frozen.to(tuned) + scale * (tuned - frozen.to(tuned))

    @contextmanager
    def placed(self, weights: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """These weights in the place of the backbone's, which are back afterwards: the same objects, untouched."""
        try:
            self._put(weights)
            yield
        finally:
            self._put(self.frozen)

    def _put(self, weights: Mapping[str, nn.Parameter]) -> None:
        for key, (module, name) in self.places.items():
            setattr(module, name, weights[key])

    @torch.no_grad()
    def reset(self) -> None:
        """Be the backbone's own weights again, for the next cell."""
        self.forget()
        for key, leaf in self.leaves.items():
            leaf.copy_(self.frozen[key])

    def forget(self) -> None:
        """The weights are about to move: what was computed from them is no longer true."""
        self._merged, self._texts = {}, {}

    # --- files

    def state(self) -> dict[str, Tensor]:
        """All weights by part and diffusers' name, `unet.conv_in.weight`, in float32."""
        return {key: leaf.detach().float().cpu().contiguous() for key, leaf in self.leaves.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Fill the weights from what `state` gave: these names in these shapes, and no others. Raises BenchError."""
        self.forget()
        extra = [key for key in state if key not in self.leaves]
        if extra:
            raise BenchError(
                f"Loading fine-tuned weights: {len(extra)} have no place in the backbone, first {extra[0]}; "
                "use the backbone and the text_encoder setting that they were trained with."
            )
        for key, leaf in self.leaves.items():
            found = state.get(key)
            if found is None or found.shape != leaf.shape:
                shape = "nothing" if found is None else tuple(found.shape)
                raise BenchError(
                    f"Loading fine-tuned weights: expected {tuple(leaf.shape)} for {key}, found {shape}; "
                    "use the backbone and the text_encoder setting that they were trained with."
                )
            with torch.no_grad():
                leaf.copy_(found)

    def files(self, name: str) -> dict[str, str]:
        """Path -> part: `style/unet/diffusion_pytorch_model.safetensors`, `style/text_encoder/model.safetensors`."""
        names = {part: NETWORK_FILE if part == self.backbone.part else ENCODER_FILE for part in self.parts}
        return {f"{name}/{part}/{file}": f"{part}." for part, file in names.items()}


def _places(parts: Mapping[str, nn.Module]) -> Iterator[tuple[str, tuple[Any, str]]]:
    """Where each weight sits: `unet.conv_in.weight` -> (the module, "weight")."""
    for part, network in parts.items():
        for key, _ in network.named_parameters():
            owner, _, name = key.rpartition(".")
            yield f"{part}.{key}", (network.get_submodule(owner), name)


def _none_first(prompt: str | None) -> tuple[bool, str]:
    return prompt is not None, prompt or ""


def _scales(name: str, ask: Ask) -> list[float]:
    """The scale of each row of an ask; 0 where the weights are not requested."""
    scale = ask.adapters.get(name, 0.0)
    return scale.tolist() if isinstance(scale, Tensor) else [float(scale)] * len(ask.z)
