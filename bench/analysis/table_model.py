"""A table before it has a format: numbers with their intervals, what is bold, and what must be said below it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bench.analysis import frames, method_titles, quantities, statistics, variants
from bench.analysis.best import Best, best
from bench.analysis.pairing import Columns, Rows, by_columns

if TYPE_CHECKING:
    import pandas as pd

    from bench.analysis.kept_numbers import Kept

ROW = ["dataset", "method", "backbone", "settings", "strength"]  # what a row is, besides the seeds it averages over
POOLED = ["form", "evaluation", *ROW[1:]]  # what a row is that pools datasets
ABOUT_RUN = [*ROW, *variants.COLUMNS, "seed", "run_id", "trained"]
RUN_LEVELS = ("dataset", "seed")


@dataclass(frozen=True)
class Value:
    """A mean and its 95 % interval, NaN where there is none; `text` stands in a cell that has no number."""

    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    covers: tuple[str, ...] = ()  # levels over which the interval generalises
    bold: bool = False
    with_best: bool = False  # it cannot be separated from the best one
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
    target: float | None = None  # the ideal, where it is a number: the nearer the better

    @property
    def judged(self) -> bool:
        """Whether an error over prompts is known: the spread over trainings alone decides nothing."""
        return not self.of_sets or ("value_se" in self.frame and bool(self.frame.value_se.notna().all()))

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
    each = _per_image(rows, images, name, column)
    target = quantities.heading(name).ideal
    direction = bool(up.iloc[0]) if len(up) and not name.endswith(frames.ABOUT) else None
    if each is not None:
        return Numbers(each, statistics.LEVELS, direction, target=target)
    errors = of_net[of_net.metric == f"{name}_se"].drop_duplicates(keys, keep="last")[[*keys, "value"]]
    rows = rows.merge(errors.rename(columns={"value": "value_se"}), "left", keys)
    return Numbers(rows, RUN_LEVELS, direction, target=target)


def _per_image(rows: pd.DataFrame, images: pd.DataFrame, name: str, column: str) -> pd.DataFrame | None:
    """Values of images; of a number of a whole set what each prompt adds to it, in a column that names the network."""
    import numpy as np
    import pandas as pd

    keys = ["run_id", "strength"]
    name = column if column in images else name
    if name not in images:
        return None
    each = images[[*keys, "image_seed", name]].rename(columns={name: "value"})
    each = each.assign(prompt=pd.factorize(images.prompt)[0])  # numbers compare faster; the same ones in every column
    each = each.dropna(subset=["value"])
    means = rows[keys].merge(each.groupby(keys).value.mean().reset_index(), "left", keys).value
    if not np.isclose(means, rows.value, rtol=1e-6, atol=1e-12, equal_nan=True).all():
        return None
    return each.merge(rows.drop(columns="value"), "inner", keys)


def cells(
    found: Numbers, by: Sequence[str], blocks: Sequence[str], bold: bool = True, kept: Kept | None = None
) -> dict[Hashable, Value]:
    """The value of every row (told apart by `by`), the best of each block (a part of `by`) bold."""
    if found.costs:
        return {key: _median(part) for key, part in statistics.split(found.frame, by).items()}
    parts = by_columns(found.frame, by)
    values: dict[Hashable, Value] = {}
    place, contest = list(by).index("method"), bold and found.up is not None and found.judged
    for block in _blocks(parts, [list(by).index(name) for name in blocks]):
        competing = [key for key in block if contest and not method_titles.bound(key[place])]  # type: ignore[index]
        values |= _block(block, found, competing) if kept is None else _kept(kept, block, found, competing)
    return {key: values[key] for key in parts}


def _kept(
    kept: Kept, block: Mapping[Hashable, Columns], found: Numbers, competing: Sequence[Hashable]
) -> dict[Hashable, Value]:
    """The same as `_block`, from before where it was worked out before."""
    asked = (found.levels, found.up, found.target, [key in competing for key in block])
    lines = kept.lines(block, asked, lambda: [astuple(value) for value in _block(block, found, competing).values()])
    made = [Value(*line) for line in lines]
    return {key: replace(value, covers=tuple(value.covers)) for key, value in zip(block, made, strict=True)}


def _block(block: Mapping[Hashable, Columns], found: Numbers, competing: Sequence[Hashable]) -> dict[Hashable, Value]:
    """The values of rows that are compared with each other, of which some compete for the best."""
    rows = Rows(block, "value", found.levels)
    values = {key: _value(rows, key) for key in block}
    if competing:
        _mark_best(values, best(rows, competing, bool(found.up), found.target))
    return values


def _mark_best(values: dict[Hashable, Value], found: Best | None) -> None:
    """The best value bold, and those that cannot be separated from it marked; nothing where most cannot."""
    if found is None or found.bold is None:
        return
    values[found.best] = replace(values[found.best], bold=True)
    for key in found.with_best:
        values[key] = replace(values[key], with_best=True)


def _value(rows: Rows, key: Hashable) -> Value:
    """A mean with its interval."""
    found = statistics.interval_of(rows.row(key))
    return Value(found.mean, found.low, found.high, found.n, found.covers)


def _median(part: pd.DataFrame) -> Value:
    """Of costs the median alone, as one run beside other work would outweigh all others."""
    return Value(float(part.value.median()), n=int(part.value.count()))


def _blocks(parts: Mapping[Any, Columns], places: Sequence[int]) -> list[dict[Hashable, Columns]]:
    found: dict[tuple, dict[Hashable, Columns]] = {}
    for key, part in parts.items():
        found.setdefault(tuple(key[i] for i in places), {})[key] = part
    return list(found.values())
