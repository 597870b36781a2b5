"""Prompts to token states: a CLIP tokenizer and its text encoder.

Shapes: B prompts, L tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.backbones.load import load_model, reading

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

PROMPTS_AT_ONCE = 64


class TextEncoder:
    """Reads up to `length` tokens; of a longer prompt it reads the beginning, and the end token stays."""

    def __init__(self, tokenizer: Path, encoder: Path, kind: type[nn.Module], dtype: torch.dtype, variant: str | None):
        from transformers import CLIPTokenizer

        with reading(tokenizer):
            self.tokenizer = CLIPTokenizer.from_pretrained(tokenizer)
        self.network: Any = load_model(kind, encoder, dtype, variant)
        self.length = min(self.tokenizer.model_max_length, self.network.config.max_position_embeddings)

    def outputs(self, prompts: Sequence[str]) -> list[Any]:
        """The encoder's outputs with all hidden states, for up to 64 prompts each.

        Its own weights are frozen: gradients are recorded only while trained ones stand in their place (`FullWeights`).
        """
        chunks = [prompts[i : i + PROMPTS_AT_ONCE] for i in range(0, len(prompts), PROMPTS_AT_ONCE)]
        return [self.network(self.tokens(chunk), output_hidden_states=True) for chunk in chunks]

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """(B, L)"""
        options = {"padding": "max_length", "max_length": self.length, "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(list(prompts), **options).input_ids.to(self.network.device)

    def truncated(self, prompt: str) -> int:
        """Tokens of the prompt that are not read."""
        return max(0, len(self.tokenizer(prompt, verbose=False).input_ids) - self.length)
