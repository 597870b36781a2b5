"""Which rows may be the best: Hsu's multiple comparison with the best (Hsu 1984, Annals of Statistics 12, 1136-1144).

Row k is *separated* from the best when some other row j is better beyond chance. For each k, all rows j are compared
with it by one-sided t tests of their difference, and the smallest p value is judged by its own distribution: as in
Dunnett's many-to-one test, the differences share row k and, as all rows draw the same prompts, their prompts. Their
correlations come from the rows' influences and moderated variances; the distribution is simulated with them. The set of
rows that are not separated holds the truly best row with a confidence of 95 %.

Where a quantity has a target, the best row is the one nearest to it. |a - t| < |b - t| holds where b - a and
a + b - 2 t have the same sign, so both must be significant (an intersection-union test, Berger 1982).
Shapes: K rows, n prompts, D draws.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from bench.analysis import grids
from bench.analysis.grids import Grid, Means
from bench.analysis.pairing import Estimate, Rows
from bench.analysis.resampling import ALPHA, Mean

DRAWS = 20_000
MOST = 0.5  # of the rows that may be the best: with more nothing is printed bold


@dataclass(frozen=True)
class Best:
    """The row with the best value, the rows that cannot be separated from it, and those that can."""

    best: Hashable
    with_best: frozenset[Hashable]  # without the best itself
    separated: frozenset[Hashable]

    @property
    def bold(self) -> Hashable | None:
        """The row to print bold: the best, unless most rows cannot be separated from it."""
        rows = 1 + len(self.with_best) + len(self.separated)
        return self.best if (1 + len(self.with_best)) / rows <= MOST else None


def best(rows: Rows, keys: Sequence[Hashable], up: bool, target: float | None = None) -> Best | None:
    """The comparison with the best among some rows of a block; None below two rows with known errors."""
    known = {key: made for key in keys if _known(made := rows.row(key))}
    if len(known) < 2:
        return None
    names = list(known)
    tails = _tails(rows, names, up, target)  # (K, K): p that column is not better than row
    apart = [_side(known[key], up, target) for key in names]
    covariance = _covariance([known[key] for key in names], apart)
    values = [abs(known[k].mean.value - target) if target is not None else known[k].mean.value for k in names]
    first = names[int(np.argmax(values) if up and target is None else np.argmin(values))]
    behind = {key for i, key in enumerate(names) if _separated(tails[i], covariance, i)} - {first}
    return Best(first, frozenset(names) - behind - {first}, frozenset(behind))


def nearness(minus: Mean | Means, plus: Mean | Means, target: float) -> tuple[Any, Any]:
    """One-sided p of a being no nearer to the target than b, and of b being no nearer than a, from a - b and a + b.

    Floats, or arrays (K,) of the differences of K rows.
    """
    above, below = (plus.tail(2 * target, up=up) for up in (True, False))
    higher, lower = (minus.tail(0.0, up=up) for up in (True, False))
    near = np.minimum(np.maximum(lower, above), np.maximum(higher, below))
    return near, np.minimum(np.maximum(higher, above), np.maximum(lower, below))


def _known(made: Estimate) -> bool:
    return made.general and made.mean.freedom > 0


def _tails(rows: Rows, names: Sequence[Hashable], up: bool, target: float | None) -> np.ndarray:
    """(K, K) p that the row of the column is not better than that of the line; 1 where nothing is known."""
    found = np.full((len(names), len(names)), np.nan)
    for places in grids.alike(rows, names):
        grid = Grid(rows, [names[i] for i in places])
        for i, place in enumerate(places):
            minus, plus = grid.with_row(i), None if target is None else grid.with_row(i, sign=1)
            found[place, places] = _behind(minus, plus, up, target)[0]
    for i, j in zip(*np.nonzero(np.isnan(found)), strict=True):
        if i > j:
            found[i, j], found[j, i] = _of_pair(rows, names[i], names[j], up, target)
    np.fill_diagonal(found, 1.0)
    return found


def _of_pair(rows: Rows, a: Hashable, b: Hashable, up: bool, target: float | None) -> tuple[float, float]:
    made = rows.pair(a, b)
    if not made.general:
        return 1.0, 1.0
    return _behind(made.mean, None if target is None else rows.pair(a, b, sign=1).mean, up, target)


def _behind(minus: Mean | Means, plus: Mean | Means | None, up: bool, target: float | None) -> tuple[Any, Any]:
    """p that b is not better than a, and that a is not better than b, from a - b and a + b."""
    if plus is None or target is None:
        return minus.tail(0.0, up=not up), minus.tail(0.0, up=up)
    near, far = nearness(minus, plus, target)
    return far, near


def _side(made: Estimate, up: bool, target: float | None) -> float:
    """The sign with which a row's value counts."""
    return (1.0 if up else -1.0) if target is None else -math.copysign(1.0, made.mean.value - target)


def _covariance(rows: Sequence[Estimate], signs: Sequence[float]) -> np.ndarray:
    """(K, K) of the rows' means: their prompts in common where they have as many, their trainings apart."""
    n = max(len(row.mean.prompts) for row in rows)
    shared = np.array([row.mean.prompts if len(row.mean.prompts) == n else np.zeros(n) for row in rows])
    made = (shared * np.array(signs)[:, None]) @ (shared * np.array(signs)[:, None]).T / max(n * (n - 1), 1)
    own = [row.mean.variance - (row.mean.prompt_variance if len(row.mean.prompts) == n else 0.0) for row in rows]
    return made + np.diag(np.maximum(own, 0.0))


def _separated(tails: np.ndarray, covariance: np.ndarray, i: int) -> bool:
    """Whether some other row is better beyond chance; the joint distribution is needed between Bonferroni's bounds."""
    least = np.delete(tails, i).min()
    if least >= ALPHA or least * (len(tails) - 1) < ALPHA:
        return bool(least < ALPHA)
    return _joint(tails, covariance, i) < ALPHA


def _joint(tails: np.ndarray, covariance: np.ndarray, i: int) -> float:
    """The probability that the smallest of K - 1 p values is as small as the smallest seen."""
    from scipy.special import ndtri

    others = [j for j in range(len(tails)) if j != i]
    with_i = covariance[others, i]
    apart = covariance[i, i] + covariance[np.ix_(others, others)] - with_i - with_i[:, None]
    deviation = np.sqrt(np.diag(apart).clip(min=0))
    free = deviation > 0
    if not free.any():
        return float(tails[others].min())
    correlation = apart[np.ix_(free, free)] / np.outer(deviation[free], deviation[free])
    largest = (_root(correlation).T @ _draws(int(free.sum()))).max(axis=0)
    return float(min(1.0, (largest >= -ndtri(tails[others].min())).mean()))


def _root(matrix: np.ndarray) -> np.ndarray:
    """R with R^T R the matrix (K, K), positive semi-definite."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))).T


@lru_cache(maxsize=8)
def _draws(count: int) -> np.ndarray:
    """(count, DRAWS), so that the largest of each draw is found fast."""
    return np.ascontiguousarray(np.random.default_rng(count).standard_normal((DRAWS, count)).T)
