"""How different the images are from each other: the mean LPIPS over all pairs.

LPIPS is a squared distance, d(a, b) = |phi(a) - phi(b)|^2, so its mean over the pairs of N images needs no pairs,

    mean over i < j of d(i, j) = 2 / (N - 1) * (sum_i |phi_i|^2 - |sum_i phi_i|^2 / N),

one trunk pass per image and two running sums. Shapes: N images, F floats of one layer.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from bench.contracts import Evaluation, Impossible, Metric, Quantity, Score
from metrics.features import feature_store
from metrics.fingerprint import fingerprint
from metrics.jackknife import codes, spread_out
from metrics.networks import PerceptualNetwork
from metrics.perceptual import mean_distances, mean_distances_without


class Diversity(Metric):
    """Mean LPIPS over all pairs of images, alone and as a ratio to that of the untouched backbone.

    Both use the same prompts and seeds, so a ratio below 1 is variety lost by customization.
    """

    version: ClassVar[int] = 2
    higher_is_better: ClassVar = {"lpips_diversity": True, "lpips_diversity_rel": True}
    quantities: ClassVar = {
        "lpips_diversity": Quantity(
            "LPIPS diversity",
            "mean d(y_i, y_j) over all pairs of images",
            "0 and above",
            "Zhang et al. 2018 for d",
            "LPIPS",
            heading="LPIPS diversity",
        ),
        "lpips_diversity_rel": Quantity(
            "LPIPS diversity relative to the backbone",
            "lpips_diversity(y) / lpips_diversity(y0)",
            "0 and above",
            "this project",
            "ratio",
            "1: as varied as the backbone",
            heading="Relative diversity",
        ),
    }

    def __init__(self, network: PerceptualNetwork):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        """Impossible with one image."""
        n = len(evaluation.images)
        if n < 2:
            raise Impossible(f"The diversity of images needs at least 2, got {n}.")
        store = feature_store(evaluation.cache)
        sets, groups = (evaluation.images, evaluation.baseline), codes(evaluation.prompts)
        y, y0 = (float(mean_distances(store, self.network, x, [range(n)])[0]) for x in sets)
        added = {}
        if n - np.bincount(groups).max() >= 2:  # images are left without any prompt
            left, left0 = (mean_distances_without(store, self.network, x, groups) for x in sets)
            added["lpips_diversity"] = spread_out(y, left, groups)
            if y0 > 0 and (left0 > 0).all():
                added["lpips_diversity_rel"] = spread_out(y / y0, left / left0, groups)
        return Score(
            {"lpips_diversity": y, "lpips_diversity_rel": y / y0 if y0 > 0 else float("nan")},
            fingerprint=fingerprint(f"diversity {self.version}", n, self.network),
            per_prompt=added,
        )
