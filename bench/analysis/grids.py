"""Differences of all rows that have the same units, in arrays: what `Rows.pair` finds of each two of them, much faster.

Influences of prompts and means of trainings are linear in the values, so those of a difference are differences of those
of the rows. Shapes: K rows, G trainings, n prompts, N values of a row.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.analysis import resampling
from bench.analysis.pairing import Lines, Rows, compact


@dataclass(frozen=True)
class Means:
    """Differences (or sums) of one row and each of K rows, as `resampling.Mean` has them; arrays (K,)."""

    value: np.ndarray
    variance: np.ndarray
    freedom: np.ndarray

    def tail(self, bound: float, up: bool) -> np.ndarray:
        """(K,) one-sided p of a true mean that is not above (`up`) or not below the bound."""
        return resampling.tail(self.value, self.variance, self.freedom, bound, up)


class Grid:
    """Rows of several trainings each, all with the same units (`alike`)."""

    def __init__(self, rows: Rows, keys: Sequence[Hashable]):
        lines = [rows.lines[key] for key in keys]
        seeds = compact(lines[0], "seed")
        prompts = compact(lines[0], "prompt" if "prompt" in rows.levels else None)
        made = [resampling.parts(one.values, seeds, prompts) for one in lines]
        self.outer = int(seeds.max()) + 1
        self.values = np.array([means.mean() for means, _, _ in made])  # (K,)
        self.prompts = np.array([influence.mean(axis=0) * influence.shape[1] for _, influence, _ in made])  # (K, n)
        self.errors = np.square([one.errors for one in lines])  # (K, N)
        own = np.array([rows.moderated(key) for key in keys])  # (K, 2)
        self.variances, self.degrees = own[:, 0], own[:, 1]

    def with_row(self, i: int, sign: int = -1) -> Means:
        """Row i minus (with sign 1 plus) each row."""
        n = self.prompts.shape[1]
        influence = self.prompts[i] + sign * self.prompts  # (K, n)
        of_prompts = np.square(influence).sum(axis=1) / (n * (n - 1)) if n > 1 else np.zeros(len(self.values))
        between = (self.variances[i] + self.variances) / self.outer
        variance = of_prompts + between + self._shared_errors(i)
        free = np.minimum(self.degrees[i], self.degrees)
        known = resampling.satterthwaite(variance, of_prompts, n, between, free)
        return Means(self.values[i] + sign * self.values, variance, known)

    def _shared_errors(self, i: int) -> np.ndarray:
        """(K,) the squared error that the values came with, its mean over those that both rows have."""
        both = self.errors[i] + self.errors
        known = np.isfinite(both)
        if not known.any():
            return np.zeros(len(both))
        return np.where(known, both, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)


def alike(rows: Rows, keys: Sequence[Hashable]) -> list[list[int]]:
    """Places of the keys whose rows have the same units, several trainings of one style and no unit twice."""
    found: dict[bytes, list[int]] = {}
    for i, key in enumerate(keys):
        if _fits(rows.lines[key], rows.levels):
            found.setdefault(rows.lines[key].keys.tobytes(), []).append(i)
    return [places for places in found.values() if len(places) > 1]


def _fits(lines: Lines, levels: Sequence[str]) -> bool:
    if not lines.trained or "seed" not in levels or not len(lines.keys):
        return False
    one_style = (lines.codes[0] == lines.codes[0, 0]).all()
    several = (lines.codes[1] != lines.codes[1, 0]).any()
    return bool(one_style and several and (np.diff(lines.keys) > 0).all())
