"""ArtFID = (1 + LPIPS(y, content)) (1 + FID(y, style)) (Wright & Ommer 2022, arXiv 2207.12280, eq. 3). Lower is better.

The content of a generated image is the untouched backbone's image of the same prompt and noise; the style is the
reference set. The published numbers take FID in an Inception that was trained on paintings, and 512 x 512 pixels; here
the network is the one that the column names, so compare with published numbers only where it is theirs.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from bench.contracts import Evaluation, Metric, Quantity, Score
from metrics.features import feature_store
from metrics.fid import PUBLISHABLE, frechet_distance
from metrics.fingerprint import fingerprint
from metrics.jackknife import per_prompt
from metrics.networks import ImageNetwork, PerceptualNetwork
from metrics.perceptual import distances
from metrics.sets import points, reference_images


class ArtFid(Metric):
    """Content kept and style reached in one number: `art_fid`. FID's bias at small N is a part of it."""

    higher_is_better: ClassVar = {"art_fid": False}
    quantities: ClassVar = {
        "art_fid": Quantity(
            "ArtFID",
            "(1 + mean d(y, y0)) (1 + fid of y and r)",
            "1 and above; biased upwards at small N",
            "Wright & Ommer 2022",
            "none",
            heading="ArtFID",
        )
    }

    def __init__(self, network: ImageNetwork, perceptual: PerceptualNetwork):
        self.network, self.perceptual = network, perceptual

    def missing(self) -> str | None:
        return self.network.missing() or self.perceptual.missing()

    def score(self, evaluation: Evaluation) -> Score:
        """Impossible without a reference set or with fewer than two images."""
        reference = reference_images(evaluation, "ArtFID")
        x, y = points(evaluation, reference, self.network)
        store = feature_store(evaluation.cache)
        moved = distances(store, self.perceptual, evaluation.images, evaluation.baseline)  # (N,)

        def value(keep: np.ndarray) -> dict[str, float]:
            if keep.sum() < 2:
                return {"art_fid": np.nan}
            return {"art_fid": float((1 + moved[keep].mean()) * (1 + frechet_distance(x[keep], y)))}

        whole = value(np.ones(len(x), dtype=bool))
        more = {"content": self.perceptual.id, "publishable": min(len(x), len(y)) >= PUBLISHABLE}
        made = fingerprint(f"art_fid {self.version}", len(x), self.network, reference, **more)
        errors = per_prompt(whole, evaluation.prompts, value, len(y))
        return Score(whole, per_prompt=errors, fingerprint=made)
