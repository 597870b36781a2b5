"""Files of image adapters in IP-Adapter's public format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.adapters.weight_files import check_numbers, open_weights, refused
from bench.contracts import BenchError

GROUPS = ("image_proj.", "ip_adapter.")


def read_image_adapter(path: Path) -> dict[str, Tensor]:
    """Weights `image_proj.*` and `ip_adapter.*` of a public file: .safetensors, or .bin, opened with weights_only.

    Every tensor of the file is returned. Raises BenchError for anything else in it.
    """
    found, _ = open_weights(path, "weights of an image adapter")
    state: dict[str, Any] = {}
    for key, value in found.items():  # a .bin file has one mapping for each group
        state |= {f"{key}.{inner}": x for inner, x in value.items()} if isinstance(value, Mapping) else {key: value}
    known = {group: any(key.startswith(group) for key in state) for group in GROUPS}
    if not all(known.values()):
        raise BenchError(f"{path} is no image adapter: it lacks image_proj or ip_adapter; give another method.file.")
    check_numbers(path, state)
    strange = {key: "weights of no image adapter" for key in state if not key.startswith(GROUPS)}
    if strange:
        raise refused(path, strange, "give a file of the base or the plus kind (method.file)")
    return state
