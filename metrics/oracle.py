"""Distance to the stylised truth: the style function applied to the baseline image of the same prompt and seed.

With y a generated image, y0 the baseline's and S the style, distances are d(y, S(y0)), and the closed fraction is
1 - E d(y, S(y0)) / E d(y0, S(y0)): 0 for the untouched backbone, 1 for the truth (Pair Customization measures the
distance to the stylised ground truth of the same seed in the same way).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from bench.contracts import Evaluation, Images, Impossible, Metric, Quantity, Score
from metrics.clip_score import cosine
from metrics.features import feature_store
from metrics.fingerprint import fingerprint
from metrics.jackknife import per_prompt
from metrics.networks import ImageNetwork, PerceptualNetwork
from metrics.perceptual import distances


def truth(evaluation: Evaluation) -> np.ndarray:
    """S(y0), uint8 (N, 3, P, P); Impossible when the dataset knows no style function."""
    style = evaluation.dataset.oracle
    if style is None:
        raise Impossible(f"The distance to the stylised truth needs an oracle, {evaluation.dataset.name} has none.")
    return np.stack([style(image) for image in evaluation.baseline])


def rms(a: Images, b: np.ndarray) -> np.ndarray:
    """Root mean square difference per image in units of 0..1, uint8 (N, 3, P, P) -> (N,)."""
    return np.sqrt(np.square((np.asarray(a, dtype=np.float64) - b) / 255).mean(axis=(1, 2, 3)))


def closed(distance: np.ndarray, start: np.ndarray) -> float:
    """1 - ratio of means; NaN when the baseline already is the truth."""
    return float(1 - distance.mean() / start.mean()) if start.mean() > 0 else float("nan")


def truth_quantities(kind: str, distance: str, unit: str) -> dict[str, Quantity]:
    """A distance to the ground-truth style and the gap closed, as docs/metrics.md describes them."""
    source = "this project; the comparison with S(y0) is that of Jones et al. 2024"
    share = "no bounds; 0 is the backbone, 1 is the ground truth, negative is farther away than the backbone"
    return {
        f"oracle_{kind}": Quantity(
            f"Distance to the ground-truth style, {distance}",
            "mean D(y, S(y0))",
            "0 and above",
            source,
            unit,
            "0",
            f"Truth distance, {distance}",
        ),
        f"gap_closed_{kind}": Quantity(
            f"Gap closed, {distance}",
            "1 - mean D(y, S(y0)) / mean D(y0, S(y0))",
            share,
            source,
            "fraction",
            "1",
            f"Gap closed, {distance}",
        ),
    }


class Oracle(Metric):
    """Distance to the ground-truth style in RGB and in a perceptual distance, and the share of the gap closed."""

    version: ClassVar[int] = 2
    higher_is_better: ClassVar = {
        "oracle_rgb": False,
        "oracle_lpips": False,
        "gap_closed_rgb": True,
        "gap_closed_lpips": True,
    }
    quantities: ClassVar = truth_quantities("rgb", "RGB", "root mean square, colours 0 to 1") | truth_quantities(
        "lpips", "LPIPS", "LPIPS"
    )

    def __init__(self, network: PerceptualNetwork):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        """Impossible when the dataset has no oracle."""
        target, store = truth(evaluation), feature_store(evaluation.cache)
        y, y0 = evaluation.images, evaluation.baseline
        rgb = rms(y, target)
        lpips = distances(store, self.network, y, target)
        starts = rms(y0, target), distances(store, self.network, y0, target)

        def number(keep: np.ndarray) -> dict[str, float]:
            shares = closed(rgb[keep], starts[0][keep]), closed(lpips[keep], starts[1][keep])
            return {"gap_closed_rgb": shares[0], "gap_closed_lpips": shares[1]}

        shares = number(np.ones(len(rgb), dtype=bool))
        return Score(
            {"oracle_rgb": float(rgb.mean()), "oracle_lpips": float(lpips.mean()), **shares},
            {"oracle_rgb": rgb, "oracle_lpips": lpips},
            fingerprint(f"oracle {self.version}", len(y), self.network, target),
            per_prompt=per_prompt(shares, evaluation.prompts, number),
        )


class OracleClip(Metric):
    """Distance to the ground-truth style in CLIP image features (1 - cosine), and the share of the gap closed."""

    version: ClassVar[int] = 2
    higher_is_better: ClassVar = {"oracle_clip": False, "gap_closed_clip": True}
    quantities: ClassVar = truth_quantities("clip", "CLIP", "1 - cosine")

    def __init__(self, network: ImageNetwork):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        """Impossible when the dataset has no oracle."""
        target, store = truth(evaluation), feature_store(evaluation.cache)
        y, y0, s = (store.features(x, self.network) for x in (evaluation.images, evaluation.baseline, target))
        distance, start = 1 - cosine(y, s), 1 - cosine(y0, s)
        share = {"gap_closed_clip": closed(distance, start)}
        added = per_prompt(
            share, evaluation.prompts, lambda keep: {"gap_closed_clip": closed(distance[keep], start[keep])}
        )
        return Score(
            {"oracle_clip": float(distance.mean()), **share},
            {"oracle_clip": distance},
            fingerprint(f"oracle_clip {self.version}", len(y), self.network, target),
            per_prompt=added,
        )
