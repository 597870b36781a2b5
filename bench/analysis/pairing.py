"""Rows of a table whose numbers meet: the same prompts and evaluation seeds in the same trainings, subtracted.

A row is the lines of one method at one strength, from a frame. A method that trains nothing (column "trained" is
False) has one training whatever its number of seeds: its images are the same for each. It is kept once and meets every
training of the other row. Of styles each training is a part, so there the seeds only say what meets what.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from bench.analysis import moderation, resampling
from bench.analysis.moderation import Prior
from bench.analysis.resampling import Mean
from bench.contracts import BenchError

if TYPE_CHECKING:
    import pandas as pd

LEVELS = ("dataset", "seed", "prompt")  # outermost first
INNER = "image_seed"  # the evaluation seed, nested in the prompt
TRAINED = "trained"
Columns = Mapping[str, np.ndarray]  # the lines of a row by columns, (N,) each
UNTRAINED = "untrained"  # stands among the levels that an error covers: there is no other training


@dataclass(frozen=True)
class Lines:
    """The values of a row or of a difference of rows, with what each belongs to as codes; N values, sorted by keys."""

    values: np.ndarray  # (N,)
    codes: np.ndarray  # (4, N): dataset, seed, prompt, evaluation seed
    keys: np.ndarray  # (N,) one number for all four; of an untrained row for all but the seed
    errors: np.ndarray  # (N,) the standard error that each value came with, NaN without
    seeds: int  # of all rows: keys of a trained row are those of an untrained one times this, plus the seed
    trained: bool = True

    def at(self, places: np.ndarray) -> Lines:
        return Lines(
            self.values[places], self.codes[:, places], self.keys[places], self.errors[places], self.seeds, self.trained
        )


@dataclass(frozen=True)
class Estimate:
    """A mean with its error, how many units it is over, and the levels that the error covers."""

    mean: Mean
    units: Mapping[str, int]
    covers: tuple[str, ...]
    values: np.ndarray = field(default_factory=lambda: np.empty(0))  # (N,) what the mean is of, where that is known

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def general(self) -> bool:
        """Whether the error speaks of other trainings than those at hand."""
        return any(level != "prompt" for level in self.covers)


class Rows:
    """The rows of one block, whose variances over trainings are moderated by each other (`analysis.moderation`).

    Raises BenchError when a row has several units of a level that is not among `levels`, and when one that is compared
    has several values of the same units.
    """

    def __init__(self, rows: Mapping[Hashable, pd.DataFrame | Columns], value: str, levels: Sequence[str] = LEVELS):
        self.levels = [level for level in levels if all(level in part for part in rows.values())]
        parts = {key: _columns(part, value) for key, part in rows.items()}
        self.lines = _lines(parts, value, self.levels)
        self._trainings = {key: _trainings(key, part) for key, part in rows.items()}
        self._found: dict[Hashable, Estimate] = {}

    def row(self, key: Hashable) -> Estimate:
        """The mean of one row."""
        made = self._plain(key)
        if made.mean.free <= 0:
            return made
        variance, free = self.moderated(key)
        return replace(made, mean=replace(made.mean, between=variance / made.mean.outer, degrees=free))

    def pair(self, a: Hashable, b: Hashable, sign: int = -1) -> Estimate:
        """a minus b (with sign 1 their sum) over what both have.

        Trainings of unlike methods are independent, so the variances of both add up; pairing by the training seed would
        halve what is known of them.
        """
        made = estimate(_met(self.lines[a], self.lines[b], sign), self.levels)
        if made.mean.free <= 0:
            return made
        if "dataset" in made.covers:
            return self._over_styles(made, a, b)
        parts = [self.moderated(key) for key in (a, b) if self.lines[key].trained]
        between = sum(variance for variance, _ in parts) / made.mean.outer
        return replace(made, mean=replace(made.mean, between=between, degrees=min(free for _, free in parts)))

    def moderated(self, key: Hashable) -> tuple[float, float]:
        """The variance of a row's outer units and its degrees of freedom, moderated by the other rows."""
        return self.prior.moderate(*self._own(key))

    def _plain(self, key: Hashable) -> Estimate:
        if key not in self._found:
            self._found[key] = estimate(self.lines[key], self.levels)
        return self._found[key]

    def _own(self, key: Hashable) -> tuple[float, float]:
        """The variance of a row's outer units, and its degrees of freedom."""
        mean = self._plain(key).mean
        return mean.between * mean.outer, mean.free

    @cached_property
    def prior(self) -> Prior:
        """Of the rows' trainings; strengths of the same trainings count once."""
        groups: dict[Hashable, list[tuple[float, float]]] = {}
        for key in self.lines:
            groups.setdefault(self._trainings[key], []).append(self._own(key))
        means = [tuple(np.mean(found, axis=0)) for found in groups.values()]
        return moderation.fit([variance for variance, _ in means], [free for _, free in means])

    # --- rows that pool styles: what all methods find hard is no part of a difference

    def _over_styles(self, made: Estimate, a: Hashable, b: Hashable) -> Estimate:
        spread, prior = self._styles
        if a not in spread or b not in spread:
            return made
        parts = [prior.moderate(spread[key], made.mean.free) for key in (a, b)]
        between = max(sum(variance for variance, _ in parts) / made.mean.outer, made.mean.between)
        return replace(made, mean=replace(made.mean, between=between, degrees=min(free for _, free in parts)))

    @cached_property
    def _styles(self) -> tuple[dict[Hashable, float], Prior]:
        """The variance over styles of each row that has them all, without their main effect, and its prior."""
        kinds = {key: tuple(np.unique(lines.codes[0])) for key, lines in self.lines.items()}
        most = max(kinds.values(), key=len)
        whole = {key: _by_dataset(lines) for key, lines in self.lines.items() if kinds[key] == most}
        spread = moderation.centred(np.array(list(whole.values()))).var(axis=1, ddof=1)
        k, free = len(whole), len(next(iter(whole.values()))) - 1
        prior = moderation.fit(spread, [free * (k - 1) / k] * k)
        return dict(zip(whole, map(float, spread), strict=True)), prior


def estimate(lines: Lines, levels: Sequence[str]) -> Estimate:
    """The mean of lines with its own error, the units of each level, and the levels that the error covers."""
    units = {level: int(np.count_nonzero(np.bincount(lines.codes[LEVELS.index(level)]))) for level in levels}
    if not len(lines.values):
        return Estimate(Mean(math.nan, 0, 0.0, 0.0, np.empty(0)), units, ())
    outer = next((level for level in levels if level != "prompt" and units[level] > 1), None)
    above = [level for level in levels if level != "prompt"]
    covers = above[above.index(outer) :] if outer else [] if lines.trained else [UNTRAINED]
    covers += [level for level in levels if level == "prompt" and units[level] > 1]
    se = 0.0 if outer == "dataset" else _shared_error(lines)  # independent over styles, so in their spread
    prompt = "prompt" if "prompt" in levels else None
    made = resampling.mean(lines.values, compact(lines, outer), compact(lines, prompt), se)
    return Estimate(made, units, tuple(covers), lines.values)


# --- how


def by_columns(frame: pd.DataFrame, by: Sequence[str]) -> dict[Hashable, Columns]:
    """The rows of a frame by the tuples of two or more columns' values, in the order of the frame; NaN is a value.

    Of ten thousand records this is much faster than a frame for each row. Categories are there as their codes.
    """
    groups = frame.groupby(list(by), dropna=False, sort=False, observed=True)
    place = groups.ngroup().to_numpy()
    order, sizes = np.argsort(place, kind="stable"), groups.size()
    ends = np.cumsum(sizes.to_numpy())[:-1]
    whole = [name for name in frame if name not in by or name in LEVELS]
    parts = {name: np.split(_without_texts(frame[name])[order], ends) for name in whole}
    return {key: {name: part[i] for name, part in parts.items()} for i, key in enumerate(sizes.index)}


def _without_texts(values: pd.Series) -> np.ndarray:
    return (values.cat.codes if values.dtype == "category" else values).to_numpy()


def _columns(part: pd.DataFrame | Columns, value: str) -> Columns:
    """What is needed of a row, without the lines where the value is NaN."""
    names = [name for name in (*LEVELS, INNER, TRAINED, value, f"{value}_se") if name in part]
    made = {name: np.asarray(part[name]) for name in names}
    known = ~np.isnan(made[value].astype(np.float64))
    return made if known.all() else {name: values[known] for name, values in made.items()}


def _trainings(key: Hashable, part: pd.DataFrame | Columns) -> Hashable:
    return frozenset(np.asarray(part["run_id"]).tolist()) if "run_id" in part else key


def _lines(rows: Mapping[Hashable, Columns], value: str, levels: Sequence[str]) -> dict[Hashable, Lines]:
    """The lines of each row with codes that mean the same in all of them."""
    import pandas as pd

    for part in rows.values():
        _refuse_mixed(part, value, levels)
    columns = [name if all(name in part for part in rows.values()) else None for name in (*LEVELS, INNER)]
    columns = [name if name == INNER or name in levels else None for name in columns]
    size = sum(len(part[value]) for part in rows.values())
    codes = np.zeros((4, size), dtype=np.int64)
    for i, column in enumerate(columns):
        if column:
            codes[i] = pd.factorize(np.concatenate([part[column] for part in rows.values()]))[0]
    sizes, made, start = codes.max(axis=1, initial=0) + 1, {}, 0
    for key, part in rows.items():
        end = start + len(part[value])
        made[key] = _row(part, value, codes[:, start:end], sizes)
        start = end
    return made


def _row(part: Columns, value: str, codes: np.ndarray, sizes: np.ndarray) -> Lines:
    n = len(part[value])
    trained = bool(part[TRAINED][0]) if TRAINED in part and n else True
    if not trained:
        first = _first_seeds(codes)
        part, codes = {name: values[first] for name, values in part.items()}, codes[:, first]
    values = part[value].astype(np.float64)
    errors = part[f"{value}_se"].astype(np.float64) if f"{value}_se" in part else np.full(len(values), np.nan)
    keys = np.ravel_multi_index(tuple(codes[[0, 2, 3, 1]]), tuple(sizes[[0, 2, 3, 1]])) if n else codes[0]
    order = np.argsort(keys, kind="stable")
    if not trained:
        keys, codes = keys // sizes[1], codes * np.array([[1], [0], [1], [1]])
    return Lines(values, codes, keys, errors, int(sizes[1]), trained).at(order)


def _first_seeds(codes: np.ndarray) -> np.ndarray:
    """Of each style the lines of its first training seed: (N,) of bool."""
    first = np.full(codes[0].max(initial=0) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, codes[0], codes[1])
    return codes[1] == first[codes[0]]


def _met(a: Lines, b: Lines, sign: int) -> Lines:
    """a + sign * b, a line for each unit that both have; an untrained row meets each training of the other."""
    if not a.trained and b.trained:
        turned = _met(b, a, sign)
        return replace(turned, values=turned.values * sign)
    for lines in (a, b):
        if (np.diff(lines.keys) == 0).any():
            raise BenchError(
                "A row to compare has several values for the same style, training seed, prompt and evaluation seed; "
                "tell its lines apart, for example with {'method': ..., 'strength': ...}."
            )
    at, on = _places(a, b)
    a, b = a.at(at), b.at(on)
    return replace(a, values=a.values + sign * b.values, errors=np.hypot(a.errors, b.errors))


def _places(a: Lines, b: Lines) -> tuple[np.ndarray, np.ndarray]:
    """Where the lines of a and b meet."""
    if a.trained == b.trained:
        _, at, on = np.intersect1d(a.keys, b.keys, assume_unique=True, return_indices=True)
        return at, on
    if not len(b.keys):
        return (np.empty(0, dtype=np.int64),) * 2
    rest = a.keys // a.seeds
    on = np.minimum(np.searchsorted(b.keys, rest), len(b.keys) - 1)
    at = np.flatnonzero(b.keys[on] == rest)
    return at, on[at]


def _by_dataset(lines: Lines) -> np.ndarray:
    """The mean of each style, in their order; a training counts once, however many values it has."""
    kinds, place = np.unique(lines.codes[0], return_inverse=True)
    return np.bincount(place, lines.values, len(kinds)) / np.bincount(place, minlength=len(kinds))


def compact(lines: Lines, level: str | None) -> np.ndarray:
    """(N,) the unit of a level that each value belongs to, as 0, 1, ...; without a level all 0."""
    if level is None:
        return np.zeros(len(lines.values), dtype=np.int64)
    codes = lines.codes[LEVELS.index(level)]
    return (np.cumsum(np.bincount(codes) > 0) - 1)[codes]


def _shared_error(lines: Lines) -> float:
    """The standard error that each value came with, root mean square over them; 0 when they came without."""
    errors = lines.errors[np.isfinite(lines.errors)]
    return float(np.sqrt(np.mean(np.square(errors)))) if len(errors) else 0.0


def _refuse_mixed(part: Columns, value: str, levels: Sequence[str]) -> None:
    import pandas as pd

    for level in LEVELS[:2]:
        if level in part and level not in levels and pd.Series(part[level]).nunique() > 1:
            raise BenchError(f"The values of {value!r} come from several units of {level!r}; add it to the levels.")
