"""Files of tensors that others made: opened without running code, and checked to hold finite numbers alone."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from torch import Tensor

from bench.contracts import BenchError

DTYPES = ("float16", "bfloat16", "float32", "float64")
UNREADABLE = (
    OSError, ValueError, RuntimeError, AttributeError, EOFError, LookupError, TypeError, UnpicklingError, OverflowError,
    AssertionError, struct.error,
)  # fmt: skip


def open_weights(path: Path, what: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What a .safetensors or torch file holds, by name, and the text of a safetensors header.

    A torch file is opened with weights_only=True. `what` names the content in errors, "weights of a LoRA". Raises
    BenchError, also for tensors that are not finite.
    """
    from safetensors import SafetensorError

    try:
        found, header = _safetensors(path) if path.suffix == ".safetensors" else (_torch(path), {})
    except (*UNREADABLE, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BenchError(f"{path} cannot be read as {what} ({reason}); stage it again.") from error
    return found, header


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _torch(path: Path) -> dict[str, Any]:
    import torch

    found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"it holds a {type(found).__name__}, not tensors by name")
    return dict(found)


def check_numbers(path: Path, found: Mapping[str, Any]) -> None:
    """Raises BenchError unless all values are floating-point tensors without NaN and infinity."""
    wrong = {name: reason for name, value in found.items() if (reason := _fault(value))}
    if wrong:
        raise refused(path, wrong, "stage the file again or train it anew")
    if not found:
        raise BenchError(f"{path} holds no tensors; stage it again.")


def _fault(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"values that are no tensors ({type(value).__name__})"
    kind = str(value.dtype).removeprefix("torch.")
    if kind not in DTYPES:
        return f"tensors of type {kind}"
    return "" if bool(value.isfinite().all()) else "tensors with NaN or infinity"


def refused(path: Path, wrong: Mapping[str, str], advice: str) -> BenchError:
    """One sentence for tensors (name -> what is wrong with it): each kind with its number and its first name."""
    kinds: dict[str, list[str]] = {}
    for name, reason in wrong.items():
        kinds.setdefault(reason, []).append(name)
    listed = ", ".join(f"{len(names)} {reason}, first {names[0]}" for reason, names in kinds.items())
    return BenchError(f"{path} is not used, since {len(wrong)} of its tensors have no place here: {listed}; {advice}.")


def number(value: Any, of: str, path: Path) -> float:
    """A finite number of a file's settings. Raises BenchError."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if isinstance(value, bool) or not math.isfinite(found):
        raise BenchError(f"{path} says {of}={value!r}, which is no finite number; save the adapter again.")
    return found


def parsed(text: str, path: Path) -> dict[str, Any]:
    """A JSON object of settings. Raises BenchError."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BenchError(
            f"The settings of the adapter {path} are not JSON ({error}); save the adapter again."
        ) from None
    if not isinstance(found, dict):
        raise BenchError(f"The settings of the adapter {path} are no JSON object; save the adapter again.")
    return found


def first(names: Iterable[str], most: int = 3) -> str:
    """Some names for a sentence."""
    listed = list(names)
    return ", ".join(listed[:most]) + f" and {len(listed) - most} more" * (len(listed) > most)
