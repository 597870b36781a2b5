"""Vendi score (Friedman & Dieng 2023): how many different images the set amounts to, exp of the entropy of K / N.

K holds the cosines of the features, K / N has trace one. 1 is N copies of one image, N is N unrelated ones; it depends
on N, so compare equal N only. Shapes: N images, D features.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from bench.contracts import Evaluation, Metric, Quantity, Score
from metrics.features import feature_store
from metrics.fingerprint import fingerprint
from metrics.jackknife import per_prompt
from metrics.networks import ImageNetwork, unit


def vendi(x: np.ndarray) -> float:
    """Features (N, D) -> 1..N; the eigenvalues of X X^T / N are those of X^T X / N, whichever is smaller."""
    x = unit(x) / len(x) ** 0.5
    values = np.linalg.eigvalsh(x @ x.T if len(x) <= x.shape[1] else x.T @ x)
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))


class Vendi(Metric):
    """The Vendi score of the generated images, alone and as a ratio to that of the untouched backbone."""

    version: ClassVar[int] = 2
    higher_is_better: ClassVar = {"vendi": True, "vendi_rel": True}
    quantities: ClassVar = {
        "vendi": Quantity(
            "Vendi score",
            "exp of the entropy of the eigenvalues of K / N, K the cosines of f(y)",
            "1 to N",
            "Friedman and Dieng 2023",
            "effective number of images",
            heading="Vendi",
        ),
        "vendi_rel": Quantity(
            "Vendi score relative to the backbone",
            "vendi(y) / vendi(y0)",
            "above 0",
            "this project",
            "ratio",
            "1: as varied as the backbone",
            heading="Relative Vendi",
        ),
    }

    def __init__(self, network: ImageNetwork):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        store = feature_store(evaluation.cache)
        y, y0 = (store.features(x, self.network) for x in (evaluation.images, evaluation.baseline))

        def number(keep: np.ndarray) -> dict[str, float]:
            found = vendi(y[keep])
            return {"vendi": found, "vendi_rel": found / vendi(y0[keep])}

        values = number(np.ones(len(y), dtype=bool))
        return Score(
            values,
            per_prompt=per_prompt(values, evaluation.prompts, number),
            fingerprint=fingerprint(f"vendi {self.version}", len(evaluation.images), self.network, kernel="cosine"),
        )
