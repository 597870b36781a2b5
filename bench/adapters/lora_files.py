"""LoRA files in the formats that diffusers reads."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from bench.contracts import BenchError


def read_lora(path: Path) -> dict[str, Tensor]:
    """A LoRA file in any format that diffusers reads, under the names that `Bank.state` writes."""
    from diffusers import StableDiffusionPipeline

    if not path.is_file():
        raise BenchError(f"Loading an adapter: {path} is not a file; give the .safetensors file of a LoRA.")
    state, alphas = StableDiffusionPipeline.lora_state_dict(str(path), use_safetensors=path.suffix == ".safetensors")
    scaled = dict(state)
    for key, alpha in (alphas or {}).items():
        down = key.removesuffix(".alpha")
        scaled[f"{down}.lora_B.weight"] = state[f"{down}.lora_B.weight"] * (
            alpha / state[f"{down}.lora_A.weight"].shape[0]
        )
    return {key: value for key, value in scaled.items() if key.startswith("unet.")}
