"""Stable Diffusion XL (Podell et al. 2023): two text encoders, a pooled embedding, and sizes as conditioning."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.backbones import read_config
from bench.backbones.latent_diffusion import LatentDiffusion
from bench.backbones.text_encoder import TextEncoder
from bench.contracts import Backbone, Text

if TYPE_CHECKING:
    from torch import Tensor


class StableDiffusionXL(LatentDiffusion):
    """Both encoders' penultimate layers side by side; the second one's pooled embedding; original size, crop, target.

    The published autoencoder overflows in float16 and is kept in float32, unless `vae` names one that does not.
    """

    pipeline_class = "StableDiffusionXLPipeline"
    conditioning = "text_time"
    training_notes = (
        "training conditions SDXL on images of the training size without crop; the reference scripts give the original "
        "size and the crop of each image",
    )

    sizes = ("time_ids",)
    described: Sequence[int] | None = None  # height and width of the original, crop top and left; None: P, P, 0, 0

    def in_training(self, resolution: int | None, time_ids: Sequence[int] | None) -> Backbone:
        if time_ids is None or resolution not in (None, self.resolution):
            return super().in_training(resolution, time_ids)
        made = copy(self)
        made.described = tuple(time_ids)
        (height, width, top, left), size = made.described, self.resolution
        made.training_notes = (
            f"training conditions SDXL on originals of {height} x {width} pixels, crop {top}, {left}, size {size}",
        )
        return made

    def embed(self, prompts: Sequence[str]) -> Text:
        import torch

        first, second = (encoder.outputs(prompts) for encoder in self.text_encoders)
        states = torch.cat([torch.cat([out.hidden_states[-2] for out in outs]) for outs in (first, second)], dim=-1)
        pooled = torch.cat([out.text_embeds for out in second])  # (B, D2)
        extras = {"text_embeds": pooled, "time_ids": self._time_ids(len(prompts))}
        return Text(states, extras, prompts=tuple(prompts))

    def absent(self, text: Text, rows: Sequence[bool]) -> Text:
        """Zeros where the model's index says so (as SDXL's does). diffusers encodes an empty prompt that is given."""
        import torch

        if not self._index.get("force_zeros_for_empty_prompt", True):
            return text
        keep = ~torch.tensor(rows, device=self.device)
        pooled = text.extras["text_embeds"] * keep[:, None]
        return replace(text, states=text.states * keep[:, None, None], extras={**text.extras, "text_embeds": pooled})

    def _time_ids(self, n: int) -> Tensor:
        """(n, 6): original height and width, crop top and left, target height and width; all in pixels."""
        import torch

        size, described = self.resolution, self.described or (self.resolution, self.resolution, 0, 0)
        dtype = torch.promote_types(self.dtype, torch.float32)
        return torch.tensor([[*described, size, size]], dtype=dtype, device=self.device).repeat(n, 1)

    def _text_encoders(self, folder: Path, variant: str | None) -> tuple[TextEncoder, ...]:
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        self._index = read_config(folder, "model_index.json")
        kinds = {"": CLIPTextModel, "_2": CLIPTextModelWithProjection}
        return tuple(
            TextEncoder(folder / f"tokenizer{suffix}", folder / f"text_encoder{suffix}", kind, self.dtype, variant)
            for suffix, kind in kinds.items()
        )

    def _pipeline_options(self) -> dict[str, Any]:
        zeros = self._index.get("force_zeros_for_empty_prompt", True)
        return {"force_zeros_for_empty_prompt": zeros, "add_watermarker": False}
