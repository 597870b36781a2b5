"""Prompts to token states by language models: T5 of SD3 and FLUX.1, Qwen3 of FLUX.2-klein.

Shapes: B prompts, L tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.backbones.load import load_model, reading

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class T5Encoder:
    """Reads up to `length` tokens; shorter prompts are padded to it, and the padding is read as well."""

    def __init__(self, tokenizer: Path, encoder: Path, length: int, dtype: torch.dtype, variant: str | None):
        from transformers import AutoTokenizer, T5EncoderModel

        with reading(tokenizer):
            self.tokenizer = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
        self.network: Any = load_model(T5EncoderModel, encoder, dtype, variant)
        self.length = length

    def states(self, prompts: Sequence[str]) -> Tensor:
        """(B, L, D)"""
        options = {"padding": "max_length", "max_length": self.length, "truncation": True, "return_tensors": "pt"}
        tokens = self.tokenizer(list(prompts), add_special_tokens=True, **options).input_ids
        return self.network(tokens.to(self.network.device))[0]

    def truncated(self, prompt: str) -> int:
        """Tokens of the prompt that are not read."""
        return max(0, len(self.tokenizer(prompt, verbose=False).input_ids) - self.length)


class ChatEncoder:
    """A Qwen3 model that reads a prompt as a user's message; FLUX.2 takes three of its layers side by side.

    `thinking` is that setting of its chat template.
    """

    LAYERS = (9, 18, 27)

    def __init__(
        self, tokenizer: Path, encoder: Path, length: int, dtype: torch.dtype, variant: str | None, thinking: bool
    ):
        from transformers import AutoTokenizer, Qwen3ForCausalLM

        with reading(tokenizer):
            self.tokenizer = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
        self.network: Any = load_model(Qwen3ForCausalLM, encoder, dtype, variant)
        self.length, self.thinking = length, thinking

    def states(self, prompts: Sequence[str]) -> Tensor:
        """(B, L, 3 D)"""
        import torch

        made, _ = self.read(prompts)
        return torch.cat([made.hidden_states[layer] for layer in self.LAYERS], dim=-1)

    def read(self, prompts: Sequence[str]) -> tuple[Any, Tensor]:
        """The model's output with all hidden states, and the mask (B, L) of the tokens that are no padding."""
        read = self.tokenizer(
            [self._message(prompt) for prompt in prompts],
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
        ).to(self.network.device)
        made = self.network.model(
            input_ids=read.input_ids, attention_mask=read.attention_mask, output_hidden_states=True, use_cache=False
        )
        return made, read.attention_mask

    def _message(self, prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        template: Any = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": self.thinking}
        return str(self.tokenizer.apply_chat_template(messages, **template))

    def truncated(self, prompt: str) -> int:
        """Tokens of the message that are not read."""
        return max(0, len(self.tokenizer(self._message(prompt), verbose=False).input_ids) - self.length)
