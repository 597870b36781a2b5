"""FLUX.2-klein-base (Black Forest Labs 2026): undistilled, Qwen3 as text encoder, normalised 2 x 2 latents."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.backbones.autoencoder import Flux2Autoencoder
from bench.backbones.flow_transformer import FlowTransformer
from bench.backbones.language_models import ChatEncoder
from bench.contracts import Text

if TYPE_CHECKING:
    from torch import Tensor

LONG = 4300  # image tokens from which on the shift does not depend on the number of steps


class Flux2Klein(FlowTransformer):
    """Its latents (C = 128) are 2 x 2 patches of the autoencoder's, each channel normalised."""

    pipeline_class = "Flux2KleinPipeline"
    network_name: ClassVar[str] = "Flux2Transformer2DModel"
    published: ClassVar[re.Pattern[str]] = re.compile(r"\.attn\.(to_[qkv]|to_out(\.0)?|to_qkv_mlp_proj)$")
    patch: ClassVar[int] = 1  # of these latents
    draws_latents: ClassVar[bool] = False

    def _read(self, prompts: Sequence[str]) -> Text:
        (encoder,) = self.text_encoders
        return Text(encoder.states(prompts), prompts=tuple(prompts))

    def _forward(self, z: Tensor, t: Tensor, text: Text) -> Tensor:
        import torch

        n, channels, height, width = z.shape
        one, length = torch.arange(1), text.states.shape[1]
        places = torch.cartesian_prod(one, torch.arange(height), torch.arange(width), one)
        words = torch.cartesian_prod(one, one, one, torch.arange(length))
        tokens = self.network(
            hidden_states=z.flatten(2).transpose(1, 2),
            timestep=t / self.train_timesteps,
            guidance=None,
            encoder_hidden_states=text.states,
            txt_ids=words.expand(n, -1, -1).to(self.device),
            img_ids=places.expand(n, -1, -1).to(self.device),
            return_dict=False,
        )[0]
        return tokens.transpose(1, 2).reshape(n, channels, height, width)

    def _mu(self, steps: int) -> float:
        """The pipeline's empirical fit over the number of tokens and of steps."""
        at_200 = 0.00016927 * self.image_tokens + 0.45666666
        if self.image_tokens > LONG:
            return at_200
        at_10 = 8.73809524e-05 * self.image_tokens + 1.89833333
        slope = (at_200 - at_10) / 190
        return at_200 + slope * (steps - 200)

    def _autoencoder(self, folder: Path, variant: str | None) -> Any:
        return Flux2Autoencoder(folder, self.dtype, self.device, variant)

    def _text_encoders(self, folder: Path, variant: str | None) -> tuple[Any, ...]:
        places = folder / "tokenizer", folder / "text_encoder"
        return (ChatEncoder(*places, self.text_length, self.dtype, variant),)
