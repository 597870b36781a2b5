"""Frechet distance |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2) between feature sets (Heusel et al. 2017).

Lower is closer. At small N the value is almost all bias: below PUBLISHABLE images on a side it is not for publication,
and a null at the same N always stands beside it.
Shapes: n and m items, D features.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from bench.contracts import Evaluation, Metric, Quantity, Score
from metrics.fingerprint import fingerprint
from metrics.jackknife import per_prompt
from metrics.networks import ImageNetwork
from metrics.sets import points, reference_images

PUBLISHABLE = 2048  # images on both sides
NULL_SEED = 20170626
NULL_IMAGES = 240  # of small parts so many are drawn in all


def centred(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and rows A (n, D) with A^T A the unbiased covariance, float64."""
    x = np.asarray(x, dtype=np.float64)
    mean = x.mean(axis=0)
    return mean, (x - mean) / np.sqrt(len(x) - 1)


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Frechet distance of features (n, D) and (m, D), n and m at least 2; rounding below zero becomes zero."""
    if min(len(x), len(y)) < 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"a Frechet distance needs two sets of at least 2 equal-length rows, got {x.shape}, {y.shape}")
    (mean_x, a), (mean_y, b) = centred(x), centred(y)
    variance = np.square(a).sum() + np.square(b).sum()
    distance = float(np.square(mean_x - mean_y).sum() + variance - 2 * trace_root(a, b))
    return 0.0 if -1e-6 * variance < distance < 0 else distance


def trace_root(a: np.ndarray, b: np.ndarray) -> float:
    """tr (A^T A B^T B)^(1/2) for A (n, D), B (m, D).

    It is the nuclear norm of A B^T, which needs no D x D matrix when n or m is small; else the sum of
    sqrt(eig(R^T S2 R)) with S1 = R R^T.
    """
    if min(len(a), len(b)) <= a.shape[1]:
        c = a @ b.T if len(a) <= len(b) else b @ a.T  # (min, max)
        return root_sum(c @ c.T)
    r = _factor(a.T @ a)
    return root_sum(r.T @ (b.T @ b) @ r)


def _factor(s: np.ndarray) -> np.ndarray:
    """R with R R^T = S: Cholesky, or from the eigenvectors when S is singular."""
    try:
        return np.linalg.cholesky(s)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(s)
        return vectors * np.sqrt(values.clip(min=0))


def root_sum(matrix: np.ndarray) -> float:
    """Sum of the square roots of the eigenvalues of a symmetric positive semi-definite matrix."""
    values = np.linalg.eigvalsh(matrix)
    if values[0] < -1e-6 * max(values[-1], 1e-12):
        raise ArithmeticError(f"a covariance product has the eigenvalue {values[0]:.3g}, largest {values[-1]:.3g}")
    return float(np.sqrt(values.clip(min=0)).sum())


def frechet_null(reference: np.ndarray, n: int) -> tuple[float, int]:
    """What a set of the right distribution scores at this size, and that size: min(n, M // 2).

    A random part of the reference set (M, D) against the rest of it: so both sides are as large as in the score itself,
    but for the images set aside. The mean over several splits when the part is small.
    """
    size = min(n, len(reference) // 2)
    if size < 2:
        return float("nan"), size
    rng = np.random.default_rng(NULL_SEED)
    orders = [rng.permutation(len(reference)) for _ in range(max(1, NULL_IMAGES // size))]
    values = [frechet_distance(reference[order[:size]], reference[order[size:]]) for order in orders]
    return float(np.mean(values)), size


def frechet_quantities(id: str, name: str, source: str, heading: str) -> dict[str, Quantity]:
    """The distance and its null as docs/metrics.md describes them."""
    unit, formula = "squared feature distance", "norm(mu - mu_r)^2 + tr(C + C_r - 2 (C C_r)^(1/2))"
    again, reading = (
        "the same between two parts of the reference set, at the same N",
        f"what a perfect {id} has at this N",
    )
    return {
        id: Quantity(
            name, formula, "0 and above; biased upwards at small N", source, unit, f"the value of {id}_null", heading
        ),
        f"{id}_null": Quantity(
            f"Null of {id}", again, "0 and above", "this project", unit, f"no score: {reading}", f"{heading}, null"
        ),
    }


class Frechet(Metric):
    """A Frechet distance of the generated images to the dataset's reference set, and its null at the same size.

    A leaf gives `label` and the directions of <label> and <label>_null.
    """

    label: ClassVar[str]
    version: ClassVar[int] = 3

    def __init__(self, network: ImageNetwork):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        """Impossible without a reference set or with fewer than two images."""
        reference = reference_images(evaluation, self.label.upper())
        x, y = points(evaluation, reference, self.network)
        null, null_n = frechet_null(y, len(x))
        more = {"points": self.network.points, "null_n": null_n, "publishable": min(len(x), len(y)) >= PUBLISHABLE}
        value = frechet_distance(x, y)
        return Score(
            {self.label: value, f"{self.label}_null": null},
            per_prompt=per_prompt(
                {self.label: value},
                evaluation.prompts,
                lambda keep: {self.label: frechet_distance(x[keep], y)} if keep.sum() > 1 else {self.label: np.nan},
                len(y),
            ),
            fingerprint=fingerprint(f"{self.label} {self.version}", len(x), self.network, reference, **more),
        )


class Fid(Frechet):
    """FID with the resizing of clean-fid (Parmar et al. 2022). Only the column with Inception is FID as published."""

    label = "fid"
    higher_is_better: ClassVar = {"fid": False, "fid_null": False}
    quantities: ClassVar = frechet_quantities(
        "fid", "Frechet inception distance", "Heusel et al. 2017; resizing of Parmar et al. 2022", "FID"
    )
