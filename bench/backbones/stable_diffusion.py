"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022), and every model in their folder format, such as `mini`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.backbones.latent_diffusion import LatentDiffusion
from bench.backbones.text_encoder import TextEncoder
from bench.contracts import Text


class StableDiffusion(LatentDiffusion):
    """One text encoder; its last layer, normalised, is what the UNet reads."""

    pipeline_class = "StableDiffusionPipeline"
    conditioning = None

    def embed(self, prompts: Sequence[str]) -> Text:
        import torch

        (encoder,) = self.text_encoders
        states = torch.cat([out.last_hidden_state for out in encoder.outputs(prompts)])
        return Text(states, prompts=tuple(prompts))

    def _text_encoders(self, folder: Path, variant: str | None) -> tuple[TextEncoder, ...]:
        from transformers import CLIPTextModel

        return (TextEncoder(folder / "tokenizer", folder / "text_encoder", CLIPTextModel, self.dtype, variant),)

    def _pipeline_options(self) -> dict[str, Any]:
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
