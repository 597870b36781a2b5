"""A cell's own adapters on disk: written whole, finite, and read back whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from bench.adapters.weight_files import check_numbers, open_weights, refused
from bench.contracts import BenchError


def save(folder: Path, files: Mapping[str, str], state: Mapping[str, Tensor]) -> None:
    """Write tensors below a folder; `files` says path -> beginning of the names that go there.

    Raises BenchError when a number is not finite: nothing is written then.
    """
    from safetensors.torch import save as packed

    from bench.files import atomic_write

    wrong = {name: "tensors with NaN or infinity" for name, value in state.items() if not value.isfinite().all()}
    if wrong:
        raise refused(folder / next(iter(files)), wrong, "lower the learning rate (method.recipe.lr)")
    for path, beginning in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        part = {key.removeprefix(beginning): value for key, value in state.items() if key.startswith(beginning)}
        atomic_write(folder / path, packed(part))


def read(folder: Path, files: Mapping[str, str]) -> dict[str, Tensor]:
    """What `save` wrote below a folder. Raises BenchError when a file is missing, cannot be read or is not finite."""
    missing = [path for path in files if not (folder / path).is_file()]
    if missing:
        raise BenchError(
            f"The trained adapter {folder / missing[0]} is missing; put it back or run the cell again with mode=force."
        )
    state: dict[str, Tensor] = {}
    for path, beginning in files.items():
        found, _ = open_weights(folder / path, "weights of an adapter")
        check_numbers(folder / path, found)
        state |= {beginning + key: value for key, value in found.items()}
    return state


def check(name: str, shapes: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> None:
    """Raises BenchError unless a state dict has exactly these names and shapes, and finite numbers."""
    found = {key: tuple(value.shape) for key, value in state.items()}
    for key in [*shapes, *found]:
        if shapes.get(key) != found.get(key):
            raise BenchError(
                f"Loading adapter {name!r}: expected {shapes.get(key, 'nothing')} for {key}, found "
                f"{found.get(key, 'nothing')}; use the rank and the layers that the file was trained with."
            )
        if not state[key].isfinite().all():
            raise BenchError(f"Loading adapter {name!r}: {key} holds NaN or infinity; train it again.")
