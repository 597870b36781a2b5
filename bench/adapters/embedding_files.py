"""Files of learned embeddings in the public formats: diffusers', A1111's, and clip_l with clip_g for SDXL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.adapters.weight_files import check_numbers, open_weights, refused
from bench.contracts import BenchError

PAIR = ("clip_l", "clip_g")  # of SDXL's first and second text encoder
A1111 = "string_to_param"


def read_embeddings(path: str, encoders: Sequence[str]) -> dict[str, Tensor]:
    """Vectors (V, D) by text encoder from a file, or from a folder with `learned_embeds.safetensors` (and `_2`).

    Raises BenchError for anything else than vectors for exactly these encoders ("text_encoder", "text_encoder_2").
    """
    place = Path(path)
    files = [place]
    if place.is_dir():
        files = [place / f"learned_embeds{encoder.removeprefix('text_encoder')}.safetensors" for encoder in encoders]
    found = [value for file in files for value in _vectors(file)]
    if len(found) != len(encoders) or any(value.dim() != 2 for value in found):
        shapes = ", ".join(str(tuple(value.shape)) for value in found)
        raise BenchError(
            f"{place} holds vectors {shapes}, and this backbone needs them for {', '.join(encoders)}; give a file of "
            "diffusers' learned_embeds, a folder with one for each text encoder, or clip_l and clip_g."
        )
    return dict(zip(encoders, found, strict=True))


def _vectors(file: Path) -> list[Tensor]:
    """The vectors of one file, the first encoder's first."""
    if not file.is_file():
        raise BenchError(f"Loading embeddings: {file} is not a file; give learned_embeds.safetensors or its folder.")
    found: dict[str, Any] = dict(open_weights(file, "learned embeddings")[0])
    if isinstance(found.get(A1111), Mapping):
        found = dict(found[A1111])
    check_numbers(file, found)
    if set(found) == set(PAIR):
        return [_wide(found[name]) for name in PAIR]
    if len(found) != 1:
        wrong = dict.fromkeys(found, "tensors where one word was expected")
        raise refused(file, wrong, "give a file of one word, as diffusers' script writes it")
    return [_wide(value) for value in found.values()]


def _wide(value: Tensor) -> Tensor:
    """(D,) or (V, D) -> (V, D) in float32."""
    return value.detach().float().reshape(-1, value.shape[-1]) if value.dim() == 1 else value.detach().float()
