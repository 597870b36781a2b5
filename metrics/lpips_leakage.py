"""How much of the training picture's content reappears, in LPIPS, and how much of the baseline's content is kept.

d is LPIPS, d_n the same on luminance-standardised pictures; ym a generated image, y0 the baseline's of the same prompt
and seed, c_k training content, t_k its stylised half, u_j unrelated controls. Positive means leak.

    leak(i, k) = [d_n(y0, c_k) - d_n(ym, c_k)] - mean_j [d_n(y0, u_j) - d_n(ym, u_j)]

A style moves every picture towards or away from every other one; the controls take that out. Where a style destroys
texture they do not (an ink drawing is far from every photograph), so a dataset that knows its style function S also
gives `lpips_leak_styled`: the same with t_k for c_k and S(u_j) for u_j, all in the style.
Shapes: N images, K training images, J controls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bench.contracts import Dataset, Evaluation, Metric, Score
from metrics.features import FeatureStore, feature_store, images_hash
from metrics.fingerprint import fingerprint
from metrics.networks import PerceptualNetwork
from metrics.perceptual import DistancesTo, distances
from metrics.training_images import Content, content, related

CONTROLS = 8  # at least
STYLED = ("lpips_leak", "lpips_leak_frac", "lpips_leak_rate")  # also given against stylised pictures
SMALLEST_FULL = 0.02  # LPIPS: below this a full copy is not told from noise


# --- statistics: pure functions of distances ---------------------------------------------------------------------


@dataclass(frozen=True)
class Standardised:
    """d_n of every picture to training content and to controls, in one orientation of these, float64."""

    ym_c: np.ndarray  # (N, K)
    y0_c: np.ndarray  # (N, K)
    t_c: np.ndarray  # (K,): of t_k to its own c_k
    ym_u: np.ndarray  # (N, J)
    y0_u: np.ndarray  # (N, J)
    t_u: np.ndarray  # (K, J)

    @property
    def leak(self) -> np.ndarray:
        """(N, K)"""
        return (self.y0_c - self.ym_c) - (self.y0_u - self.ym_u).mean(axis=1, keepdims=True)

    @property
    def full(self) -> np.ndarray:
        """The leak if t_k itself had been generated, (N, K)."""
        return (self.y0_c - self.t_c) - (self.y0_u.mean(axis=1, keepdims=True) - self.t_u.mean(axis=1))

    @property
    def null(self) -> np.ndarray:
        """Each control in turn plays the training image against the other ones, (N, J)."""
        moved = self.y0_u - self.ym_u
        others = (moved.sum(axis=1, keepdims=True) - moved) / (moved.shape[1] - 1)
        return moved - others


def over_training_images(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Mean over k of values (N, K) where kept (N, K), NaN for an image with none: (N,)."""
    count = kept.sum(axis=1)
    return np.where(count > 0, np.where(kept, values, 0).sum(axis=1) / count.clip(min=1), np.nan)


def mean(values: np.ndarray) -> float:
    """Mean of the defined values, NaN when there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def leak_fraction(leak: np.ndarray, full: np.ndarray) -> float:
    """Percent of a full copy, a ratio of means of per-image values (N,); NaN when that is lost in noise."""
    defined = full[~np.isnan(full)]
    error = defined.std(ddof=1) / np.sqrt(len(defined)) if len(defined) > 1 else np.inf
    if not mean(full) >= max(SMALLEST_FULL, 5 * error):
        return float("nan")
    return 100 * mean(leak) / mean(full)


def leak_rate(leak: np.ndarray, null: np.ndarray, kept: np.ndarray) -> float:
    """Share of the kept (image, training image) pairs beyond the 95th percentile of the null; 0.05 without a leak."""
    return float((leak[kept] > np.quantile(null, 0.95)).mean()) if kept.any() else float("nan")


def tail(per_image: np.ndarray) -> float:
    """99th percentile, or the maximum below 100 images; NaN when nothing is defined."""
    defined = per_image[~np.isnan(per_image)]
    if len(defined) == 0:
        return float("nan")
    return float(np.quantile(defined, 0.99) if len(defined) >= 100 else defined.max())


def leak_scores(
    straight: Standardised, mirrored: Standardised, same_class: np.ndarray
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Values and per-image values, from both orientations of training content and controls; same_class is (N, K).

    Means come from the orientation in which the whole set leaks more; rate and tail take the larger one of each pair,
    for the null as well. Prompts of the training picture's class are a stratum of their own.
    """
    kept = ~same_class
    both = [over_training_images(side.leak, kept) for side in (straight, mirrored)]
    chosen, per_image = (straight, both[0]) if not mean(both[1]) > mean(both[0]) else (mirrored, both[1])
    pairs = np.maximum(straight.leak, mirrored.leak)
    highest = np.where(kept, pairs, -np.inf).max(axis=1)
    highest[~kept.any(axis=1)] = np.nan
    values = {
        "lpips_leak": mean(per_image),
        "lpips_leak_frac": leak_fraction(per_image, over_training_images(chosen.full, kept)),
        "lpips_leak_rate": leak_rate(pairs, np.maximum(straight.null, mirrored.null), kept),
        "lpips_leak_max": tail(highest),
    }
    if same_class.any():
        values["lpips_leak_related"] = mean(over_training_images(chosen.leak, same_class))
    return values, {"lpips_leak": per_image, "lpips_leak_max": highest}


# --- distances of an evaluation ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sides:
    """Pictures that the leak is measured between: training content c_k, full copies t_k, controls u_j; all uint8."""

    c: np.ndarray  # (K, 3, P, P)
    t: np.ndarray  # (K, 3, P, P)
    u: np.ndarray  # (J, 3, P, P)


def mirror(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images[..., ::-1])


def standardised_distances(
    store: FeatureStore, network: PerceptualNetwork, evaluation: Evaluation, sides: Sides
) -> tuple[Standardised, Standardised]:
    """d_n against training content and controls as they are, and mirrored: one trunk pass per picture."""
    k, j = len(sides.c), len(sides.u)
    references = np.concatenate([sides.c, sides.u, mirror(sides.c), mirror(sides.u)])
    to_all = DistancesTo(network, "phi_standardised", references)

    def rows(images: np.ndarray) -> np.ndarray:
        return store.features(images, to_all).astype(np.float64)  # (., 2 (K + J))

    ym, y0 = rows(evaluation.images), rows(evaluation.baseline)

    def side(start: int, t: np.ndarray) -> Standardised:
        c, u = slice(start, start + k), slice(start + k, start + k + j)
        return Standardised(ym[:, c], y0[:, c], np.diagonal(t[:, c]), ym[:, u], y0[:, u], t[:, u])

    return side(0, rows(sides.t)), side(k + j, rows(mirror(sides.t)))


def other_seeds(prompts: Sequence[str]) -> tuple[list[int], list[int]]:
    """Rows of neighbouring images of the same prompt."""
    last: dict[str, int] = {}
    first, second = [], []
    for row, prompt in enumerate(prompts):
        if prompt in last:
            first.append(last[prompt])
            second.append(row)
        last[prompt] = row
    return first, second


class LpipsLeakage(Metric):
    """Content kept (`lpips_content`), the raw gap to the training picture, and the controlled leak (`lpips_leak`)."""

    higher_is_better: ClassVar = {
        "lpips_content": False,
        "lpips_content_rel": False,
        "lpips_gap_raw": True,
        "lpips_leak_raw": False,
        "lpips_leak": False,
        "lpips_leak_frac": False,
        "lpips_leak_rate": False,
        "lpips_leak_max": False,
        "lpips_leak_related": False,
        "lpips_leak_styled": False,
        "lpips_leak_styled_frac": False,
        "lpips_leak_styled_rate": False,
    }

    def __init__(self, network: PerceptualNetwork):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        """Impossible when the dataset has no training images; without eight controls the leak itself is absent."""
        store, dataset = feature_store(evaluation.cache), evaluation.dataset
        known = content(dataset)
        same_class = related(evaluation.prompts, known.nouns)
        values, per_image = self._content(store, evaluation)
        raw = self._raw(store, evaluation, known.plain, ~same_class)
        values |= {"lpips_gap_raw": -mean(raw), "lpips_leak_raw": mean(raw)}
        per_image["lpips_leak_raw"] = raw
        if len(dataset.controls) >= CONTROLS:
            found = self._leak(store, evaluation, known, same_class)
            values |= found[0]
            per_image |= found[1]
        more = about(dataset, known.confounded, float(same_class.mean()))
        n = len(evaluation.images)
        return Score(values, per_image, fingerprint("lpips_leakage 1", n, self.network, known.plain, **more))

    def _content(self, store: FeatureStore, evaluation: Evaluation) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """How far the images moved from the baseline, alone and in units of what another seed changes."""
        y0 = evaluation.baseline
        moved = distances(store, self.network, evaluation.images, y0)
        first, second = other_seeds(evaluation.prompts)
        seeds = distances(store, self.network, y0[first], y0[second]).mean() if first else 0.0
        relative = float(moved.mean() / seeds) if seeds > 0 else float("nan")
        return {"lpips_content": float(moved.mean()), "lpips_content_rel": relative}, {"lpips_content": moved}

    def _leak(
        self, store: FeatureStore, evaluation: Evaluation, known: Content, same_class: np.ndarray
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """The leak of plain content, and of the stylised picture where the style can be laid over the controls too."""
        controls, style = np.stack(evaluation.dataset.controls), evaluation.dataset.oracle
        plain = Sides(known.plain, known.style, controls)
        values, per_image = leak_scores(*standardised_distances(store, self.network, evaluation, plain), same_class)
        if style is None:
            return values, per_image
        styled = Sides(known.style, known.style, np.stack([style(image) for image in controls]))
        more, rows = leak_scores(*standardised_distances(store, self.network, evaluation, styled), same_class)
        values |= {name.replace("leak", "leak_styled"): more[name] for name in STYLED}
        return values, per_image | {"lpips_leak_styled": rows["lpips_leak"]}

    def _raw(self, store: FeatureStore, evaluation: Evaluation, plain: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """E_k d(y0, c_k) - d(ym, c_k) per image, (N,)."""
        to_content = DistancesTo(self.network, "phi", plain)
        y0, ym = (store.features(x, to_content).astype(np.float64) for x in (evaluation.baseline, evaluation.images))
        return over_training_images(y0 - ym, kept)


def about(dataset: Dataset, confounded: bool, share_related: float) -> dict[str, Any]:
    """What else the leak depends on, and why it is absent where it is."""
    controls = dataset.controls
    found: dict[str, Any] = {"style_confounded": confounded, "related_share": share_related, "controls": len(controls)}
    if len(controls) < CONTROLS:
        reason = f"needs {CONTROLS} control images, the dataset {dataset.name} has {len(controls)}"
        return found | {"absent": {"lpips_leak": reason}}
    return found | {"controls_hash": images_hash(controls)}
