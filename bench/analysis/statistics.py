"""Intervals, paired comparisons and ranks that respect how the numbers came about.

The levels of a score, outermost first: **dataset** (a style, where a row pools styles), **seed** (one training each,
nested in its style), **prompt**, and evaluation seeds nested in the prompt. Prompts are *crossed* with what is above
them: all trainings draw the same prompts, so a hard prompt is hard for all of them, and resampling prompts afresh in
each training would hide most of their variance.

An interval for the mean over G outer units (trainings, or styles) and n prompts puts two errors together:

- prompts: a studentised cluster bootstrap (Davison & Hinkley 1997, sections 2.4 and 3.8). Prompts are drawn whole,
  with all their evaluation seeds and in all trainings at once; drawing again inside a drawn prompt would count the
  inner variance twice. Below 8 prompts Student's t takes its place.
- outer units: there are three of them, not thirty, and a bootstrap of three under-covers badly (its variance is 2/3
  of the right one, and its tails are too short). Their part is Student's t with G - 1 degrees of freedom times
  sqrt(B - I): B the variance of the mean from the spread of the outer means, I the part of it that the prompts have
  counted already (the interaction of a two-way layout with random effects).

With few trainings B itself is hardly known. In a block of methods it is moderated by the other methods' spreads
(`analysis.moderation`); of a difference it is the sum of both methods' variances. A method that trains nothing has one
training and no such variance (`analysis.pairing`).

The interval is the 2.5th to 97.5th percentile of their sum. The p value is that of Student's t with all of B and the
degrees of freedom of Welch and Satterthwaite: a verdict is stricter than the interval, and it has no floor, so that
Holm's correction works in large families. Which rows may be the best is one question with one error rate
(`analysis.best`); how small a gap a design can show is answered by `analysis.power`.

A number of a whole set of images (a distance of distributions) has no per-image values. Its record keeps what each
prompt adds to it, from the set without that prompt (metrics/jackknife.py): then all of the above holds for it too.
Without that, its interval is Student's t over trainings. Where the frame carries the standard error of each value (a
column "<name>_se"), that is added and not divided by the number of trainings, as all of them draw the same prompts.

Shares of events, values that are 0 or 1, have intervals of their own (`analysis.proportions`).
docs/statistics.md reports error rates, power and coverage in simulations with known truth.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from bench.analysis import best, power, proportions, resampling
from bench.analysis.pairing import LEVELS, Estimate, Rows
from bench.analysis.power import More
from bench.analysis.resampling import ALPHA, Mean
from bench.contracts import BenchError

if TYPE_CHECKING:
    import pandas as pd

INCONCLUSIVE = "inconclusive"
PAIR = "a b difference low high p p_holm effect verdict n".split()


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; low and high are NaN where nothing can be said."""

    mean: float
    low: float
    high: float
    n: int  # values
    units: Mapping[str, int] = field(default_factory=dict)  # level -> how many of it
    covers: tuple[str, ...] = ()  # levels over which the interval generalises


@dataclass(frozen=True)
class Comparison:
    """The mean of a minus b over what both have, with its 95 % interval."""

    difference: float
    low: float
    high: float
    p: float  # two-sided, of no difference; NaN where nothing can be said
    effect: float  # difference over the standard deviation of the paired differences (Cohen's d_z)
    verdict: str  # higher | lower | inconclusive: of a, at 5 %
    n: int = 0
    units: Mapping[str, int] = field(default_factory=dict)
    covers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ranks:
    """Mean ranks over styles (1 is best), Friedman's test and the critical difference."""

    mean: Mapping[Hashable, float]
    p: float
    critical_difference: float  # two mean ranks that are closer do not differ at 5 % (Nemenyi)
    styles: int


def interval(frame: pd.DataFrame, value: str, levels: Sequence[str] = LEVELS) -> Interval:
    """The 95 % interval of the mean of a column, over those of the levels that are columns of the frame.

    A line per image (with "prompt"), or per training (without). Lines where the value is NaN count as absent.
    Raises BenchError when the frame holds several units of a level that is not among those requested.
    """
    return interval_of(Rows({"": frame}, value, levels).row(""))


def interval_of(made: Estimate) -> Interval:
    """The interval of a row of a block; of events, 0 or 1, that of `analysis.proportions`."""
    events = proportions.are_events(made.values)
    limits = proportions.limits(made.mean, made.n) if events else made.mean.limits()
    return Interval(made.mean.value, *limits, made.n, made.units, made.covers)


def compare(
    frame: pd.DataFrame,
    value: str,
    a: str | Mapping[str, object],
    b: str | Mapping[str, object],
    levels: Sequence[str] = LEVELS,
) -> Comparison:
    """a minus b on the same style, training seed, prompt and evaluation seed.

    a and b are names of methods, or {column: value} where that does not tell the rows apart. The verdict asks for
    more than p < 0.05: one training per method says nothing about the next, so it stays inconclusive.
    """
    return _comparison(Rows({"a": _select(frame, a), "b": _select(frame, b)}, value, levels).pair("a", "b"))


def compare_all(frame: pd.DataFrame, value: str, by: Sequence[str], levels: Sequence[str] = LEVELS) -> pd.DataFrame:
    """Every pair of rows (told apart by the columns `by`) compared, Holm-corrected over all pairs.

    Columns a, b (tuples of the values of `by`), difference, low, high, p, p_holm, effect, verdict, n; low and high are
    not corrected, the verdict is.
    """
    return compare_rows(Rows(split(frame, by), value, levels))


def compare_rows(rows: Rows, target: float | None = None) -> pd.DataFrame:
    """The same of rows that were told apart before.

    With a target, p and verdict are of the distances to it: a is nearer, farther or neither (`best.nearness`).
    """
    import pandas as pd

    pairs = list(combinations(rows.lines, 2))
    made = [rows.pair(a, b) for a, b in pairs]
    found = [_comparison(one) for one in made]
    sums = [None if target is None else rows.pair(a, b, sign=1).mean for a, b in pairs]
    said = [direction(one.mean, plus, target or 0.0) for one, plus in zip(made, sums, strict=True)]
    adjusted = holm([p if one.general else math.nan for one, (_, p) in zip(made, said, strict=True)])
    lines = [
        {"a": a, "b": b, "difference": c.difference, "low": c.low, "high": c.high, "p": p, "p_holm": corrected}
        | {"effect": c.effect, "verdict": word if corrected < ALPHA else INCONCLUSIVE, "n": c.n}
        for (a, b), c, (word, p), corrected in zip(pairs, found, said, adjusted, strict=True)
    ]
    return pd.DataFrame(lines, columns=PAIR)


def more_seeds(
    frame: pd.DataFrame,
    value: str,
    a: str | Mapping[str, object],
    b: str | Mapping[str, object],
    gap: float,
    family: int = 1,
) -> More:
    """How many more training seeds would show a true difference of `gap` between a and b with a power of 80 %.

    `family` is the number of comparisons that Holm's correction is over; the strictest of its steps is taken. None: no
    number of seeds would, prompts are too few. Raises BenchError with fewer than two common seeds, as nothing is known
    then about how much trainings differ. For rows that pool styles it is the number of more styles.
    """
    made = Rows({"a": _select(frame, a), "b": _select(frame, b)}, value).pair("a", "b")
    if not made.general:
        raise BenchError("How many more seeds are needed was asked of one seed; run at least two of both rows first.")
    return power.more_units(made.mean, gap, family)


def ranks(scores: pd.DataFrame, higher_is_better: bool) -> Ranks:
    """Friedman's test of scores, a line per style and a column per row to rank; styles with NaN are left out.

    p is by permutation within styles, exact where there are few: with three to six styles both the chi-square form and
    Iman & Davenport's F are far off. The critical difference is that of Nemenyi's test (Demsar, JMLR 2006, section
    3.2.2). Raises BenchError below three rows or two styles.
    """
    from scipy.stats import permutation_test, rankdata, studentized_range

    whole = scores.dropna()
    n, k = whole.shape
    if k < 3 or n < 2:
        raise BenchError(f"Ranks over styles need 3 rows and 2 styles that all of them have; got {k} and {n}.")
    values = whole.to_numpy(dtype=np.float64)
    ranked = rankdata(-values if higher_is_better else values, axis=1)  # (n, k)
    test = permutation_test(
        ranked.T, _rank_spread, permutation_type="samples", vectorized=True, alternative="greater", rng=0
    )
    critical = float(studentized_range.ppf(1 - ALPHA, k, np.inf)) / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * n))
    mean = dict(zip(whole.columns, map(float, ranked.mean(axis=0)), strict=True))
    return Ranks(mean, float(test.pvalue), critical, n)


def _rank_spread(*ranked: np.ndarray, axis: int = -1) -> np.ndarray:
    """Friedman's statistic up to constants: the sum of squared rank sums."""
    return np.sum([np.square(column.sum(axis=axis)) for column in ranked], axis=0)


def holm(p: Iterable[float]) -> list[float]:
    """Adjusted p values (Holm 1979): of those below 0.05, any is wrong once in 20 such families.

    NaN, nothing known, stays NaN and counts as a member of the family.
    """
    values = np.asarray(list(p), dtype=np.float64)
    return [float(x) for x in resampling.holm(values, len(values))]


def split(frame: pd.DataFrame, by: Sequence[str]) -> dict[Hashable, pd.DataFrame]:
    """The parts of a frame by the tuples of some columns' values, in the order of the frame; NaN is a value."""
    return dict(iter(frame.groupby(list(by), dropna=False, sort=False, observed=True)))


# --- how ---------------------------------------------------------------------------------------------------------


def _select(frame: pd.DataFrame, row: str | Mapping[str, object]) -> pd.DataFrame:
    wanted = {"method": row} if isinstance(row, str) else row
    chosen = frame
    for column, value in wanted.items():
        chosen = chosen[chosen[column] == value]
    if chosen.empty:
        raise BenchError(f"There are no values of {dict(wanted)} to compare; give a row that the frame holds.")
    return chosen


def _comparison(made: Estimate) -> Comparison:
    mean, values = made.mean, made.values
    spread = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    effect = mean.value / spread if spread > 0 else math.nan
    p = mean.p_value()
    said = verdict(mean.value, p) if made.general else INCONCLUSIVE
    return Comparison(mean.value, *mean.limits(), p, effect, said, len(values), made.units, made.covers)


def direction(minus: Mean, plus: Mean | None = None, target: float = math.nan) -> tuple[str, float]:
    """What a is if it is significant, higher or lower, and its two-sided p, from a - b.

    With a + b as well, nearer to the target or farther from it.
    """
    if plus is None:
        return ("higher" if minus.value > 0 else "lower"), minus.p_value()
    near, far = best.nearness(minus, plus, target)
    return ("nearer" if near < far else "farther"), min(1.0, 2 * min(near, far))


def verdict(difference: float, p: float) -> str:
    """higher, lower or inconclusive, at 5 %."""
    return INCONCLUSIVE if not p < ALPHA else "higher" if difference > 0 else "lower"
