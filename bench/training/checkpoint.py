"""Checkpoints: a training's adapters and what AdamW remembers of them, as one safetensors file with its checksum."""

from __future__ import annotations

import logging
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from bench.files import atomic_write
from bench.reading import Damaged, content

log = logging.getLogger(__name__)
STATE = ("theta", "exp_avg", "exp_avg_sq")  # of each adapter, in its own shape; beside them its count of steps
AVERAGE = "ema"  # of its numbers, where the training keeps one; other optimizers' names have a dot, "prodigy.s"
SUM = "crc32"


def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save

    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    atomic_write(path, save(plain, {SUM: _sum(plain)}))


def read(path: Path, rows: Mapping[str, Tensor], steps: int) -> dict[str, Tensor] | None:
    """The tensors of a checkpoint for these adapters; None where there is none. A damaged one is dropped."""
    from safetensors import SafetensorError

    try:
        tensors = _load(path)
        _check(tensors, rows, steps)
        return tensors
    except FileNotFoundError:
        return None
    except (Damaged, SafetensorError, ValueError, KeyError) as error:
        log.warning("The checkpoint %s is damaged (%s) and was dropped; training begins anew.", path, error)
        _drop(path)
        return None


def _drop(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _load(path: Path) -> dict[str, Tensor]:
    import json

    from safetensors.torch import load

    data = content(path)
    tensors = load(data)
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    known = head.get("__metadata__", {}).get(SUM)
    if known is not None and known != _sum(tensors):  # an older version wrote none
        raise Damaged("its checksum is another one")
    return tensors


def _check(tensors: Mapping[str, Tensor], rows: Mapping[str, Tensor], steps: int) -> None:
    """Raise Damaged unless these are whole tensors of these adapters, within this number of steps."""
    wanted = {f"{name}/{key}": row.shape for name, row in rows.items() for key in (*STATE, AVERAGE)}
    extra = set(tensors) - set(wanted) - {f"{name}/step" for name in rows} - {"k", "scale"}
    extra -= {key for key in extra if key.split("/")[0] in rows and "." in key}
    for name in rows:
        kept = [key for key in (*STATE[1:], "step") if f"{name}/{key}" in tensors]
        if f"{name}/theta" not in tensors or len(kept) not in (0, len(STATE)):
            raise Damaged(f"it lacks a part of {name}")
    odd = [key for key, shape in wanted.items() if key in tensors and tensors[key].shape != shape]
    if extra or odd:
        raise Damaged(f"its {min([*extra, *odd])} is not of this cell")
    if "k" not in tensors or tensors["k"].numel() != 1 or not 0 <= int(tensors["k"]) <= steps:
        raise Damaged("its step is none of this training")


def _sum(tensors: Mapping[str, Tensor]) -> str:
    found = 0
    for key in sorted(tensors):
        found = zlib.crc32(key.encode(), found)
        found = zlib.crc32(tensors[key].reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"
