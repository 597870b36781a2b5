"""Style similarity as a paired difference: generated images against the baseline's of the same prompt and seed.

Raw similarity to a style image is not calibrated, and rewards copying it; read it next to `lpips_leak`.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from bench.contracts import Evaluation, Metric, Score
from metrics.features import feature_store
from metrics.fingerprint import fingerprint
from metrics.networks import ImageNetwork, PerceptualNetwork, unit
from metrics.perceptual import DistancesTo
from metrics.training_images import style


class StyleGram(Metric):
    """`style_gram`: mean Gram distance to the training style images minus the baseline's; negative is closer."""

    higher_is_better: ClassVar = {"style_gram": False}

    def __init__(self, network: PerceptualNetwork):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        targets = style(evaluation.dataset)
        to_style = DistancesTo(self.network, "gram", targets)
        store = feature_store(evaluation.cache)

        def distance(images: np.ndarray) -> np.ndarray:
            return np.sqrt(store.features(images, to_style).astype(np.float64)).mean(axis=1)

        gain = distance(evaluation.images) - distance(evaluation.baseline)
        return Score(
            {"style_gram": float(gain.mean())},
            {"style_gram": gain},
            fingerprint("style_gram 1", len(gain), self.network, targets),
        )


class StyleClip(Metric):
    """`style_clip`: 100 x mean cosine to the training style images minus the baseline's; positive is closer."""

    higher_is_better: ClassVar = {"style_clip": True}

    def __init__(self, network: ImageNetwork):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        targets, store = style(evaluation.dataset), feature_store(evaluation.cache)
        y, y0, t = (unit(store.features(x, self.network)) for x in (evaluation.images, evaluation.baseline, targets))
        gain = 100 * ((y - y0) @ t.T).mean(axis=1)
        return Score(
            {"style_clip": float(gain.mean())},
            {"style_clip": gain},
            fingerprint("style_clip 1", len(gain), self.network, targets),
        )
