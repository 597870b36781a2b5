"""What a design can show: power of a comparison by the noncentral t distribution.

A true mean of `gap` is significant when it passes a t quantile at level ALPHA over the family, the strictest step of
Holm's correction. The variance of the mean is C + (T + I) / G for G outer units: C is what prompts have in common in
all of them, I their interaction with trainings, T what trainings differ by. The test adds I once more
(`resampling.Mean.variance`). T + I is an estimate with few degrees of freedom; the power that is reported is its
mean over the scaled inverse chi-square distribution that the estimate leaves open (assurance, O'Hagan, Stevens &
Campbell 2005). To put the estimate itself in its place, as is often done, promises 80 % and keeps 66 to 69 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bench.analysis.resampling import ALPHA, MOST_DEGREES, Mean

POWER = 0.8
MOST_UNITS = 1000  # outer units that `more_units` looks at
POINTS = (np.arange(24) + 0.5) / 24  # quantiles of the unknown variance over which power is averaged
FINE = (np.arange(200) + 0.5) / 200  # quantiles of the chi-square of a noncentral t
RANGE = (0.1, 0.9)  # quantiles of the variance for which the range of advised units holds


@dataclass(frozen=True)
class More:
    """Further outer units for a power of 80 %: on average over what is not known, and for a small and a large variance.

    None: no number up to 1000 reaches it, prompts are too few.
    """

    advised: int | None
    low: int | None
    high: int | None


def power(mean: Mean, gap: float, family: int = 1, units: int | None = None) -> float:
    """The probability that a true mean of `gap` is found significant with a number of outer units (default: as is)."""
    scales = _scales(mean.free, POINTS)
    return float(_power(mean, gap, family, np.array([units or mean.outer]), scales).mean())


def detectable(mean: Mean, family: int = 1, least: float = POWER) -> float:
    """The smallest true gap that is found with a power of `least`; NaN where nothing is known, 0 without any spread."""
    if mean.freedom == 0:
        return math.nan
    low, high = 0.0, math.sqrt(mean.variance)
    if high == 0:
        return 0.0
    while power(mean, high, family) < least:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if power(mean, middle, family) < least else (low, middle)
    return high


def more_units(mean: Mean, gap: float, family: int = 1, least: float = POWER) -> More:
    """How many further outer units let a true mean of `gap` be found with a power of `least`."""
    small, large = (_least(mean, gap, family, least, _scales(mean.free, np.array([q]))) for q in RANGE)
    return More(_least(mean, gap, family, least, _scales(mean.free, POINTS)), small, large)


def _least(mean: Mean, gap: float, family: int, least: float, scales: np.ndarray) -> int | None:
    units = np.arange(mean.outer, MOST_UNITS + 1)
    if _power(mean, gap, family, units[-1:], scales).mean() < least:
        return None
    low, high = 0, len(units) - 1  # power grows with units
    while low < high:
        middle = (low + high) // 2
        enough = _power(mean, gap, family, units[middle : middle + 1], scales).mean() >= least
        low, high = (low, middle) if enough else (middle + 1, high)
    return int(units[low]) - mean.outer


def _scales(free: float, quantiles: np.ndarray) -> np.ndarray:
    """What the estimate of B is to be multiplied by at some quantiles of the true B."""
    from scipy.special import chdtri

    return np.ones(1) if free <= 0 or free >= MOST_DEGREES else free / chdtri(free, quantiles)


def _power(mean: Mean, gap: float, family: int, units: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """(S,) for each of the scales at one number of units (1,)."""
    from scipy.special import stdtrit

    shared = max(mean.prompt_variance - mean.counted, 0.0) + mean.se**2
    own = mean.counted * mean.outer / units
    outer = np.maximum(mean.between * scales, mean.counted) * mean.outer / units  # T + I
    tested, true = shared + own + outer, shared + outer
    if not tested.any():
        return np.full(len(scales), float(gap > 0))
    n, free = len(mean.prompts), mean.free + units - mean.outer if mean.free > 0 else np.zeros(1)
    parts = (shared + own - mean.se**2) ** 2 / max(n - 1, 1) + np.where(free > 0, outer**2 / np.maximum(free, 1e-9), 0)
    degrees = np.minimum(np.divide(tested**2, parts, out=np.full(len(scales), 1e6), where=parts > 0), 1e6)
    needed = stdtrit(degrees, 1 - ALPHA / family / 2) * np.sqrt(tested / true)
    return _noncentral_t(degrees, gap / np.sqrt(true), needed)


def _noncentral_t(degrees: np.ndarray, shift: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """The probability that a noncentral t exceeds `needed` (S,): its normal part given its chi-square part.

    scipy.special.nctdtr is not defined for large shifts. The chi-square's quantiles are those of Wilson & Hilferty.
    """
    from scipy.special import ndtr, ndtri

    part = 2 / (9 * degrees[:, None])
    root = np.maximum(1 - part + ndtri(FINE) * np.sqrt(part), 0.0) ** 1.5  # (S, quantiles) of sqrt(chi2 / degrees)
    return ndtr(shift[:, None] - needed[:, None] * root).mean(axis=1)
