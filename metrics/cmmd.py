"""CMMD (Jayasumana et al. 2024): MMD^2 of CLIP directions under a Gaussian kernel of width 10. Lower is closer.

`cmmd` is the published, biased statistic (its kernel sums include each image with itself); `cmmd_u` leaves these out
and is zero on average between equal distributions at any N, so it may dip below zero. Values are times 1000. The
paper's network is CLIP ViT-L/14 at 336 pixels. Sums are in float64: float32 loses percents to cancellation.
Shapes: n and m items, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from bench.contracts import Evaluation, Metric, Quantity, Score
from metrics.features import feature_store
from metrics.fingerprint import fingerprint
from metrics.jackknife import codes, per_prompt
from metrics.kid import added, mmd2_of
from metrics.networks import ImageNetwork, unit
from metrics.sets import reference_images

SIGMA = 10.0


def gaussian(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """exp(-|x - y|^2 / (2 SIGMA^2)): (n, D), (m, D) -> (n, m)"""
    squares = np.square(x).sum(1)[:, None] + np.square(y).sum(1)[None] - 2 * x @ y.T
    return np.exp(-squares.clip(min=0) / (2 * SIGMA**2))


def biased(x: np.ndarray, y: np.ndarray) -> float:
    """mean kxx + mean kyy - 2 mean kxy, each image paired with itself, too: (n, D), (m, D)"""
    return float(gaussian(x, x).mean() + gaussian(y, y).mean() - 2 * gaussian(x, y).mean())


def _biased_of(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], dict[str, float]]:
    """1000 x the biased statistic of some of x; the kernel matrices are made once."""
    xx, xy, yy = gaussian(x, x), gaussian(x, y).mean(axis=1), gaussian(y, y).mean()
    return lambda keep: {"cmmd": 1000 * float(xx[np.ix_(keep, keep)].mean() + yy - 2 * xy[keep].mean())}


class Cmmd(Metric):
    """CMMD against the dataset's reference set: biased as published, unbiased, and the standard error of the latter."""

    version: ClassVar[int] = 2

    higher_is_better: ClassVar = {"cmmd": False, "cmmd_u": False, "cmmd_u_se": False}
    quantities: ClassVar = {
        "cmmd": Quantity(
            "CLIP maximum mean discrepancy, as published",
            "biased MMD^2 of unit f(y) and f(r), Gaussian kernel of width 10",
            "0 and above; grows as N shrinks",
            "Jayasumana et al. 2024",
            "1000 x MMD^2",
            "0",
            heading="CMMD, biased",
        ),
        "cmmd_u": Quantity(
            "CLIP maximum mean discrepancy, unbiased",
            "the same without the diagonal of the kernel sums",
            "no bounds; may be slightly negative",
            "Jayasumana et al. 2024, unbiased form",
            "1000 x MMD^2",
            "0",
            heading="CMMD",
        ),
        "cmmd_u_se": Quantity(
            "Standard error of cmmd_u",
            "jackknife over the prompts of y, with all their images, and over the images of r",
            "0 and above",
            "jackknife of U-statistics, clusters as in Efron and Tibshirani 1993",
            "1000 x MMD^2",
            "an error bar, not a score",
            heading="CMMD error",
        ),
    }

    def __init__(self, network: ImageNetwork):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        """Impossible without a reference set or with fewer than two images."""
        reference = reference_images(evaluation, "CMMD")
        store = feature_store(evaluation.cache)
        x, y = (unit(store.features(images, self.network)) for images in (evaluation.images, reference))
        prompts = codes(evaluation.prompts)
        found = mmd2_of(x, y, prompts, gaussian)
        values = {"cmmd": 1000 * biased(x, y), "cmmd_u": 1000 * found.value}
        return Score(
            {**values, "cmmd_u_se": 1000 * found.error},
            per_prompt={
                **added(found, prompts, "cmmd_u"),
                **per_prompt({"cmmd": values["cmmd"]}, evaluation.prompts, _biased_of(x, y), len(y)),
            },
            fingerprint=fingerprint(
                f"cmmd {self.version}",
                len(x),
                self.network,
                reference,
                points="unit length",
                kernel=f"Gaussian, sigma {SIGMA:g}",
            ),
        )
