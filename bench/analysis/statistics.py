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

The interval is the 2.5th to 97.5th percentile of their sum. The p value is where that sum, with all of B, reaches the
observed mean: a verdict is stricter than the interval, as after Holm's correction it lives far out in the tails.
`test_coverage.py` holds the coverage to 93 to 97 % from three trainings on, and tables with a false alarm to
5 %. With two trainings the coverage falls to 91 % when they differ more than prompts do. With one nothing is known
about trainings, and `covers` and the verdict say so.

A number of a whole set of images (a distance of distributions) has no per-image values: its interval is Student's t
over trainings. Where the frame carries the standard error of each value (a column "<name>_se", the jackknife of the
record), that is added and not divided by the number of trainings, as all of them draw the same prompts.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from bench.analysis import resampling
from bench.analysis.resampling import ALPHA, Mean
from bench.contracts import BenchError

if TYPE_CHECKING:
    import pandas as pd

LEVELS = ("dataset", "seed", "prompt")  # outermost first
INNER = "image_seed"  # the evaluation seed, nested in the prompt
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
    made, units, covers = _mean(frame, value, levels)
    return Interval(made.value, *made.limits(), int(frame[value].notna().sum()), units, covers)


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
    return _comparison(_select(frame, a), _select(frame, b), value, levels)


def compare_all(frame: pd.DataFrame, value: str, by: Sequence[str], levels: Sequence[str] = LEVELS) -> pd.DataFrame:
    """Every pair of rows (told apart by the columns `by`) compared, Holm-corrected over all pairs.

    Columns a, b (tuples of the values of `by`), difference, low, high, p, p_holm, effect, verdict, n; low and high are
    not corrected, the verdict is.
    """
    rows = split(frame, by)
    return _pairs(rows, list(combinations(rows, 2)), value, levels)


def leaders(rows: Mapping[Hashable, pd.DataFrame], value: str, levels: Sequence[str], up: bool) -> set[Hashable]:
    """The rows to print bold: the best and those that tie with it, if they leave any other significantly behind.

    Holm's family is every pair of the rows, as which of them is best was learned from the same numbers. A row of one
    training is no part of the contest. The empty set is the result "inconclusive".
    """
    found = {key: _mean(rows[key], value, levels) for key in rows}
    means = {key: mean.value for key, (mean, _, covers) in found.items() if _general(covers)}
    if len(means) < 2:
        return set()
    best = (max if up else min)(means, key=lambda key: means[key])
    others = [key for key in means if key != best]
    pairs = _pairs(rows, [(best, key) for key in others], value, levels, math.comb(len(means), 2))
    beaten = {pair.b for pair in pairs.itertuples() if pair.verdict == ("higher" if up else "lower")}
    return set(means) - beaten if beaten else set()


def more_seeds(
    frame: pd.DataFrame,
    value: str,
    a: str | Mapping[str, object],
    b: str | Mapping[str, object],
    gap: float,
    family: int = 1,
) -> int | None:
    """How many more training seeds would show a true difference of `gap` between a and b with a power of 80 %.

    `family` is the number of comparisons that Holm's correction is over; the strictest of its steps is taken. None: no
    number of seeds would, prompts are too few. Raises BenchError with fewer than two common seeds, as nothing is known
    then about how much trainings differ. For rows that pool styles it is the number of more styles.
    """
    made, _, covers = _mean(_paired(_select(frame, a), _select(frame, b), value, LEVELS), value, LEVELS)
    if not _general(covers):
        raise BenchError("How many more seeds are needed was asked of one seed; run at least two of both rows first.")
    return made.more_units(gap, 0.8, family)


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


def _mean(frame: pd.DataFrame, value: str, levels: Sequence[str]) -> tuple[Mean, dict[str, int], tuple[str, ...]]:
    """The mean of a column with its error, the units of each level, and the levels that the error covers."""
    levels = [level for level in levels if level in frame]
    kept = frame[frame[value].notna()]
    units = {level: int(kept[level].nunique(dropna=False)) for level in levels}
    _refuse_mixed(frame, value, levels)
    if kept.empty:
        return Mean(math.nan, 0, 0.0, 0.0, np.empty(0)), units, ()
    outer = next((level for level in levels if level != "prompt" and units[level] > 1), None)
    covers = [level for level in levels if level != "prompt"][levels.index(outer) :] if outer else []
    covers += [level for level in levels if level == "prompt" and units[level] > 1]
    values = kept[value].to_numpy(dtype=np.float64)
    se = 0.0 if outer == "dataset" else _shared_error(kept, value)  # independent over styles, so in their spread
    prompt = "prompt" if "prompt" in levels else None
    return resampling.mean(values, _codes(kept, outer), _codes(kept, prompt), se), units, tuple(covers)


def _refuse_mixed(frame: pd.DataFrame, value: str, levels: Sequence[str]) -> None:
    for level in LEVELS[:2]:
        if level in frame and level not in levels and frame[level].nunique() > 1:
            raise BenchError(f"The values of {value!r} come from several units of {level!r}; add it to the levels.")


def _codes(frame: pd.DataFrame, column: str | None) -> np.ndarray:
    import pandas as pd

    return np.zeros(len(frame), dtype=np.int64) if column is None else pd.factorize(frame[column])[0]


def _shared_error(frame: pd.DataFrame, value: str) -> float:
    """The standard error that each value came with, root mean square over them; 0 when they came without."""
    errors = frame[f"{value}_se"].dropna() if f"{value}_se" in frame else ()
    return float(np.sqrt(np.mean(np.square(errors)))) if len(errors) else 0.0


def _select(frame: pd.DataFrame, row: str | Mapping[str, object]) -> pd.DataFrame:
    wanted = {"method": row} if isinstance(row, str) else row
    chosen = frame
    for column, value in wanted.items():
        chosen = chosen[chosen[column] == value]
    if chosen.empty:
        raise BenchError(f"There are no values of {dict(wanted)} to compare; give a row that the frame holds.")
    return chosen


def _pairs(
    rows: Mapping[Hashable, pd.DataFrame],
    pairs: Sequence[tuple[Hashable, Hashable]],
    value: str,
    levels: Sequence[str],
    family: int | None = None,
) -> pd.DataFrame:
    import pandas as pd

    found = [_comparison(rows[a], rows[b], value, levels) for a, b in pairs]
    known = np.array([c.p if _general(c.covers) else math.nan for c in found], dtype=np.float64)
    adjusted = resampling.holm(known, family or len(pairs))
    lines = [
        {"a": a, "b": b, "difference": c.difference, "low": c.low, "high": c.high, "p": c.p, "p_holm": float(p)}
        | {"effect": c.effect, "verdict": _verdict(c.difference, float(p), c.covers), "n": c.n}
        for (a, b), c, p in zip(pairs, found, adjusted, strict=True)
    ]
    return pd.DataFrame(lines, columns=PAIR)


def _comparison(a: pd.DataFrame, b: pd.DataFrame, value: str, levels: Sequence[str]) -> Comparison:
    paired = _paired(a, b, value, levels)
    made, units, covers = _mean(paired, value, levels)
    p, spread = made.p_value(), float(paired[value].std())
    effect = made.value / spread if spread > 0 else math.nan
    verdict = _verdict(made.value, p, covers)
    n = int(paired[value].notna().sum())
    return Comparison(made.value, *made.limits(), p, effect, verdict, n, units, covers)


def _paired(a: pd.DataFrame, b: pd.DataFrame, value: str, levels: Sequence[str]) -> pd.DataFrame:
    """a minus b, a line for each unit that both have."""
    keys = [key for key in (*levels, INNER) if key in a and key in b]
    standard = f"{value}_se"
    columns = [value, *([standard] if standard in a and standard in b else [])]
    for side in (a, b):
        if side.duplicated(keys).any():
            raise BenchError(
                f"A row to compare has several values of {value!r} for the same {', '.join(keys)}; "
                "tell its lines apart, for example with {'method': ..., 'strength': ...}."
            )
    joined = a[[*keys, *columns]].merge(b[[*keys, *columns]], on=keys, suffixes=("", " b"))
    joined[value] = joined[value] - joined[f"{value} b"]
    if standard in joined:
        joined[standard] = np.hypot(joined[standard], joined[f"{standard} b"])
    return joined[[*keys, *columns]]


def _general(covers: Sequence[str]) -> bool:
    """Whether an error speaks of other trainings than those at hand."""
    return any(level != "prompt" for level in covers)


def _verdict(difference: float, p: float, covers: Sequence[str]) -> str:
    return verdict(difference, p) if _general(covers) else "inconclusive"


def verdict(difference: float, p: float) -> str:
    """higher, lower or inconclusive, at 5 %."""
    return "inconclusive" if not p < ALPHA else "higher" if difference > 0 else "lower"
