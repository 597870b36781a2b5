"""Base weights in 8 or 4 bits, through diffusers' own quantization; adapters stay in float32."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from bench.contracts import BenchError

if TYPE_CHECKING:
    import torch

LIBRARIES = {"nf4": "bitsandbytes", "int8": "torchao", "fp8": "torchao"}


def configuration(quantize: str | None, dtype: torch.dtype, device: torch.device) -> Any:
    """What diffusers takes as `quantization_config`: weights alone, products in `dtype`. None for None.

    nf4 is NormalFloat of QLoRA (Dettmers et al. 2023, arXiv 2305.14314). Raises BenchError without its library.
    """
    if quantize is None:
        return None
    if quantize not in LIBRARIES:
        raise BenchError(f"backbone.quantize={quantize} was requested; give null, {', '.join(LIBRARIES)}.")
    library = LIBRARIES[quantize]
    if importlib.util.find_spec(library) is None:
        raise BenchError(
            f"backbone.quantize={quantize} needs {library}, which is not installed; pip install {library}."
        )
    if quantize == "nf4":
        if device.type != "cuda":
            raise BenchError(f"backbone.quantize=nf4 was requested on {device.type}; it needs a GPU, give int8 or fp8.")
        from diffusers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    from diffusers import TorchAoConfig
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig() if quantize == "int8" else Float8WeightOnlyConfig())
