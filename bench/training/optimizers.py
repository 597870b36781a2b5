"""The optimizers of a training, and what a checkpoint keeps of them.

AdamW is torch's. 8-bit AdamW (Dettmers et al. 2022, arXiv 2110.02861) is that of bitsandbytes, Prodigy (Mishchenko &
Defazio 2024, arXiv 2306.06101) that of prodigyopt; both packages are optional. A row is the numbers (n,) of an adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.contracts import BenchError, Recipe
from bench.training.settings import missing

OWN_RATE = ("prodigy",)  # they estimate the step size; their learning rate is 1
GROUP = ("k", "d", "d_max", "d_numerator", "d_denom", "d_hat")  # numbers that Prodigy keeps for all rows together
SQUARES = ("exp_avg_sq", "absmax2", "state2")  # what tells that a row ever had a gradient


def made(kind: str, groups: Sequence[dict[str, Any]], recipe: Recipe) -> Any:
    """The optimizer of some rows. Raises BenchError without its package."""
    if sentence := missing(kind):
        raise BenchError(sentence)
    options: dict[str, Any] = {"lr": recipe.lr, "betas": recipe.betas, "eps": recipe.eps}
    if kind == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, weight_decay=recipe.weight_decay, **options)
    if kind == "prodigy":
        from prodigyopt import Prodigy

        return Prodigy([{**group, "weight_decay": recipe.weight_decay} for group in groups], **options)
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, fused=True, **options)


def state(kind: str, optimizer: Any, row: Tensor) -> dict[str, Tensor]:
    """What the optimizer remembers of a row, as tensors by name; numbers of other optimizers than AdamW as float64."""
    known = optimizer.state[row] if row in optimizer.state else {}
    if kind == "adamw":
        return dict(known)
    kept = {f"{kind}.{key}": value for key, value in known.items() if isinstance(value, Tensor)}
    numbers = {key: value for key, value in known.items() if not isinstance(value, Tensor)}
    numbers |= {f"group.{key}": group[key] for group in _groups(optimizer, row) for key in GROUP if key in group}
    return kept | {f"{kind}.number.{key}": torch.tensor(float(n), dtype=torch.float64) for key, n in numbers.items()}


def restored(kind: str, optimizer: Any, row: Tensor, found: Mapping[str, Tensor]) -> None:
    """Let the optimizer remember of a row what `state` gave."""
    known: dict[str, Any] = {}
    for name, value in found.items():
        key = name.removeprefix(f"{kind}.")
        if key.startswith("number.group."):
            for group in _groups(optimizer, row):
                group[key.removeprefix("number.group.")] = value.item()
        elif key.startswith("number."):
            known[key.removeprefix("number.")] = int(value)
        else:
            known[key] = value.to(row.device)
    if known:
        optimizer.state[row] = known


def _groups(optimizer: Any, row: Tensor) -> list[dict[str, Any]]:
    return [group for group in optimizer.param_groups if any(param is row for param in group["params"])]


def moved(optimizer: Any, row: Tensor) -> bool:
    """Whether a row ever had a gradient other than zero."""
    known = optimizer.state[row] if row in optimizer.state else {}
    squares = next((known[key] for key in SQUARES if key in known), None)
    return squares is not None and bool(squares.any())
