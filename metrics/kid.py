"""Kernel inception distance: unbiased MMD^2 with kernel (x.y / D + 1)^3 (Binkowski et al. 2018).

Lower is closer; it may dip below zero and stays so. Values are times 1000. Shapes: n and m items, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bench.contracts import Evaluation, Metric, Quantity, Score
from metrics.fingerprint import fingerprint
from metrics.jackknife import codes, spread_out, standard_error
from metrics.networks import ImageNetwork
from metrics.sets import points, reference_images

BLOCK = 2048  # rows of a Gram matrix held at once

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n, D), (m, D) -> (n, m)"""
    return (x @ y.T / x.shape[1] + 1) ** 3


@dataclass(frozen=True)
class Mmd2:
    """Unbiased MMD^2 = within x + within y - 2 across, whole and without each prompt of x and each item of y."""

    within: float
    reference: float  # within y
    across: float
    within_without: np.ndarray  # (prompts,) NaN where fewer than two items are left
    across_without: np.ndarray  # (prompts,)
    reference_without: np.ndarray  # (m,) the whole MMD^2 without each item of y; NaN below three

    @property
    def value(self) -> float:
        return self.within + self.reference - 2 * self.across

    @property
    def without(self) -> np.ndarray:
        """(prompts,)"""
        return self.within_without + self.reference - 2 * self.across_without

    @property
    def error(self) -> float:
        """The jackknife's standard error, over prompts and reference images; NaN for one prompt or two images in y."""
        return float(np.hypot(standard_error(self.without), standard_error(self.reference_without)))


def mmd2_of(x: np.ndarray, y: np.ndarray, prompts: np.ndarray, kernel: Kernel = cubic) -> Mmd2:
    """MMD^2 of features (n, D) and (m, D) in float64; `prompts` (n,) says with codes 0, 1, ... what x belongs to.

    Only sums of rows and of prompts of the kernel matrices are needed.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(f"an unbiased MMD needs at least 2 items on both sides, got {n} and {m}")
    xx, yy = _row_sums(x, x, kernel) - _diagonal(x, kernel), _row_sums(y, y, kernel) - _diagonal(y, kernel)
    xy, yx = _row_sums(x, y, kernel), _row_sums(y, x, kernel)
    rows, cross, count = (np.bincount(prompts, weights) for weights in (xx, xy, np.ones(n)))
    both = np.array([_among(x[prompts == i], kernel) for i in range(len(count))])
    left = n - count
    with np.errstate(divide="ignore", invalid="ignore"):  # one prompt, or two items
        within = (xx.sum() - 2 * rows + both) / (left * (left - 1))
        across = (xy.sum() - cross) / (left * m)
        reference = (yy.sum() - 2 * yy) / ((m - 1) * (m - 2)) - 2 * (xy.sum() - yx) / (n * (m - 1))
    whole, among, between = (float(x) for x in (xx.sum() / (n * (n - 1)), yy.sum() / (m * (m - 1)), xy.sum() / (n * m)))
    return Mmd2(whole, among, between, within, across, whole + reference)


def mmd2(x: np.ndarray, y: np.ndarray, kernel: Kernel = cubic) -> tuple[float, float]:
    """Unbiased MMD^2 of features (n, D) and (m, D), and its delete-one jackknife standard error."""
    found = mmd2_of(x, y, np.arange(len(x)), kernel)
    return found.value, found.error


def _among(x: np.ndarray, kernel: Kernel) -> float:
    """The kernel's sum over pairs of different items (n, D)."""
    return float((_row_sums(x, x, kernel) - _diagonal(x, kernel)).sum())


def _row_sums(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> np.ndarray:
    return np.concatenate([kernel(x[i : i + BLOCK], y).sum(axis=1) for i in range(0, len(x), BLOCK)])


def _diagonal(x: np.ndarray, kernel: Kernel) -> np.ndarray:
    return np.array([kernel(row[None], row[None])[0, 0] for row in x])


def added(found: Mmd2, prompts: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """What prompts add to 1000 MMD^2; nothing for one prompt."""
    if not np.isfinite(found.without).all():
        return {}
    return {name: spread_out(1000 * found.value, 1000 * found.without, prompts)}


class Kid(Metric):
    """KID x 1000 of the generated images against the dataset's reference set, with its standard error."""

    version: ClassVar[int] = 2

    higher_is_better: ClassVar = {"kid": False, "kid_se": False}
    quantities: ClassVar = {
        "kid": Quantity(
            "Kernel inception distance",
            "unbiased MMD^2 of f(y) and f(r), kernel (a.b / D + 1)^3",
            "no bounds; may be slightly negative",
            "Binkowski et al. 2018",
            "1000 x MMD^2",
            "0",
            heading="KID",
        ),
        "kid_se": Quantity(
            "Standard error of kid",
            "jackknife over the prompts of y, with all their images, and over the images of r",
            "0 and above",
            "Binkowski et al. 2018 for kid; jackknife of U-statistics, clusters as in Efron and Tibshirani 1993",
            "1000 x MMD^2",
            "an error bar, not a score",
            heading="KID error",
        ),
    }

    def __init__(self, network: ImageNetwork):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        """Impossible without a reference set or with fewer than two images."""
        reference = reference_images(evaluation, "KID")
        x, y = points(evaluation, reference, self.network)
        prompts = codes(evaluation.prompts)
        found = mmd2_of(x, y, prompts)
        return Score(
            {"kid": 1000 * found.value, "kid_se": 1000 * found.error},
            per_prompt=added(found, prompts, "kid"),
            fingerprint=fingerprint(
                f"kid {self.version}",
                len(x),
                self.network,
                reference,
                points=self.network.points,
                kernel="(x.y/D+1)^3, unbiased",
            ),
        )
