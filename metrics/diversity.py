"""How different the images are from each other: the mean LPIPS over all pairs.

LPIPS is a squared distance, d(a, b) = |phi(a) - phi(b)|^2, so its mean over the pairs of N images needs no pairs,

    mean over i < j of d(i, j) = 2 / (N - 1) * (sum_i |phi_i|^2 - |sum_i phi_i|^2 / N),

one trunk pass per image and two running sums. Shapes: N images, F floats of one layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bench.contracts import Evaluation, Impossible, Metric, Score
from bench.images import Images, image_keys, in_batches
from metrics.features import FeatureStore, feature_store, joined
from metrics.fingerprint import fingerprint
from metrics.networks import PerceptualNetwork
from metrics.perceptual import embed

if TYPE_CHECKING:
    from torch import Tensor


def mean_distance(store: FeatureStore, network: PerceptualNetwork, images: Images) -> float:
    """Mean LPIPS over all pairs of uint8 (N, 3, P, P), N at least 2; the one number is kept."""

    def compute(_: list[int]) -> np.ndarray:
        squares, sums = 0.0, []  # of |phi|^2, and of phi, (F,) per layer
        for batch in in_batches(images, range(len(images))):
            for layers in embed(network, "phi", batch):
                squares += sum(float(layer.double().square().sum()) for layer in layers)
                sums = _added(sums, layers)
        total = sum(float(layer.square().sum()) for layer in sums)
        n = len(images)
        return np.array([[2 / (n - 1) * (squares - total / n)]])

    keys = [joined(image_keys(images))]
    return float(store.lookup(keys, f"{network.id} mean distance of all pairs", compute)[0, 0])


def _added(sums: list[Tensor], layers: list[Tensor]) -> list[Tensor]:
    found = [layer.double().sum(0) for layer in layers]
    return [a + b for a, b in zip(sums, found, strict=True)] if sums else found


class Diversity(Metric):
    """`lpips_diversity`, and `lpips_diversity_rel`, its ratio to the untouched backbone's: below 1 is less varied.

    The backbone's prompts and seeds are the same, so the ratio is what customization took away.
    """

    higher_is_better: ClassVar = {"lpips_diversity": True, "lpips_diversity_rel": True}

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
        y, y0 = (mean_distance(store, self.network, x) for x in (evaluation.images, evaluation.baseline))
        return Score(
            {"lpips_diversity": y, "lpips_diversity_rel": y / y0 if y0 > 0 else float("nan")},
            fingerprint=fingerprint("diversity 1", n, self.network),
        )
