"""Two methods compared where they are equally close to the style: (closeness, metric) sweeps, not single points.

Method A has a sweep over its strengths s, points (x_s, y_s): x its closeness (such as `gap_closed_lpips`), y the
metric, both means over training seeds and prompts. Method B has one point (x, y). The number is

    theta = y_A(x_B) - y_B,

y_A linear between neighbouring strengths; where the sweep passes x_B more than once, the first time from the weakest
strength. Beyond the ends of the sweep there is no answer: nothing is extrapolated.

theta is no mean, so each resample of prompts and training seeds works out both sweeps and the interpolation anew
(`resampling`); one in which B leaves the sweep counts as beyond both ends of the interval. p, effect size, the part
of the trainings' variance that prompts have counted and "how many more seeds" come from the delta method: near the
answer theta moves as the mean of (y_A - y_B) - slope (x_A - x_B).
Shapes: G training seeds, n prompts, S strengths, D resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.analysis import resampling
from bench.analysis.resampling import Mean
from bench.contracts import Impossible

Theta = Callable[[np.ndarray, np.ndarray], np.ndarray]  # weights of prompts (D, n) and outer units (D, G) -> (D,)


@dataclass(frozen=True)
class StrengthSweep:
    """A method's points by training seed, prompt and strength; NaN for prompts of which a number is undefined."""

    x: np.ndarray  # (G, n, S)
    y: np.ndarray  # (G, n, S)


@dataclass(frozen=True)
class Pair:
    """A's sweep and B's point, x and y (G, n, 1), of the same training seeds and prompts."""

    a: StrengthSweep
    b: StrengthSweep

    @property
    def level(self) -> float:
        """B's closeness."""
        return float(average(self.b.x, *_even(self.b.x))[0, 0])

    def theta(self, prompts: np.ndarray, units: np.ndarray) -> np.ndarray:
        """y_A(x_B) - y_B under weights of prompts (D, n) and training seeds (D, G): (D,), NaN where there is none."""
        x, y, level, own = (average(v, prompts, units) for v in (self.a.x, self.a.y, self.b.x, self.b.y))
        return interpolate(x, y, level[:, 0]) - own[:, 0]

    def linear(self, sign: int = -1) -> np.ndarray:
        """Values (G, n) with mean theta (sign 1: y_A(x_B) + y_B), which moves as theta does, to first order."""
        even = _even(self.a.x)
        x, y = average(self.a.x, *even), average(self.a.y, *even)
        place, part = crossing(x, np.array([self.level]))
        j, t = int(place[0]), float(part[0])
        rise, run = y[0, j + 1] - y[0, j], x[0, j + 1] - x[0, j]

        def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return (1 - t) * a[..., j] + t * a[..., j + 1] + sign * b[..., 0]  # (G, n)

        x_moved = _centred((1 - t) * self.a.x[..., j] + t * self.a.x[..., j + 1] - self.b.x[..., 0])
        moved = _centred(apart(self.a.y, self.b.y)) - (rise / run if run else 0.0) * x_moved
        return moved + self.theta(*even)[0] + (1 + sign) * average(self.b.y, *_even(self.b.y))[0, 0]

    def refuse(self) -> None:
        """Raises Impossible, with the reason, where there is no answer."""
        x = average(self.a.x, *_even(self.a.x))[0]
        if len(x) < 2:
            raise Impossible("A has one strength and no sweep; draw more of them with strength=sweep")
        if math.isnan(self.theta(*_even(self.a.x))[0]):
            ends = f"{x.min():.3g} to {x.max():.3g}"
            raise Impossible(f"B's closeness {self.level:.3g} is not on A's sweep, {ends}: nothing is extrapolated")


@dataclass(frozen=True)
class Matched:
    """theta with its 95 % interval, NaN where more than 2.5 % of the resamples have no answer."""

    level: float  # B's closeness
    difference: float
    low: float
    high: float
    p: float
    linear: Mean
    effect: float
    plus: Mean  # of y_A(x_B) + y_B, in the same way


def of_pair(pair: Pair) -> Matched:
    """The comparison on one dataset. Raises Impossible with the reason where there is no answer."""
    pair.refuse()
    return _matched(pair.theta, pair.linear(), pair.linear(sign=1), pair.level)


def of_datasets(pairs: Sequence[Pair]) -> Matched:
    """The mean over datasets, which take the place of training seeds; all have the same prompts, in the same order."""
    for pair in pairs:
        pair.refuse()

    def theta(prompts: np.ndarray, units: np.ndarray) -> np.ndarray:
        each = [pair.theta(prompts, np.full((len(prompts), len(pair.a.x)), 1 / len(pair.a.x))) for pair in pairs]
        return (units * np.stack(each, axis=1)).sum(axis=1)

    linear, plus = (np.stack([pair.linear(sign).mean(axis=0) for pair in pairs]) for sign in (-1, 1))
    return _matched(theta, linear, plus, float(np.mean([pair.level for pair in pairs])))


def _matched(theta: Theta, linear: np.ndarray, plus: np.ndarray, level: float) -> Matched:
    rows, columns = (codes.ravel() for codes in np.indices(linear.shape))
    made, of_sum = (resampling.mean(values.ravel(), rows, columns) for values in (linear, plus))
    draws = errors(theta, made, made.outer_variance)
    low, high = resampling.limits(made.value, draws)
    lost = float(np.isnan(draws).mean()) if len(draws) else 0.0
    p = float(np.maximum(made.p_value(), min(1.0, 2 * lost)))  # NaN stays NaN; what is lost counts on both sides
    spread = float(linear.std(ddof=1)) if linear.size > 1 else 0.0
    return Matched(level, made.value, low, high, p, made, made.value / spread if spread > 0 else math.nan, of_sum)


def errors(theta: Theta, made: Mean, outer_variance: float) -> np.ndarray:
    """(D,) draws of theta's error, each with weights of its own for prompts and outer units; empty with one of both."""
    n, g = len(made.prompts), made.outer
    if n < 2 and g < 2:
        return np.empty(0)
    share = math.sqrt(outer_variance / made.between) if made.between > 0 else 0.0
    prompts, scale = resampling.prompt_weights(made.prompts)
    still = np.full((len(prompts), g), 1 / g)
    moved = theta(prompts, still)
    return scale * (moved - made.value) + theta(prompts, resampling.unit_weights(g, share)) - moved


def average(values: np.ndarray, prompts: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Means of (G, n, S) under weights (D, n) and (D, G): (D, S), over the prompts that have a value everywhere."""
    known = np.isfinite(values).all(axis=(0, 2))
    g, _, s = values.shape
    weights = prompts[:, known]
    sums = weights @ values[:, known].transpose(1, 0, 2).reshape(-1, g * s)
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample that has none of them
        means = (sums / weights.sum(axis=1, keepdims=True)).reshape(-1, g, s)
    return (units[:, :, None] * means).sum(axis=1)


def crossing(x: np.ndarray, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first segment of each sweep (D, S) that holds its level (D,), and how far along it: NaN where none does."""
    start, end = x[:, :-1], x[:, 1:]
    target = level[:, None]
    inside = (np.minimum(start, end) <= target) & (target <= np.maximum(start, end))
    place = inside.argmax(axis=1)
    rows = np.arange(len(x))
    run = end[rows, place] - start[rows, place]
    part = np.divide(level - start[rows, place], run, out=np.zeros_like(run), where=run != 0)
    return place, np.where(inside.any(axis=1), part, np.nan)


def interpolate(x: np.ndarray, y: np.ndarray, level: np.ndarray) -> np.ndarray:
    """y at the level of x on each sweep (D, S): (D,), NaN beyond its ends."""
    if x.shape[1] < 2:
        return np.full(len(x), np.nan)
    place, part = crossing(x, level)
    rows = np.arange(len(x))
    return (1 - part) * y[rows, place] + part * y[rows, place + 1]


def _even(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    g, n = values.shape[:2]
    return np.full((1, n), 1 / n), np.full((1, g), 1 / g)


def _centred(values: np.ndarray) -> np.ndarray:
    """Influences (G, n) of a mean over the prompts that have a value, those of the others 0, times n; they sum to 0."""
    known = np.isfinite(values).all(axis=0)
    kept = np.where(known, values, 0.0)
    return (kept - known * kept[:, known].mean()) * (len(known) / known.sum())
