"""The error of a mean over a grid of outer units (trainings or styles) and prompts; `analysis.statistics` says why so.

Shapes: N values, G outer units, n prompts. Pure functions of float64 arrays; the draws are the same in every call, so a
table made twice is the same table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

DRAWS = 9999
FEW_PROMPTS = 8  # below it the bootstrap of prompts gives way to Student's t
ALPHA = 0.05
MOST_DEGREES = 1e9  # as good as infinite
ROUNDING = 1e-12  # a spread below this share of the value is noise of the arithmetic


@dataclass(frozen=True)
class Mean:
    """A mean, and what its error is made of."""

    value: float
    outer: int  # G
    between: float  # B: variance of the mean from the spread of the outer means
    counted: float  # I: the part of B that the prompts' variance holds already
    prompts: np.ndarray  # (n,) influence of each prompt on the mean, times n; sums to 0
    se: float = 0.0  # standard error that the values came with, shared by all of them
    degrees: float | None = None  # of freedom of B; None: G - 1

    @cached_property
    def errors(self) -> np.ndarray:
        """(DRAWS,) draws of the error of the mean; empty when there is one value of everything."""
        parts = []
        if len(self.prompts) > 1:
            parts.append(_prompt_errors(self.prompts))
        if self.free > 0:
            parts.append(math.sqrt(self.outer_variance) * _student(round(min(self.free, MOST_DEGREES), 1), 1))
        if self.se > 0:
            parts.append(self.se * _student(MOST_DEGREES, 2))
        return np.sum(parts, axis=0) if parts else np.empty(0)

    @property
    def free(self) -> float:
        """Degrees of freedom of B; 0 where nothing is known of other outer units."""
        return float(self.outer - 1) if self.degrees is None else self.degrees

    @property
    def outer_variance(self) -> float:
        return max(self.between - self.counted, 0.0)

    @property
    def prompt_variance(self) -> float:
        n = len(self.prompts)
        return float(np.square(self.prompts).sum() / (n * (n - 1))) if n > 1 else 0.0

    @property
    def variance(self) -> float:
        """Of the mean, with all of B. Far out in the tails, where Holm's correction looks, a B that came out small by
        chance, less an I, would find differences that are not there. So the test is stricter than the interval."""
        return self.prompt_variance + self.between + self.se**2

    @property
    def freedom(self) -> float:
        """Degrees of freedom of `variance` (Welch 1947; Satterthwaite 1946); 0 where nothing is known."""
        n = len(self.prompts)
        if n < 2 and self.free <= 0 and self.se == 0:
            return 0.0
        return float(satterthwaite(self.variance, self.prompt_variance, n, self.between, self.free))

    def limits(self) -> tuple[float, float]:
        """The 95 % interval; NaN where nothing is known."""
        return limits(self.value, self.errors)

    def p_value(self) -> float:
        """Two-sided, of a true mean of 0, by Student's t: it has no floor, so that any family can be corrected."""
        return min(1.0, 2 * min(self.tail(0.0, up=True), self.tail(0.0, up=False))) if self.freedom else math.nan

    def tail(self, bound: float, up: bool) -> float:
        """One-sided p of a true mean that is not above (`up`) or not below the bound; NaN where nothing is known."""
        return float(tail(self.value, self.variance, self.freedom, bound, up))


def satterthwaite(
    variance: np.ndarray | float,
    of_prompts: np.ndarray | float,
    prompts: int,
    between: np.ndarray | float,
    free: np.ndarray | float,
) -> np.ndarray:
    """Degrees of freedom of a variance, from those of its parts: over prompts, and over outer units with `free`."""
    parts = np.square(of_prompts) / (prompts - 1) if prompts > 1 else np.zeros(np.shape(of_prompts))
    parts = parts + np.where(np.greater(free, 0), np.square(between) / np.where(np.greater(free, 0), free, 1), 0.0)
    return np.where(parts > 0, np.square(variance) / np.where(parts > 0, parts, 1.0), MOST_DEGREES)


def tail(
    value: np.ndarray | float, variance: np.ndarray | float, freedom: np.ndarray | float, bound: float, up: bool
) -> np.ndarray:
    """One-sided p of true means that are not above (`up`) or not below the bound, by Student's t; NaN without degrees.

    Where there is no spread but that of rounding, it is 0 or 1.
    """
    from scipy.special import stdtr

    apart = np.subtract(value, bound) * (1 if up else -1)
    least = ROUNDING * np.maximum(np.abs(value), abs(bound))
    still = np.less_equal(variance, np.square(least))
    deviation = np.sqrt(np.where(still, 1.0, variance))
    found = np.where(still, np.where(apart > least, 0.0, 1.0), stdtr(freedom, -apart / deviation))
    return np.where(np.equal(freedom, 0), np.nan, found)


def limits(value: float, errors: np.ndarray) -> tuple[float, float]:
    """The 95 % interval from draws of the error; one that is NaN, undefined, counts as beyond both ends."""
    lost = float(np.isnan(errors).mean()) if len(errors) else 1.0
    if lost >= ALPHA / 2:
        return math.nan, math.nan
    tail = (ALPHA / 2 - lost) / (1 - lost)
    ordered = np.sort(errors[~np.isnan(errors)]) if lost else np.sort(errors)
    return value - _quantile(ordered, 1 - tail), value - _quantile(ordered, tail)


def _quantile(ordered: np.ndarray, share: float) -> float:
    """As numpy.quantile with method="hazen", of values that are sorted; numpy takes 20 times as long."""
    place = min(max(len(ordered) * share - 0.5, 0.0), len(ordered) - 1.0)
    i = min(int(place), len(ordered) - 2)
    return float(ordered[i] + (place - i) * (ordered[i + 1] - ordered[i]))


def mean(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, se: float = 0.0) -> Mean:
    """The mean over outer units of values (N,), with their outer unit and their prompt as codes 0, 1, ... (N,)."""
    means, influence, count = parts(values, rows, columns)
    g, n = influence.shape
    prompts = influence.mean(axis=0)  # (n,)
    between = float(means.var(ddof=1) / g) if g > 1 else 0.0
    return Mean(float(means.mean()), g, between, _counted(influence, prompts, count), prompts * n, se)


def parts(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean of each outer unit (G,), the influence of each prompt on it and how many values there are, (G, n)."""
    g, n = int(rows.max()) + 1, int(columns.max()) + 1
    cell = rows * n + columns
    count = np.bincount(cell, minlength=g * n).reshape(g, n)
    total = np.bincount(cell, weights=values, minlength=g * n).reshape(g, n)
    means = total.sum(axis=1) / count.sum(axis=1)  # (G,)
    influence = (total - count * means[:, None]) / count.sum(axis=1, keepdims=True)  # (G, n), rows sum to 0
    return means, influence, count


def _counted(influence: np.ndarray, prompts: np.ndarray, count: np.ndarray) -> float:
    """I: the interaction when all prompts are shared, all of the prompts' variance when none is; else 0, to be safe."""
    g, n = influence.shape
    if g < 2 or n < 2:
        return 0.0
    if (count > 0).all():
        return float(np.square(influence - prompts).sum() * n / ((g - 1) * (n - 1) * g))
    if ((count > 0).sum(axis=0) == 1).all():
        return float(np.square(prompts).sum() * n / (n - 1))
    return 0.0


def _prompt_errors(x: np.ndarray) -> np.ndarray:
    """Draws of the error of the mean of x (n,), which has mean 0: the studentised bootstrap, or Student's t."""
    n = len(x)
    se = math.sqrt(np.square(x).sum() / (n * (n - 1)))
    if se == 0:
        return np.zeros(DRAWS)
    if n >= FEW_PROMPTS:
        spread = _spreads(x)
        if (spread > 1e-3 * se).mean() > 0.999:  # else a few values stand out from many equal ones
            return se * (_resamples(n) @ x) / np.maximum(spread, 1e-3 * se)
    return se * _student(n - 1, 0)


def _spreads(x: np.ndarray) -> np.ndarray:
    """(DRAWS,) the standard error of the mean of x (n,) as each resample has it."""
    weights = _resamples(len(x))
    return np.sqrt(np.maximum(weights @ np.square(x) - np.square(weights @ x), 0.0) / (len(x) - 1))


# --- of a number that is no mean: it is worked out again with the weights of each resample


def prompt_weights(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of prompts (DRAWS, n), and what an error made with them is to be multiplied by (DRAWS,).

    x (n,) are the prompts' influences on the number, as in `Mean`. For a mean of them the product is what
    `Mean` takes: the studentised bootstrap, or below 8 prompts Student's t.
    """
    n = len(x)
    se = math.sqrt(np.square(x).sum() / (n * (n - 1))) if n > 1 else 0.0
    if n >= FEW_PROMPTS and se > 0:
        spread = _spreads(x)
        if (spread > 1e-3 * se).mean() > 0.999:
            return _resamples(n), se / np.maximum(spread, 1e-3 * se)
    return unit_weights(n, 1.0, 0), np.ones(DRAWS)


def unit_weights(units: int, share: float = 1.0, stream: int = 1) -> np.ndarray:
    """Weights of outer units (DRAWS, G) that sum to 1: with them the mean of any G values errs by `share` times
    Student's t with G - 1 degrees times its standard error.

    An exchangeably weighted bootstrap (Praestgaard & Wellner 1993): to draw three of three would under-cover.
    """
    return 1 / units + share * _directions(units, stream) if units > 1 else np.ones((DRAWS, units))


@lru_cache(maxsize=64)
def _directions(units: int, stream: int) -> np.ndarray:
    draw = np.random.default_rng([stream, units, 7])
    z = draw.standard_normal((DRAWS, units))
    z -= z.mean(axis=1, keepdims=True)
    return z / np.sqrt(units * draw.chisquare(units - 1, (DRAWS, 1)))


@lru_cache(maxsize=64)
def _resamples(n: int) -> np.ndarray:
    """(DRAWS, n): how often each of n was drawn, over n."""
    return np.random.default_rng(n).multinomial(n, np.full(n, 1 / n), size=DRAWS) / n


@lru_cache(maxsize=256)
def _student(degrees: float, stream: int) -> np.ndarray:
    """(DRAWS,) quantiles of Student's t in a random order of their own for each stream."""
    from scipy.special import stdtrit

    quantiles = stdtrit(degrees, (np.arange(DRAWS) + 0.5) / DRAWS)
    return np.random.default_rng([stream, int(10 * degrees)]).permutation(quantiles)


def holm(p: np.ndarray, family: int) -> np.ndarray:
    """Adjusted p values (k,) (Holm 1979) in a family whose other members are taken as 1; NaN stays NaN."""
    order = np.argsort(p)  # NaN last
    steps = p[order] * np.arange(family, family - len(p), -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
