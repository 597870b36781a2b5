"""Declared comparisons as one family: an estimate, an interval, a p value and a status for each.

    difference   A - B. With direction "nearer": |A - ideal| - |B - ideal|
    slope        of the value over the strength of A; with B, the slope of A less that of B
    monotone     the smallest step between neighbouring strengths of A; all steps must be significant
    equivalence  A - B is within the margin (two one-sided tests, Schuirmann 1987)
    bound        A less a fixed value, the margin

p is of the null hypothesis that the claim does not hold, two-sided where its opposite can be shown, too. Holm's
correction is over the contrasts of one call: give all that an experiment declares, and nothing else. Where several
tests must all be significant, the largest p counts (intersection-union test, Berger 1982).

A distance from the ideal is compared by two tests: b^2 - a^2 = (b - a)(b + a) for a and b counted from the ideal
(`analysis.best`). Equal distance within a margin holds where A - B or A + B - 2 ideal is within it. An equivalence is
shown where the 95 % interval lies within the margin.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from bench.analysis import power
from bench.analysis.best import nearness
from bench.analysis.pairing import LEVELS, Estimate, Rows
from bench.analysis.resampling import ALPHA, Mean
from bench.analysis.statistics import holm
from bench.contracts import BenchError

if TYPE_CHECKING:
    import pandas as pd

    from bench.analysis.matched import Matched

KINDS = ("difference", "slope", "monotone", "equivalence", "bound")
DIRECTIONS = ("higher", "lower", "nearer")
SHOWN, OPPOSITE, NOT = "shown", "opposite shown", "not shown"
ONE = "one training says nothing about the next; run at least two seeds"
NOTHING = "A and B have no training, prompt and evaluation seed in common"


@dataclass(frozen=True)
class Contrast:
    """One declared comparison. Frames hold the lines of a row as `table_model.numbers` gives them."""

    kind: str
    a: pd.DataFrame  # for slope and monotone at several strengths, else at one
    b: pd.DataFrame | None = None
    direction: str = "higher"  # what is claimed of A, or of its slope or steps
    ideal: float = 0.0  # for the direction nearer, and for near
    margin: float = 0.0  # of an equivalence, or the value of a bound
    near: bool = False  # equivalence of the distances to the ideal
    levels: tuple[str, ...] = LEVELS
    block: Sequence[pd.DataFrame] = ()  # of other methods, which help to estimate the variance over trainings
    estimates: tuple[Estimate, Estimate] | None = None  # of A - B and A + B, made before; then the frames are not read

    def __post_init__(self) -> None:
        for name, value, known in (("kind", self.kind, KINDS), ("direction", self.direction, DIRECTIONS)):
            if value not in known:
                raise BenchError(f"A contrast has the {name} {value!r}; give one of {', '.join(known)}.")
        if self.kind in ("difference", "equivalence") and self.b is None and self.estimates is None:
            raise BenchError(f"A contrast of the kind {self.kind} compares A with B, and B is not there; give b.")
        if self.kind == "equivalence" and not self.margin > 0:
            raise BenchError(f"An equivalence has the margin {self.margin:g}; give one above 0.")


@dataclass(frozen=True)
class Answer:
    """What the numbers say of a contrast; NaN and a reason where they say nothing."""

    estimate: float
    low: float  # 95 %, not corrected
    high: float
    p: float
    p_holm: float
    status: str  # shown | opposite shown | not shown
    detectable: float  # the smallest true gap that this design shows with 80 % power at Holm's strictest step
    n: int
    units: Mapping[str, int]
    covers: tuple[str, ...]
    reason: str = ""


@dataclass(frozen=True)
class Test:
    """The estimates that a contrast rests on, its number, and the one-sided p of the claim and of its opposite."""

    parts: Sequence[Estimate]
    estimate: float
    low: float
    high: float
    claim: float
    opposite: float
    p: float = field(default=math.nan)


def answers(contrasts: Sequence[Contrast | str]) -> list[Answer]:
    """The answers to one family of contrasts, in their order. One that cannot be answered counts as a member, and so
    does one of which there is only the reason, a text."""
    tests = [contrast if isinstance(contrast, str) else _test(contrast) for contrast in contrasts]
    known = [test.p if isinstance(test, Test) else math.nan for test in tests]
    return [_answer(test, p, len(tests)) for test, p in zip(tests, holm(known), strict=True)]


def _answer(test: Test | str, p_holm: float, family: int) -> Answer:
    if isinstance(test, str):
        numbers = dict.fromkeys(("estimate", "low", "high", "p", "p_holm", "detectable"), math.nan)
        return Answer(**numbers, status=NOT, n=0, units={}, covers=(), reason=test)
    made = test.parts[0]
    status = NOT if not p_holm < ALPHA else SHOWN if test.claim <= test.opposite else OPPOSITE
    gap = max(power.detectable(part.mean, family) for part in test.parts)
    return Answer(test.estimate, test.low, test.high, test.p, p_holm, status, gap, made.n, made.units, made.covers)


def _test(contrast: Contrast) -> Test | str:
    """The test of a contrast, or why there is none."""
    parts = list(_estimates(contrast))
    if not all(part.mean.outer for part in parts):
        return NOTHING
    if not all(part.general and part.mean.freedom > 0 for part in parts):
        return ONE
    made = TESTS[contrast.kind](contrast, parts)
    return replace(made, p=min(1.0, 2 * min(made.claim, made.opposite)))


def _estimates(contrast: Contrast) -> Iterator[Estimate]:
    if contrast.estimates is not None:
        yield from contrast.estimates
    elif contrast.kind in ("slope", "monotone"):
        yield from _over_strengths(contrast)
    elif contrast.kind == "bound":
        yield _rows(contrast, contrast.a).row("a")
    else:
        rows = _rows(contrast, contrast.a, contrast.b)
        yield rows.pair("a", "b")
        yield rows.pair("a", "b", sign=1)


def _rows(contrast: Contrast, a: pd.DataFrame, b: pd.DataFrame | None = None) -> Rows:
    rows: dict[Hashable, pd.DataFrame] = {"a": a, **({} if b is None else {"b": b})}
    rows |= dict(enumerate(contrast.block))
    return Rows(rows, "value", contrast.levels)


def matched_estimates(found: Matched) -> tuple[Estimate, Estimate]:
    """What a contrast takes as `estimates`, of A and B where they are equally close to the style."""

    def made(mean: Mean) -> Estimate:
        units = {"seed": mean.outer, "prompt": len(mean.prompts)}
        return Estimate(mean, units, tuple(level for level, count in units.items() if count > 1))

    return made(found.linear), made(found.plus)


# --- the kinds


def _difference(contrast: Contrast, parts: Sequence[Estimate]) -> Test:
    minus, plus = parts
    if contrast.direction == "nearer":
        return _nearer(minus, plus, contrast.ideal)
    return _one([minus], minus.mean, 0.0, contrast.direction)


def _nearer(minus: Estimate, plus: Estimate, ideal: float) -> Test:
    near, far = nearness(minus.mean, plus.mean, ideal)
    estimate, (low, high) = _distance(minus.mean, plus.mean, ideal)
    return Test([minus, plus], estimate, low, high, near, far)


def _distance(minus: Mean, plus: Mean, ideal: float) -> tuple[float, tuple[float, float]]:
    """|A - ideal| - |B - ideal| with the interval of the linear piece that A and B lie on."""
    a, b = (plus.value + minus.value) / 2 - ideal, (plus.value - minus.value) / 2 - ideal
    shift = 0.0 if a * b > 0 else 2 * ideal
    low, high = (minus if a * b > 0 else plus).limits()
    low, high = (low - shift, high - shift) if a >= 0 else (shift - high, shift - low)
    return abs(a) - abs(b), (low, high)


def _equivalence(contrast: Contrast, parts: Sequence[Estimate]) -> Test:
    minus, plus = (part.mean for part in parts)
    if not contrast.near:
        return Test([parts[0]], minus.value, *minus.limits(), *_within(minus, 0.0, contrast.margin))
    straight, crossed = _within(minus, 0.0, contrast.margin), _within(plus, 2 * contrast.ideal, contrast.margin)
    estimate, limits = _distance(minus, plus, contrast.ideal)
    return Test(parts, estimate, *limits, min(straight[0], crossed[0]), max(straight[1], crossed[1]))


def _within(mean: Mean, centre: float, margin: float) -> tuple[float, float]:
    """One-sided p of a mean that is not within the margin of a centre, and of one that is not beyond it."""
    below, above = mean.tail(centre + margin, up=False), mean.tail(centre - margin, up=True)
    beyond = min(mean.tail(centre + margin, up=True), mean.tail(centre - margin, up=False))
    return max(below, above), beyond


def _bound(contrast: Contrast, parts: Sequence[Estimate]) -> Test:
    (made,) = parts
    return _one([made], made.mean, contrast.margin, contrast.direction)


def _slope(contrast: Contrast, parts: Sequence[Estimate]) -> Test:
    return _one(parts[:1], parts[0].mean, 0.0, contrast.direction)


def _one(parts: Sequence[Estimate], mean: Mean, bound: float, direction: str) -> Test:
    up = direction == "higher"
    low, high = mean.limits()
    claim, opposite = mean.tail(bound, up), mean.tail(bound, not up)
    return Test(parts, mean.value - bound, low - bound, high - bound, claim, opposite)


def _monotone(contrast: Contrast, parts: Sequence[Estimate]) -> Test:
    up = contrast.direction == "higher"
    steps = [part.mean for part in parts]
    least = (min if up else max)(steps, key=lambda step: step.value)
    claim, opposite = (max(step.tail(0.0, side) for step in steps) for side in (up, not up))
    return Test(parts, least.value, *least.limits(), claim, opposite)


TESTS = {
    "difference": _difference,
    "slope": _slope,
    "monotone": _monotone,
    "equivalence": _equivalence,
    "bound": _bound,
}


# --- over strengths


def _over_strengths(contrast: Contrast) -> Iterator[Estimate]:
    if contrast.kind == "monotone":
        yield from (Rows({"a": part}, "value", contrast.levels).row("a") for part in _steps(contrast.a))
        return
    slopes = [_slopes(lines) for lines in (contrast.a, contrast.b) if lines is not None]
    rows = _rows(replace(contrast, block=()), *slopes)
    yield rows.pair("a", "b") if contrast.b is not None else rows.row("a")


def _wide(lines: pd.DataFrame) -> pd.DataFrame:
    """A line for each image or training that has all strengths, a column for each strength."""
    units = [name for name in ("dataset", "seed", "prompt", "image_seed") if name in lines]
    wide = lines.pivot_table(index=units, columns="strength", values="value").dropna()
    if wide.shape[1] < 2:
        raise BenchError(
            f"A slope over strengths was requested and A has {wide.shape[1]} of them; draw more with strength=sweep."
        )
    return wide


def _framed(values: np.ndarray, wide: pd.DataFrame, lines: pd.DataFrame) -> pd.DataFrame:
    made = wide.index.to_frame(index=False).assign(value=values)
    return made.assign(trained=lines.trained.iloc[0]) if "trained" in lines else made


def _slopes(lines: pd.DataFrame) -> pd.DataFrame:
    """The least-squares slope over strength of each image or training."""
    wide = _wide(lines)
    x = wide.columns.to_numpy(dtype=np.float64)
    x = x - x.mean()
    return _framed(wide.to_numpy() @ x / np.square(x).sum(), wide, lines)


def _steps(lines: pd.DataFrame) -> list[pd.DataFrame]:
    """The differences of neighbouring strengths of each image or training."""
    wide = _wide(lines)
    return [_framed(column, wide, lines) for column in np.diff(wide.to_numpy(), axis=1).T]
