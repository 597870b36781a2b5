"""Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv 2403.03206): two CLIP encoders and T5, a static shift."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.backbones.flow_transformer import FlowTransformer, linear_shift
from bench.backbones.language_models import T5Encoder
from bench.backbones.text_encoder import TextEncoder
from bench.contracts import Text

if TYPE_CHECKING:
    from torch import Tensor


class StableDiffusion3(FlowTransformer):
    """Penultimate layers of both CLIP encoders side by side, then T5's tokens; pooled embeddings of both encoders."""

    pipeline_class = "StableDiffusion3Pipeline"
    network_name: ClassVar[str] = "SD3Transformer2DModel"
    published: ClassVar[re.Pattern[str]] = re.compile(
        r"\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)$",
    )
    even: ClassVar[bool] = False

    def _read(self, prompts: Sequence[str]) -> Text:
        """States (B, L, D): CLIP's tokens, padded with zeros to T5's width, and T5's. Pooled (B, D1 + D2)."""
        import torch
        from torch.nn.functional import pad

        clips = [encoder.outputs(prompts) for encoder in self.text_encoders[:2]]
        states = torch.cat([torch.cat([out.hidden_states[-2] for out in outs]) for outs in clips], dim=-1)
        pooled = torch.cat([torch.cat([out.text_embeds for out in outs]) for outs in clips], dim=-1)
        long = self.text_encoders[2].states(prompts)
        states = torch.cat([pad(states, (0, long.shape[-1] - states.shape[-1])), long], dim=1)
        return Text(states, {"pooled": pooled}, prompts=tuple(prompts))

    def _forward(self, z: Tensor, t: Tensor, text: Text) -> Tensor:
        return self.network(
            hidden_states=z,
            timestep=t,
            encoder_hidden_states=text.states,
            pooled_projections=text.extras["pooled"],
            return_dict=False,
        )[0]

    def _mu(self, steps: int) -> float:
        return linear_shift(self.image_tokens, self.schedule.config, 1.16)

    def _text_encoders(self, folder: Path, variant: str | None) -> tuple[Any, ...]:
        from transformers import CLIPTextModelWithProjection

        clips = (
            TextEncoder(folder / f"tokenizer{n}", folder / f"text_encoder{n}", CLIPTextModelWithProjection,
                        self.dtype, variant)
            for n in ("", "_2")
        )  # fmt: skip
        places = folder / "tokenizer_3", folder / "text_encoder_3"
        return (*clips, T5Encoder(*places, self.text_length, self.dtype, variant))
