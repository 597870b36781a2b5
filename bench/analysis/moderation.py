"""Variances over few trainings, moderated by those of the other methods.

The source is Smyth 2004, Linear models and empirical Bayes methods, Stat. Appl. Genet. Mol. Biol. 3, article 3.
Three trainings say little about a variance: its estimate has 2 degrees of freedom. The methods of a block are assumed
to have true variances that scatter around a common one, s0^2, as an inverse chi-square with d0 degrees of freedom.
Then each estimate s^2 with d degrees of freedom becomes

    (d0 s0^2 + d s^2) / (d0 + d),   with d0 + d degrees of freedom.

d0 and s0^2 are Smyth's moments of log s^2 (section 6.2). d0 is infinite where the estimates scatter no more than chance
alone would make them, and near 0 where the methods are very unlike. We depart from Smyth in two ways, both to be safe:

- A moderated variance is never below the method's own estimate. Without this rule two methods of large variance among
  others of small variance are called different in 9 to 10 % of cases instead of 5 %; `tests/bench/analysis/
  test_error_rates.py` has the figures.
- d0 + d is at most the sum of d over all methods, as in the program limma, and below three methods nothing is shared.

Where units are styles, their main effect is the same for all methods and cancels in differences. Then the spread of
each row is that of its residuals from the mean of all rows (`centred`).
Shapes: K methods, G outer units (trainings or styles).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST = 1e-5  # of the median: estimates below it count as this, as log 0 has no value
FEWEST = 3  # methods, to learn from each other


@dataclass(frozen=True)
class Prior:
    """What the methods of a block have in common: variance s0^2 with d0 degrees of freedom, out of `pooled` in all."""

    variance: float = 0.0
    degrees: float = 0.0
    pooled: float = 0.0

    def moderate(self, variance: float, degrees: float) -> tuple[float, float]:
        """A variance and its degrees of freedom, moderated; as they are where nothing is known of other methods."""
        if self.degrees == 0 or degrees <= 0:
            return variance, degrees
        share = 1.0 if math.isinf(self.degrees) else self.degrees / (self.degrees + degrees)
        moderated = share * self.variance + (1 - share) * variance
        return max(variance, moderated), max(degrees, min(self.degrees + degrees, self.pooled))


def fit(variances: Sequence[float], degrees: Sequence[float]) -> Prior:
    """The prior of K variances with their degrees of freedom; an empty one below three methods."""
    from scipy.special import digamma, polygamma

    known = np.asarray(degrees, dtype=np.float64) > 0
    s2, d = (np.asarray(x, dtype=np.float64)[known] for x in (variances, degrees))
    if len(s2) < FEWEST or not s2.any():
        return Prior()
    s2 = np.maximum(s2, LEAST * np.median(s2[s2 > 0]))
    e = np.log(s2) - digamma(d / 2) + np.log(d / 2)
    excess = float(e.var(ddof=1) - polygamma(1, d / 2).mean())
    if excess <= 0:
        return Prior(float((d * s2).sum() / d.sum()), math.inf, float(d.sum()))
    d0 = 2 * inverse_trigamma(excess)
    return Prior(float(np.exp(e.mean() + digamma(d0 / 2) - np.log(d0 / 2))), d0, float(d.sum()))


def inverse_trigamma(y: float) -> float:
    """x with trigamma(x) = y, by Newton's method on 1 / trigamma (Smyth 2004, appendix)."""
    from scipy.special import polygamma

    x = 0.5 + 1 / y
    for _ in range(50):
        trigamma = float(polygamma(1, x))
        step = trigamma * (1 - trigamma / y) / float(polygamma(2, x))
        x += step
        if -step / x < 1e-10:
            break
    return x


def centred(means: np.ndarray) -> np.ndarray:
    """Values (K, G) less the mean of each unit, scaled so that their variances are those of independent rows."""
    k = len(means)
    return (means - means.mean(axis=0)) * math.sqrt(k / (k - 1)) if k > 1 else means
