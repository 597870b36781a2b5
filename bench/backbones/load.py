"""One model of a diffusers folder: every weight found, upcast or downcast to the asked precision, frozen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.backbones import variant_of
from bench.contracts import BenchError

if TYPE_CHECKING:
    import torch


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """No bars for single models; what the libraries raise about a broken folder, as one sentence."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BenchError(
            f"{folder} was opened for a model in diffusers format and cannot be read ({reason}); "
            "check that the folder is complete, or stage it again."
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()


def load_model(
    kind: type[Any], folder: Path, dtype: torch.dtype, variant: str | None = None, quantization: Any = None
) -> Any:
    """A frozen model in evaluation mode, on the CPU. Raises BenchError when a weight is missing or a file broken.

    Safetensors come first; .bin files are opened by the libraries with weights_only. `quantization` is a configuration
    of diffusers, see `bench.backbones.quantization`.
    """
    options = {"dtype": dtype, "variant": variant_of(folder, variant), "output_loading_info": True}
    if quantization is not None:
        options["quantization_config"] = quantization
    if not (folder / "config.json").is_file():
        raise BenchError(f"{folder} was opened for a model in diffusers format; it has no config.json.")
    with reading(folder):
        model, report = kind.from_pretrained(folder, local_files_only=True, **options)
    missing = sorted(report["missing_keys"])
    if missing:
        raise BenchError(f"{folder} lacks {len(missing)} weights of its model, first {missing[0]}; stage it again.")
    if quantization is None and model.dtype != dtype:  # older versions of diffusers know no `dtype`
        model = model.to(dtype)
    return model.eval().requires_grad_(False)
