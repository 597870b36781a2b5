"""Intervals, paired comparisons and ranks that respect how the numbers came about.

The levels of a score, outermost first: **dataset** (a style, where a row pools styles), **seed** (one training each,
nested in its style), **prompt**, and evaluation seeds nested in the prompt. Prompts are *crossed* with what is above
them: all trainings draw the same prompts, so a hard prompt is hard for all of them and resampling prompts afresh in
each training would hide most of their variance.

An interval for the mean over G outer units (trainings, or styles) and n prompts puts together two errors that are
independent to first order:

- prompts: a studentised cluster bootstrap (Davison & Hinkley 1997, sections 2.4 and 3.8). Prompts are drawn whole,
  with all their evaluation seeds and in all trainings at once; drawing again inside a drawn prompt would count the
  inner variance twice.
- outer units: there are three of them, not thirty, and a bootstrap of three under-covers badly (its variance is 2/3
  of the right one, and its tails are those of a normal). Their part is Student's t with G - 1 degrees of freedom
  times sqrt(B - I): B the variance of the mean from the spread of the outer means, I the part of it that the prompts
  have counted already (the outer x prompt interaction; Searle, Casella & McCulloch 1992, section 4.3).

The interval is the 2.5th to 97.5th percentile of their sum, the p value where that sum reaches the observed mean.
`tests/bench/test_coverage.py` holds the coverage to 93 to 97 %. With two trainings it may fall to 91 % when trainings
differ more than prompts do; with one, nothing is known about trainings, and `Interval.covers` and the verdict say so.

A number of a whole set of images (a distance of distributions) has no per-image values: its interval is Student's t
over trainings; where the frame carries the standard error of each value (column "<name>_se"), that is added, not
divided by the number of trainings, as all of them draw the same prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from bench.contracts import BenchError

if TYPE_CHECKING:
    import pandas as pd

LEVELS = ("dataset", "seed", "prompt")  # outermost first
INNER = "image_seed"  # the evaluation seed, nested in the prompt
DRAWS = 9999
FEW_PROMPTS = 8  # below it the bootstrap of prompts gives way to Student's t
ALPHA = 0.05


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
    """The mean of a minus b over what both have."""

    difference: float
    low: float
    high: float
    p: float  # two-sided, of no difference; NaN where nothing can be said
    effect: float  # difference over the standard deviation of the paired differences (Cohen's d_z)
    verdict: str  # higher | lower | inconclusive: of a, at 5 %
    n: int = 0
    units: Mapping[str, int] = field(default_factory=dict)
    covers: tuple[str, ...] = ()


def interval(frame: pd.DataFrame, value: str, levels: Sequence[str] = LEVELS) -> Interval:
    """The 95 % interval of the mean of a column, over those of the levels that are columns of the frame.

    A line per image (with "prompt"), or per training (without). Lines where the value is NaN count as absent.
    Raises BenchError when the frame holds several units of a level that is not among those asked for.
    """
    grid = _grid(frame, value, levels)
    low, high = _percentiles(grid.mean, grid.errors())
    return Interval(grid.mean, low, high, grid.n, grid.units, grid.covers)


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
    import pandas as pd

    rows = {key: part for key, part in frame.groupby(list(by), dropna=False, sort=False)}
    found = [(a, b, _comparison(rows[a], rows[b], value, levels)) for a, b in combinations(rows, 2)]
    adjusted = holm([c.p if _general(c.covers) else math.nan for _, _, c in found])
    lines = [
        {"a": a, "b": b, "difference": c.difference, "low": c.low, "high": c.high, "p": c.p, "p_holm": p}
        | {"effect": c.effect, "verdict": _verdict(c.difference, p, c.covers), "n": c.n}
        for (a, b, c), p in zip(found, adjusted, strict=True)
    ]
    return pd.DataFrame(lines, columns="a b difference low high p p_holm effect verdict n".split())


def holm(p: Iterable[float]) -> list[float]:
    """Adjusted p values (Holm 1979): reject those below 0.05 and a family of them is wrong once in 20 times.

    NaN, nothing known, stays NaN but counts as a member of the family.
    """
    values = np.asarray(list(p), dtype=np.float64)
    order = np.argsort(values)  # NaN last
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(x) for x in adjusted]


def leaders(means: Mapping[object, float], pairs: pd.DataFrame, higher_is_better: bool) -> set[object]:
    """The rows to print bold: the best and those that tie with it, if they leave any other significantly behind.

    The empty set is the result "inconclusive".
    """
    known = {key: mean for key, mean in means.items() if not math.isnan(mean)}
    if len(known) < 2:
        return set()
    best = (max if higher_is_better else min)(known, key=lambda key: known[key])
    beaten = {
        pair.b if pair.a == best else pair.a
        for pair in pairs.itertuples()
        if best in (pair.a, pair.b) and pair.verdict != "inconclusive"
    }
    return set(known) - beaten if beaten else set()


# --- how ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Grid:
    """Outer units x prompts, reduced to what the error of the mean is made of."""

    mean: float
    n: int
    units: Mapping[str, int]
    covers: tuple[str, ...]
    outer: int  # G, outer units
    between: float  # variance of the mean from the spread of the outer means, B
    counted: float  # the part of it that the prompts' variance holds already, I
    prompts: np.ndarray  # (n,) influence of each prompt on the mean, times n; empty where there are none
    se: float = 0.0  # of a set's number, from its record

    def errors(self) -> np.ndarray:
        """(DRAWS,) draws of the error of the mean; empty when no level has two units."""
        parts = []
        if len(self.prompts) > 1:
            parts.append(_prompt_errors(self.prompts))
        if self.outer > 1:
            parts.append(math.sqrt(max(self.between - self.counted, 0.0)) * _student(self.outer - 1, 1))
        if self.se > 0:
            parts.append(self.se * _student(10**9, 2))
        return np.sum(parts, axis=0) if parts else np.empty(0)


def _grid(frame: pd.DataFrame, value: str, levels: Sequence[str]) -> _Grid:
    levels = [level for level in levels if level in frame]
    extra = [level for level in LEVELS[:2] if level in frame and level not in levels and frame[level].nunique() > 1]
    if extra:
        raise BenchError(f"The values of {value!r} come from several units of {extra[0]}; add it to the levels.")
    kept = frame[frame[value].notna()]
    units = {level: int(kept[level].nunique(dropna=False)) for level in levels}
    outer = next((level for level in levels if level != "prompt" and units[level] > 1), None)
    rows = _codes(kept, outer)
    columns = _codes(kept, "prompt" if "prompt" in levels else None)
    if not len(kept):
        return _Grid(math.nan, 0, units, (), 0, 0.0, 0.0, np.empty(0))
    made = _reduced(np.asarray(kept[value], dtype=np.float64), rows, columns)
    standard = f"{value}_se"
    se = float(np.sqrt(np.nanmean(kept[standard] ** 2))) if standard in kept and outer != "dataset" else 0.0
    crossed = "prompt" in levels and len(made[4]) > 1
    covers = tuple(level for level in levels if (level == "prompt" and crossed) or (level != "prompt" and outer and
                   levels.index(level) >= levels.index(outer)))  # fmt: skip
    prompts = made[4] if "prompt" in levels else np.empty(0)
    return _Grid(made[0], len(kept), units, covers, made[1], made[2], made[3], prompts, 0.0 if math.isnan(se) else se)


def _codes(frame: pd.DataFrame, column: str | None) -> np.ndarray:
    import pandas as pd

    return np.zeros(len(frame), dtype=np.int64) if column is None else pd.factorize(frame[column])[0]


def _reduced(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[float, int, float, float, np.ndarray]:
    """Mean, G, B, I and the prompts' influences of values (N,) with their outer unit and prompt as codes (N,)."""
    g, n = int(rows.max()) + 1, int(columns.max()) + 1
    cell = rows * n + columns
    count = np.bincount(cell, minlength=g * n).reshape(g, n)
    total = np.bincount(cell, weights=values, minlength=g * n).reshape(g, n)
    means = total.sum(axis=1) / count.sum(axis=1)  # (G,)
    influence = (total - count * means[:, None]) / count.sum(axis=1, keepdims=True)  # (G, n), rows sum to 0
    prompts = influence.mean(axis=0)  # (n,)
    between = float(means.var(ddof=1) / g) if g > 1 else 0.0
    return float(means.mean()), g, between, _counted(influence, prompts, count), prompts * n


def _counted(influence: np.ndarray, prompts: np.ndarray, count: np.ndarray) -> float:
    """I: all of the prompts' variance when no prompt is shared, the interaction when all are; else 0, to be safe."""
    g, n = influence.shape
    if g < 2 or n < 2:
        return 0.0
    if (count > 0).all():
        return float(np.square(influence - prompts).sum() * n / ((g - 1) * (n - 1) * g))
    if ((count > 0).sum(axis=0) == 1).all():
        return float(np.square(prompts).sum() * n / (n - 1))
    return 0.0


def _prompt_errors(x: np.ndarray) -> np.ndarray:
    """Draws of the error of the mean of x (n,), which has mean 0: the studentised bootstrap, or Student's t."""
    n = len(x)
    se = math.sqrt(np.square(x).sum() / (n * (n - 1)))
    if se == 0:
        return np.zeros(DRAWS)
    if n >= FEW_PROMPTS:
        weights = _resamples(n)
        means = weights @ x
        spread = np.sqrt(np.maximum(weights @ np.square(x) - np.square(means), 0.0) / (n - 1))
        if (spread > 1e-3 * se).mean() > 0.999:  # else a few values stand out from many equal ones
            return se * means / np.maximum(spread, 1e-3 * se)
    return se * _student(n - 1, 0)


@lru_cache(maxsize=64)
def _resamples(n: int) -> np.ndarray:
    """(DRAWS, n): how often each of n was drawn, over n; the same in every call, so tables repeat."""
    return np.random.default_rng(n).multinomial(n, np.full(n, 1 / n), size=DRAWS) / n


@lru_cache(maxsize=256)
def _student(degrees: int, stream: int) -> np.ndarray:
    """(DRAWS,) quantiles of Student's t in a random order of their own for each stream."""
    from scipy.stats import t

    quantiles = t.ppf((np.arange(DRAWS) + 0.5) / DRAWS, degrees)
    return np.random.default_rng([stream, degrees]).permutation(quantiles)


def _percentiles(mean: float, errors: np.ndarray) -> tuple[float, float]:
    if not len(errors):
        return math.nan, math.nan
    low, high = np.quantile(errors, [ALPHA / 2, 1 - ALPHA / 2])
    return mean - float(high), mean - float(low)


def _p_value(mean: float, errors: np.ndarray) -> float:
    if not len(errors):
        return math.nan
    beyond = min((errors >= mean).sum(), (errors <= mean).sum())
    return float(min(1.0, 2 * (beyond + 1) / (len(errors) + 1)))


def _select(frame: pd.DataFrame, row: str | Mapping[str, object]) -> pd.DataFrame:
    wanted = {"method": row} if isinstance(row, str) else row
    chosen = frame
    for column, value in wanted.items():
        chosen = chosen[chosen[column] == value]
    if chosen.empty:
        raise BenchError(f"There are no values of {dict(wanted)} to compare; give a row that the frame holds.")
    return chosen


def _comparison(a: pd.DataFrame, b: pd.DataFrame, value: str, levels: Sequence[str]) -> Comparison:
    paired = _paired(a, b, value, levels)
    grid = _grid(paired, value, levels)
    errors = grid.errors()
    low, high = _percentiles(grid.mean, errors)
    p = _p_value(grid.mean, errors)
    spread = float(paired[value].std())
    effect = grid.mean / spread if spread > 0 else math.nan
    verdict = _verdict(grid.mean, p, grid.covers)
    return Comparison(grid.mean, low, high, p, effect, verdict, grid.n, grid.units, grid.covers)


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
    """Whether an interval speaks of other trainings than those at hand."""
    return any(level != "prompt" for level in covers)


def _verdict(difference: float, p: float, covers: Sequence[str]) -> str:
    if not _general(covers) or not p < ALPHA:
        return "inconclusive"
    return "higher" if difference > 0 else "lower"
