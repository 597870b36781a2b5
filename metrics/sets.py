"""The two sets that distances between distributions compare: the generated images and the dataset's reference set.

Shapes: n generated and m reference images, D features, P pixels per side.
"""

from __future__ import annotations

import numpy as np

from bench.contracts import Evaluation, Images, Impossible
from metrics.features import feature_store
from metrics.networks import ImageNetwork


def reference_images(evaluation: Evaluation, name: str, least: int = 2) -> Images:
    """The dataset's reference set, uint8 (m, 3, P, P); Impossible below `least` images on a side."""
    dataset = evaluation.dataset
    if dataset.reference_set is None:
        raise Impossible(f"{name} needs a reference set, and the dataset {dataset.name} has none.")
    reference = dataset.reference_set()
    if min(len(evaluation.images), len(reference)) < least:
        raise Impossible(
            f"{name} needs at least {least} images on both sides, got {len(evaluation.images)} generated "
            f"and {len(reference)} reference images."
        )
    return reference


def points(evaluation: Evaluation, reference: Images, network: ImageNetwork) -> tuple[np.ndarray, np.ndarray]:
    """Features of both sets as the network's points, float64 (n, D) and (m, D)."""
    store = feature_store(evaluation.cache)
    x, y = (network.as_points(store.features(images, network)) for images in (evaluation.images, reference))
    return x, y
