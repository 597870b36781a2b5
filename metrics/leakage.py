"""Leakage as a difference of differences, for any distance: pure functions of distances.

ym is a generated image, y0 the baseline's of the same prompt and seed, c_k training content, t_k its stylised half,
u_j unrelated controls, d a distance. Positive means leak: the image moved nearer to the training content than to the
controls.

    leak(i, k) = [d(y0, c_k) - d(ym, c_k)] - mean_j [d(y0, u_j) - d(ym, u_j)]

A style moves every picture towards or away from every other one; the controls take that out.
Shapes: N images, K training images, J controls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.contracts import Dataset, Impossible

CONTROLS = 8  # at least
SMALLEST_FULL = 0.02  # LPIPS: below this a full copy is not told from noise
WHY_UNDEFINED = {
    "_frac": f"a full copy of the training picture would leak less than {SMALLEST_FULL:g} or than five standard "
    "errors of itself, so a fraction of it is noise",
    "_rel": "no prompt has images of two seeds",
    "": "every prompt names the class of the training picture",
}


@dataclass(frozen=True)
class Sides:
    """Pictures that the leak is measured between, uint8: training content c, full copies t, controls u."""

    c: np.ndarray  # (K, 3, P, P)
    t: np.ndarray  # (K, 3, P, P)
    u: np.ndarray  # (J, 3, P, P)


@dataclass(frozen=True)
class Gaps:
    """Distances of every picture to training content and to controls, in one orientation of these, float64."""

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


def mirror(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images[..., ::-1])


def controls(dataset: Dataset, name: str) -> np.ndarray:
    """The dataset's controls, uint8 (J, 3, P, P); Impossible with fewer than eight."""
    if len(dataset.controls) < CONTROLS:
        raise Impossible(
            f"{name} needs {CONTROLS} control images, the dataset {dataset.name} has {len(dataset.controls)}."
        )
    return np.stack(dataset.controls)


# --- means -------------------------------------------------------------------------------------------------------


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
    straight: Gaps, mirrored: Gaps, same_class: np.ndarray, name: str
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
        name: mean(per_image),
        f"{name}_frac": leak_fraction(per_image, over_training_images(chosen.full, kept)),
        f"{name}_rate": leak_rate(pairs, np.maximum(straight.null, mirrored.null), kept),
        f"{name}_max": tail(highest),
    }
    if same_class.any():
        values[f"{name}_related"] = mean(over_training_images(chosen.leak, same_class))
    return values, {name: per_image, f"{name}_max": highest}


def defined(values: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
    """The values that are numbers, and a sentence for each that is not: undefined is absent, with the reason."""
    absent = [name for name, value in values.items() if np.isnan(value)]
    why = {name: next(text for ending, text in WHY_UNDEFINED.items() if name.endswith(ending)) for name in absent}
    kept = {name: value for name, value in values.items() if name not in why}
    return kept, [f"{name} left out: {reason}." for name, reason in why.items()]
