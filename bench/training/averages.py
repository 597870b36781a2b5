"""An exponential moving average of a cell's adapters over its updates, with the decay of diffusers' EMAModel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Average:
    """Averages (n,) of some rows of numbers, which begin at the rows themselves."""

    def __init__(self, rows: Mapping[str, Tensor], decay: float):
        self.rows, self.decay = rows, decay
        self.values = {name: row.clone() for name, row in rows.items()}

    @torch.no_grad()
    def follow(self, k: int) -> None:
        """Take in the rows after step k, counted from 0. Early averages are short: decay (1 + k) / (10 + k)."""
        decay = min(self.decay, (1 + k) / (10 + k)) if k else 0.0
        for name, row in self.rows.items():
            self.values[name].lerp_(row, 1 - decay)

    @torch.no_grad()
    def install(self) -> None:
        """Put the averages into the place of the rows."""
        for name, row in self.rows.items():
            row.copy_(self.values[name])
