"""FLUX.2-klein-base (Black Forest Labs 2026): undistilled, Qwen3 as text encoder, normalised 2 x 2 latents."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.backbones.autoencoder import Flux2Autoencoder
from bench.backbones.flow_transformer import FlowTransformer
from bench.backbones.language_models import ChatEncoder
from bench.contracts import CONTEXT, Text

if TYPE_CHECKING:
    from torch import Tensor

SPACING = 10  # in time, between the image and its references
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

    def drawing(self, text: Text) -> Text:
        """Pictures (B, N, 3, P, P) beside the prompts become latents (B, N, C, H, W), each picture encoded once."""
        if CONTEXT not in text.images:
            return text
        pictures = text.images[CONTEXT]
        latents, _ = self.encode(pictures[0])
        same = latents.expand(len(text), *latents.shape)
        return replace(text, images={**text.images, CONTEXT: same})

    def _forward(self, z: Tensor, t: Tensor, text: Text) -> Tensor:
        """Latents of reference images are further tokens, which the network reads and does not denoise."""
        import torch

        references = text.images[CONTEXT].unbind(1) if CONTEXT in text.images else ()
        images = [z, *(reference.to(z) for reference in references)]
        places = torch.cat([self._places(image, SPACING * i) for i, image in enumerate(images)])
        one, length = torch.arange(1), text.states.shape[1]
        words = torch.cartesian_prod(one, one, one, torch.arange(length))
        tokens = self.network(
            hidden_states=torch.cat([image.flatten(2).transpose(1, 2) for image in images], dim=1),
            timestep=t / self.train_timesteps,
            guidance=None,
            encoder_hidden_states=text.states,
            txt_ids=words.expand(len(z), -1, -1).to(self.device),
            img_ids=places.expand(len(z), -1, -1).to(self.device),
            return_dict=False,
        )[0]
        return tokens[:, : z.shape[-2] * z.shape[-1]].transpose(1, 2).reshape(z.shape)

    @staticmethod
    def _places(image: Tensor, time: int) -> Tensor:
        """(H W, 4): place in time, row, column, and 0, of each token; references lie at times 10, 20, ..."""
        import torch

        height, width = image.shape[-2:]
        one = torch.arange(1)
        return torch.cartesian_prod(one + time, torch.arange(height), torch.arange(width), one)

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
        return (ChatEncoder(*places, self.text_length, self.dtype, variant, thinking=False),)
