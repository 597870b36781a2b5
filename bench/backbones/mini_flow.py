"""The flow-matching model of this project: FLUX.1's transformer, without guidance as an input, and one text encoder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.backbones.flow_transformer import FlowTransformer
from bench.backbones.flux1 import Flux1, flow
from bench.backbones.text_encoder import TextEncoder
from bench.contracts import Text

if TYPE_CHECKING:
    from torch import Tensor


class MiniFlow(FlowTransformer):
    """Token states and the pooled state of the same CLIP text encoder. Guidance is classifier-free."""

    pipeline_class = "FluxPipeline"
    network_name: ClassVar[str] = Flux1.network_name
    published: ClassVar[re.Pattern[str]] = Flux1.published

    def _read(self, prompts: Sequence[str]) -> Text:
        """States (B, L, D), pooled (B, D)."""
        import torch

        outs = self.text_encoders[0].outputs(prompts)
        pooled = torch.cat([out.pooler_output for out in outs])
        return Text(torch.cat([out.last_hidden_state for out in outs]), {"pooled": pooled}, prompts=tuple(prompts))

    def _forward(self, z: Tensor, t: Tensor, text: Text) -> Tensor:
        return flow(self.network, z, t / self.train_timesteps, text.states, text.extras["pooled"])

    def _mu(self, steps: int) -> float:
        return 0.0

    def _text_encoders(self, folder: Path, variant: str | None) -> tuple[Any, ...]:
        """The pipeline names it twice, and so does the folder; it is loaded once."""
        from transformers import CLIPTextModel

        encoder = TextEncoder(folder / "tokenizer", folder / "text_encoder", CLIPTextModel, self.dtype, variant)
        return encoder, encoder
