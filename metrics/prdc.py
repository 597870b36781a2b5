"""How much of each set lies in the other's neighbourhoods: precision, recall, density, coverage.

Precision and recall after Kynkaanniemi et al. 2019: the share of generated (reference) images within the distance of
some reference (generated) image to its third nearest neighbour. Density and coverage after Naeem et al. 2020, with the
fifth: how many reference neighbourhoods hold a generated image, and the share of reference neighbourhoods that hold
one. Higher is better; coverage is the steadiest at small N.
Shapes: x (n, D) generated, y (m, D) reference, float64.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from bench.contracts import Evaluation, Metric, Quantity, Score
from metrics.fingerprint import fingerprint
from metrics.jackknife import per_prompt
from metrics.networks import ImageNetwork
from metrics.sets import points, reference_images

PR_NEIGHBOUR, DC_NEIGHBOUR = 3, 5
PUBLISHABLE = 50  # images on both sides


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n, D), (m, D) -> (n, m), from products in float64; rounding below zero becomes zero."""
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre
    return (np.square(x).sum(1)[:, None] + np.square(y).sum(1)[None] - 2 * x @ y.T).clip(min=0)


def radii(within: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each item to its k-th nearest other one, from squared distances (n, n): (n,)."""
    others = within.copy()
    np.fill_diagonal(others, np.inf)
    return np.partition(others, k - 1, axis=1)[:, k - 1]


def precision_recall(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray, k: int = PR_NEIGHBOUR) -> tuple[float, float]:
    """From squared distances (n, n), (m, m), (n, m)."""
    precision = (xy <= radii(yy, k)[None]).any(axis=1).mean()
    recall = (xy <= radii(xx, k)[:, None]).any(axis=0).mean()
    return float(precision), float(recall)


def density_coverage(yy: np.ndarray, xy: np.ndarray, k: int = DC_NEIGHBOUR) -> tuple[float, float]:
    """From squared distances (m, m), (n, m)."""
    inside = xy < radii(yy, k)[None]
    return float(inside.sum(axis=1).mean() / k), float(inside.any(axis=0).mean())


class Prdc(Metric):
    """Precision, recall, density and coverage against the dataset's reference set."""

    version: ClassVar[int] = 2
    higher_is_better: ClassVar = {"precision": True, "recall": True, "density": True, "coverage": True}
    quantities: ClassVar = {
        "precision": Quantity(
            "Precision",
            "share of y within the third-neighbour radius of some r",
            "0 to 1",
            "Kynkaanniemi et al. 2019",
            "share",
            heading="Precision",
        ),
        "recall": Quantity(
            "Recall",
            "share of r within the third-neighbour radius of some y",
            "0 to 1",
            "Kynkaanniemi et al. 2019",
            "share",
            heading="Recall",
        ),
        "density": Quantity(
            "Density",
            "mean over y of the number of fifth-neighbour balls of r around it, / 5",
            "0 and above; about 1 for equal sets",
            "Naeem et al. 2020",
            heading="Density",
        ),
        "coverage": Quantity(
            "Coverage",
            "share of fifth-neighbour balls of r that hold some y",
            "0 to 1",
            "Naeem et al. 2020",
            "share",
            heading="Coverage",
        ),
    }

    def __init__(self, network: ImageNetwork):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        """Impossible without a reference set or where an image has no fifth neighbour."""
        reference = reference_images(evaluation, "Precision and recall", DC_NEIGHBOUR + 1)
        x, y = points(evaluation, reference, self.network)
        yy, xy = squared_distances(y, y), squared_distances(x, y)
        xx = squared_distances(x, x)

        def number(keep: np.ndarray) -> dict[str, float]:
            if keep.sum() <= PR_NEIGHBOUR:
                return dict.fromkeys(self.quantities, float("nan"))
            precision, recall = precision_recall(xx[np.ix_(keep, keep)], yy, xy[keep])
            density, coverage = density_coverage(yy, xy[keep])
            return {"precision": precision, "recall": recall, "density": density, "coverage": coverage}

        values = number(np.ones(len(x), dtype=bool))
        more = {"points": self.network.points, "neighbours": [PR_NEIGHBOUR, DC_NEIGHBOUR]}
        more["publishable"] = min(len(x), len(y)) >= PUBLISHABLE
        return Score(
            values,
            per_prompt=per_prompt(values, evaluation.prompts, number, len(y)),
            fingerprint=fingerprint(f"prdc {self.version}", len(x), self.network, reference, **more),
        )
