"""Kernel inception distance: unbiased MMD^2 with kernel (x.y / D + 1)^3 (Binkowski et al. 2018).

Lower is closer; it may dip below zero and stays so. Values are times 1000. Shapes: n and m items, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from bench.contracts import Evaluation, Metric, Quantity, Score
from metrics.fingerprint import fingerprint
from metrics.networks import ImageNetwork
from metrics.sets import points, reference_images

BLOCK = 2048  # rows of a Gram matrix held at once

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n, D), (m, D) -> (n, m)"""
    return (x @ y.T / x.shape[1] + 1) ** 3


def mmd2(x: np.ndarray, y: np.ndarray, kernel: Kernel = cubic) -> tuple[float, float]:
    """Unbiased MMD^2 of features (n, D) and (m, D), and its delete-one jackknife standard error, in float64.

    Only row sums of the kernel matrices are needed; the standard error is NaN below three items on a side.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(f"an unbiased MMD needs at least 2 items on both sides, got {n} and {m}")
    xx, yy = _row_sums(x, x, kernel) - _diagonal(x, kernel), _row_sums(y, y, kernel) - _diagonal(y, kernel)
    xy, yx = _row_sums(x, y, kernel), _row_sums(y, x, kernel)
    value = xx.sum() / (n * (n - 1)) + yy.sum() / (m * (m - 1)) - 2 * xy.sum() / (n * m)
    if min(n, m) < 3:
        return float(value), float("nan")
    return float(value), float(np.sqrt(_jackknife_variance(xx, xy, m) + _jackknife_variance(yy, yx, n)))


def _jackknife_variance(within: np.ndarray, across: np.ndarray, others: int) -> float:
    """Share of one side, from its n row sums without the diagonal and its n row sums against the other side."""
    n = len(within)
    left = (within.sum() - 2 * within) / ((n - 1) * (n - 2)) - 2 * (across.sum() - across) / ((n - 1) * others)
    return float((n - 1) / n * np.square(left - left.mean()).sum())


def _row_sums(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> np.ndarray:
    return np.concatenate([kernel(x[i : i + BLOCK], y).sum(axis=1) for i in range(0, len(x), BLOCK)])


def _diagonal(x: np.ndarray, kernel: Kernel) -> np.ndarray:
    return np.array([kernel(row[None], row[None])[0, 0] for row in x])


class Kid(Metric):
    """KID x 1000 of the generated images against the dataset's reference set, with its standard error."""

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
            "delete-one jackknife over the images of both sets",
            "0 and above",
            "Binkowski et al. 2018 for kid; jackknife of U-statistics",
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
        value, error = mmd2(x, y)
        return Score(
            {"kid": 1000 * value, "kid_se": 1000 * error},
            fingerprint=fingerprint(
                f"kid {self.version}",
                len(x),
                self.network,
                reference,
                points=self.network.points,
                kernel="(x.y/D+1)^3, unbiased",
            ),
        )
