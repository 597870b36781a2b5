"""Frechet distance |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2) between feature sets (Heusel et al. 2017).

Lower is closer. At small N the value is almost all bias, so a null of the same kind of split is always given with it.
Shapes: n and m items, D features.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from bench.contracts import Evaluation, Impossible, Metric, Score
from metrics.features import feature_store
from metrics.fingerprint import fingerprint
from metrics.networks import ImageNetwork

PUBLISHABLE = 2048  # images on both sides
NULL_SEED = 20170626


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
    """Frechet distance of two disjoint random parts of the reference set, and their size min(n, M // 2)."""
    size = min(n, len(reference) // 2)
    if size < 2:
        return float("nan"), size
    order = np.random.default_rng(NULL_SEED).permutation(len(reference))
    return frechet_distance(reference[order[:size]], reference[order[size : 2 * size]]), size


class Fid(Metric):
    """FID of the generated images against the dataset's reference set, with the null of a split of the latter."""

    higher_is_better: ClassVar = {"fid": False, "fid_null": False}

    def __init__(self, network: ImageNetwork):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        """Impossible without a reference set or with fewer than two images."""
        reference = reference_images(evaluation, "FID")
        store = feature_store(evaluation.cache)
        x, y = (self.network.as_points(store.features(z, self.network)) for z in (evaluation.images, reference))
        null, null_n = frechet_null(y, len(x))
        publishable = min(len(x), len(y)) >= PUBLISHABLE
        return Score(
            {"fid": frechet_distance(x, y), "fid_null": null},
            fingerprint=fingerprint(
                "fid 1",
                len(x),
                self.network,
                reference,
                points=self.network.points,
                null_n=null_n,
                publishable=publishable,
            ),
        )


def reference_images(evaluation: Evaluation, name: str) -> np.ndarray:
    """The dataset's reference set, uint8 (M, 3, P, P)."""
    dataset = evaluation.dataset
    if dataset.reference_set is None:
        raise Impossible(f"{name} needs a reference set, and the dataset {dataset.name} has none.")
    reference = dataset.reference_set()
    if min(len(evaluation.images), len(reference)) < 2:
        raise Impossible(
            f"{name} needs at least 2 images on both sides, got {len(evaluation.images)} generated "
            f"and {len(reference)} reference images."
        )
    return reference
