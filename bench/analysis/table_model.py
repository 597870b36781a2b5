"""A table before it has a format: numbers with their intervals, what is bold, and what must be said below it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bench.analysis import frames, method_titles, statistics, variants

if TYPE_CHECKING:
    import pandas as pd

ROW = ["dataset", "method", "backbone", "settings", "strength"]  # what a row is, besides the seeds it averages over
POOLED = ["form", "evaluation", *ROW[1:]]  # what a row is that pools datasets
ABOUT_RUN = [*ROW, *variants.COLUMNS, "seed", "run_id"]
RUN_LEVELS = ("dataset", "seed")
ABOUT = ("_se", "_null")  # endings of numbers about another number: nobody wins in them


@dataclass(frozen=True)
class Value:
    """A mean and its 95 % interval, NaN where there is none; `text` stands in a cell that has no number."""

    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    covers: tuple[str, ...] = ()  # levels over which the interval generalises
    bold: bool = False
    text: str = ""


@dataclass(frozen=True)
class Column:
    name: str
    network: str | None = None
    up: bool | None = None  # whether higher is better
    marks: tuple[int, ...] = ()
    heading: str = ""  # what is shown for the name, with scale and unit
    ideal: float | None = None  # the best value, where neither higher nor lower is best
    group: str = ""  # where a wide table is split

    @property
    def full(self) -> str:
        return f"{self.name} [{self.network}]" if self.network else self.name

    @property
    def title(self) -> str:
        return self.heading or self.name


@dataclass(frozen=True)
class Row:
    key: Mapping[str, Any]  # all that tells the row from others
    labels: tuple[Any, ...]  # what is shown of it, one for each of the table's keys
    values: tuple[Value, ...]
    marks: tuple[int, ...] = ()
    runs: int = 1
    reason: str = ""  # why it has no numbers
    bound: str = ""  # "floor" or "ceiling": it stands below a rule and does not compete


@dataclass
class TableModel:
    """One table. Marks are places in `notes`, counted from 1."""

    keys: list[str]
    columns: list[Column] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    shared: str = ""  # what all rows have in common
    notes: list[str] = field(default_factory=list)
    legend: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)  # of rows without numbers

    def mark(self, note: str | None) -> tuple[int, ...]:
        """The mark of a footnote, which is added when it is new; nothing for none."""
        if note and note not in self.notes:
            self.notes.append(note)
        return (self.notes.index(note) + 1,) if note else ()


@dataclass(frozen=True)
class Numbers:
    """All numbers of one column in "value", a line per image or per run, as `bench.analysis.statistics` takes them."""

    frame: pd.DataFrame
    levels: tuple[str, ...]
    up: bool | None
    costs: bool = False  # what was spent, not what was achieved

    @property
    def of_sets(self) -> bool:
        return "prompt" not in self.levels


def numbers(scores: pd.DataFrame, images: pd.DataFrame, column: str) -> Numbers:
    """Per-image values where their mean is the recorded number of every run, else the recorded numbers."""
    keys = ["run_id", "strength"]
    name, _, network = column.partition(" [")
    if name in frames.COST:
        rows = scores.drop_duplicates(keys)
        return Numbers(rows.assign(value=rows[name])[[*ABOUT_RUN, "value"]], RUN_LEVELS, None, costs=True)
    net = network.removesuffix("]")
    of_net = scores[scores.network == net if net else scores.network.isna()]
    lines = of_net[of_net.metric == name].drop_duplicates(keys, keep="last")
    rows = lines[[*ABOUT_RUN, "value"]]
    up = lines.higher_is_better.dropna().astype(bool)
    each = _per_image(rows, images, name)
    direction = bool(up.iloc[0]) if len(up) and not name.endswith(ABOUT) else None
    if each is not None:
        return Numbers(each, statistics.LEVELS, direction)
    errors = of_net[of_net.metric == f"{name}_se"].drop_duplicates(keys, keep="last")[[*keys, "value"]]
    return Numbers(rows.merge(errors.rename(columns={"value": "value_se"}), "left", keys), RUN_LEVELS, direction)


def _per_image(rows: pd.DataFrame, images: pd.DataFrame, name: str) -> pd.DataFrame | None:
    import numpy as np
    import pandas as pd

    keys = ["run_id", "strength"]
    if name not in images:
        return None
    each = images[[*keys, "image_seed", name]].rename(columns={name: "value"})
    each = each.assign(prompt=pd.factorize(images.prompt)[0])  # numbers compare faster; the same ones in every column
    each = each.dropna(subset=["value"])
    means = rows[keys].merge(each.groupby(keys).value.mean().reset_index(), "left", keys).value
    if not np.isclose(means, rows.value, rtol=1e-6, atol=1e-12, equal_nan=True).all():
        return None
    return each.merge(rows.drop(columns="value"), "inner", keys)


def cells(found: Numbers, by: Sequence[str], blocks: Sequence[str], bold: bool = True) -> dict[Hashable, Value]:
    """The value of every row (told apart by `by`), bold by what is significant within a block (a part of `by`)."""
    parts = statistics.split(found.frame, by)
    values = {key: _value(part, found) for key, part in parts.items()}
    if bold and found.up is not None:
        place = list(by).index("method")
        competing = {key: part for key, part in parts.items() if not method_titles.bound(key[place])}  # type: ignore[index]
        for rows in _blocks(competing, [list(by).index(name) for name in blocks]):
            for key in statistics.leaders(rows, "value", found.levels, found.up):
                values[key] = replace(values[key], bold=True)
    return values


def _value(part: pd.DataFrame, numbers: Numbers) -> Value:
    """A mean with its interval; of costs the median alone, as one run beside other work would outweigh all others."""
    if numbers.costs:
        return Value(float(part.value.median()), n=int(part.value.count()))
    found = statistics.interval(part, "value", numbers.levels)
    return Value(found.mean, found.low, found.high, found.n, found.covers)


def _blocks(parts: Mapping[Any, pd.DataFrame], places: Sequence[int]) -> list[dict[Hashable, pd.DataFrame]]:
    found: dict[tuple, dict[Hashable, pd.DataFrame]] = {}
    for key, part in parts.items():
        found.setdefault(tuple(key[i] for i in places), {})[key] = part
    return list(found.values())
