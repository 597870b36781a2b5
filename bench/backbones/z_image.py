"""Z-Image (Tongyi-MAI 2025, arXiv 2511.22699): one stream of image and text tokens, Qwen3 as text encoder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.backbones.flow_transformer import FlowTransformer, linear_shift
from bench.backbones.language_models import ChatEncoder
from bench.contracts import Text

if TYPE_CHECKING:
    from torch import Tensor


class ZImage(FlowTransformer):
    """Its network predicts z - eps at time 1 - s, so both are turned round here. Padded words are not read."""

    pipeline_class = "ZImagePipeline"
    network_name: ClassVar[str] = "ZImageTransformer2DModel"
    published: ClassVar[re.Pattern[str]] = re.compile(r"\.attention\.(to_[qkv]|to_out\.0)$")
    draws_latents: ClassVar[bool] = False

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Its script takes the mode of the posterior, so the standard deviation is zero."""
        mean, std = super().encode(images)
        return mean, std.new_zeros(std.shape)

    def _read(self, prompts: Sequence[str]) -> Text:
        """States (B, L, D) of Qwen3's second last layer, and which of the L words are read."""
        (encoder,) = self.text_encoders
        read, mask = encoder.read(prompts)
        return Text(read.hidden_states[-2], {"mask": mask}, prompts=tuple(prompts))

    def _forward(self, z: Tensor, t: Tensor, text: Text) -> Tensor:
        import torch

        words = [states[mask] for states, mask in zip(text.states, text.extras["mask"].bool(), strict=True)]
        images = list(z.unsqueeze(2).unbind(0))
        time = 1 - t.to(torch.promote_types(z.dtype, torch.float32)) / self.train_timesteps
        made = self.network(images, time, words, return_dict=False)[0]
        return -torch.stack(list(made)).squeeze(2)

    def _mu(self, steps: int) -> float:
        return linear_shift(self.image_tokens, self.schedule.config, 1.15)

    def _text_encoders(self, folder: Path, variant: str | None) -> tuple[Any, ...]:
        places = folder / "tokenizer", folder / "text_encoder"
        return (ChatEncoder(*places, self.text_length, self.dtype, variant, thinking=True),)
