"""FLUX.1-dev (Black Forest Labs 2024): distilled from guided sampling, so the guidance scale is an input."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.backbones.flow_transformer import FlowTransformer, linear_shift, packed, unpacked
from bench.backbones.language_models import T5Encoder
from bench.backbones.text_encoder import TextEncoder
from bench.contracts import Text

if TYPE_CHECKING:
    from torch import Tensor


class Flux1(FlowTransformer):
    """T5's tokens and CLIP's pooled embedding. `guidance` is embedded in sampling, `train_guidance` in training.

    It replaces classifier-free guidance: draw with sampler.cfg=1, where the unconditional prediction cancels.
    """

    pipeline_class = "FluxPipeline"
    network_name: ClassVar[str] = "FluxTransformer2DModel"
    published: ClassVar[re.Pattern[str]] = re.compile(
        r"\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)$|\.ff(_context)?\.net\.(0\.proj|2)$"
    )

    def __init__(self, path: str, resolution: int, guidance: float = 3.5, train_guidance: float = 1.0, **options: Any):
        self.guidance, self.train_guidance = guidance, train_guidance
        super().__init__(path, resolution, **options)

    def _read(self, prompts: Sequence[str]) -> Text:
        """States (B, L, D) of T5, pooled (B, D2) of CLIP, guidance (B,) as in training."""
        import torch

        clip, t5 = self.text_encoders
        pooled = torch.cat([out.pooler_output for out in clip.outputs(prompts)])
        guidance = torch.full((len(prompts),), self.train_guidance, device=self.device)
        return Text(t5.states(prompts), {"pooled": pooled, "guidance": guidance}, prompts=tuple(prompts))

    def drawing(self, text: Text) -> Text:
        text = super().drawing(text)
        guidance = text.extras["guidance"]
        return replace(text, extras={**text.extras, "guidance": guidance.new_full(guidance.shape, self.guidance)})

    def _forward(self, z: Tensor, t: Tensor, text: Text) -> Tensor:
        guidance = text.extras["guidance"] if self.network.config.guidance_embeds else None
        return flow(self.network, z, t / self.train_timesteps, text.states, text.extras["pooled"], guidance)

    def conventions(self) -> Mapping[str, str]:
        embedded = f"{self.train_guidance:g} in training, {self.guidance:g} in sampling"
        return {**super().conventions(), "embedded guidance": embedded}

    def _mu(self, steps: int) -> float:
        return linear_shift(self.image_tokens, self.schedule.config, 1.15)

    def _text_encoders(self, folder: Path, variant: str | None) -> tuple[Any, ...]:
        from transformers import CLIPTextModel

        clip = TextEncoder(folder / "tokenizer", folder / "text_encoder", CLIPTextModel, self.dtype, variant)
        places = folder / "tokenizer_2", folder / "text_encoder_2"
        return clip, T5Encoder(*places, self.text_length, self.dtype, variant)


def flow(network: Any, z: Tensor, s: Tensor, states: Tensor, pooled: Tensor, guidance: Tensor | None = None) -> Tensor:
    """What a FluxTransformer2DModel predicts (B, C, H, W) for latents at noise levels s (B,).

    states (B, L, D), pooled (B, D2), guidance (B,) or None. A token is a patch of 2 x 2 latents.
    """
    import torch

    height, width = z.shape[-2:]
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(height / 2), torch.arange(width / 2))
    tokens = network(
        hidden_states=packed(z),
        timestep=s,
        guidance=guidance,
        pooled_projections=pooled,
        encoder_hidden_states=states,
        txt_ids=torch.zeros(states.shape[1], 3).to(z),
        img_ids=places.to(z),
        return_dict=False,
    )[0]
    return unpacked(tokens, height, width)
