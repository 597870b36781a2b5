"""Intervals of shares: of values that are all 0 or 1, events that may be rare.

A bootstrap of 12 prompts with three events covers the truth in 81 to 91 % instead of 95 %, and without an event its
interval is empty. Clopper and Pearson's exact interval takes its place, with the effective number of images
p (1 - p) / V, V the variance of the mean over prompts and trainings, cut by the squared ratio of t quantiles for the
few degrees of freedom of V (Korn & Graubard 1998, Survey Methodology 24, 193-201). Without an event, or with events
alone, V is 0 and the number of images itself counts.
"""

from __future__ import annotations

import numpy as np

from bench.analysis.resampling import ALPHA, Mean


def are_events(values: np.ndarray) -> bool:
    """Whether values (N,) are all 0 or 1."""
    return len(values) > 1 and bool(np.isin(values, (0.0, 1.0)).all())


def limits(mean: Mean, images: int) -> tuple[float, float]:
    """The 95 % interval of a share of some images; NaN where nothing is known of its error."""
    from scipy.special import betaincinv

    if mean.freedom == 0:
        return float("nan"), float("nan")
    n = _effective(mean, images)
    events = mean.value * n
    low = betaincinv(events, n - events + 1, ALPHA / 2) if events > 0 else 0.0
    high = betaincinv(events + 1, n - events, 1 - ALPHA / 2) if events < n else 1.0
    return float(low), float(high)


def _effective(mean: Mean, images: int) -> float:
    from scipy.special import stdtrit

    variance = mean.prompt_variance + mean.outer_variance
    if variance == 0 or not 0 < mean.value < 1:
        return float(images)
    few = stdtrit(images - 1, 1 - ALPHA / 2) / stdtrit(max(mean.freedom, 1.0), 1 - ALPHA / 2)
    return float(min(mean.value * (1 - mean.value) / variance, images) * min(few, 1.0) ** 2)
