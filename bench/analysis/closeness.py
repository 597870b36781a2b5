"""How close methods come to the style, laid out so that they can be compared at equal closeness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from bench.analysis import shown_columns, statistics
from bench.analysis.layouts import Source
from bench.analysis.matched import Pair, StrengthSweep
from bench.analysis.table_model import Numbers, numbers
from bench.contracts import Impossible

if TYPE_CHECKING:
    import pandas as pd


NOTHING = "A and B have no training seed in common"


def closeness(source: Source, column: str) -> Numbers:
    """The numbers of a column, per image where the records bear out that it is a straight line of such a column's mean.

    `per_image` of conf/table.yaml names the column; that all methods of a dataset share the line is checked.
    """
    found = numbers(source.done, source.images, column)
    name, bracket, network = column.partition(" [")
    stand = shown_columns.per_image().get(name)
    if not found.of_sets or stand is None:
        return found
    other = numbers(source.done, source.images, f"{stand}{bracket}{network}")
    lined = None if other.of_sets else _lined(found, other)
    return found if lined is None else replace(other, frame=lined, up=found.up)


def _lined(found: Numbers, other: Numbers) -> pd.DataFrame | None:
    """The values of `other` on the scale of `found`; None where no straight line leads there on some dataset."""
    import pandas as pd

    keys = ["run_id", "strength"]
    means = found.frame.set_index(keys).value.to_frame("to").join(other.frame.groupby(keys).value.mean().rename("at"))
    places = other.frame[["dataset", "backbone", *keys]].drop_duplicates(keys).set_index(keys)
    parts = []
    for place, part in statistics.split(means.join(places), ["dataset", "backbone"]).items():
        low, high = part["at"].to_numpy().argmin(), part["at"].to_numpy().argmax()
        run = part["at"].iloc[high] - part["at"].iloc[low]
        slope = (part.to.iloc[high] - part.to.iloc[low]) / run if run > 0 else math.nan
        line = part.to.iloc[low] + slope * (part["at"] - part["at"].iloc[low])
        if not np.allclose(line, part.to, rtol=1e-5, atol=1e-6):
            return None
        mine = other.frame[(other.frame[["dataset", "backbone"]] == list(place)).all(axis=1)]  # type: ignore[call-overload]
        parts.append(mine.assign(value=part.to.iloc[low] + slope * (mine.value - part["at"].iloc[low])))
    return pd.concat(parts) if parts else None


@dataclass(frozen=True, eq=False)
class Side:
    """A method on one dataset: what is compared and how close it comes to the style, a line per image or run."""

    lines: pd.DataFrame
    close: pd.DataFrame

    @cached_property
    def wide(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Closeness and what is compared, a column per strength: means over evaluation seeds."""
        return _wide(self.close), _wide(self.lines)

    def grids(self, seeds: Sequence[int], prompts: Sequence[int], strengths: Sequence[float]) -> list[np.ndarray]:
        """Both as (G, n, S), NaN where there are none; a number of a set stands for each prompt."""
        return [_grid(wide, seeds, prompts, strengths) for wide in self.wide]


def pair_of(a: Side, b: Side, default: float, prompts: Sequence[int] | None = None) -> Pair:
    """Both methods' numbers on one dataset, of the training seeds, prompts and strengths that are whole."""
    seeds = sorted(set(a.lines.seed) & set(b.lines.seed))
    if not seeds:
        raise Impossible(NOTHING)
    known = prompts_of(a.lines, b.lines, a.close, b.close) if prompts is None else prompts
    strengths = sorted(s for s, part in a.lines.groupby("strength") if set(seeds) <= set(part.seed))
    ax, ay = a.grids(seeds, known, strengths)
    bx, by = b.grids(seeds, known, [default])
    ax, bx = _shared(ax, bx)
    ay, by = _shared(ay, by)
    for values in (ax, ay):
        if not np.isfinite(values).all(axis=(0, 2)).any():
            raise Impossible("A and B have no prompt in common for which both numbers are known")
    return Pair(StrengthSweep(ax, ay), StrengthSweep(bx, by))


def prompts_of(*frames: pd.DataFrame) -> list[int]:
    """All prompts of any of them; one where all hold numbers of whole sets."""
    return sorted({p for lines in frames if "prompt" in lines for p in lines.prompt}) or [0]


def _wide(lines: pd.DataFrame) -> pd.DataFrame:
    units = ["seed", "prompt"] if "prompt" in lines else "seed"
    return lines.pivot_table(index=units, columns="strength", values="value")


def _grid(wide: pd.DataFrame, seeds: Sequence[int], prompts: Sequence[int], strengths: Sequence[float]) -> np.ndarray:
    import pandas as pd

    if wide.index.nlevels == 1:
        values = wide.reindex(index=seeds, columns=strengths).to_numpy()[:, None, :]
        return np.repeat(values, len(prompts), axis=1)
    made = wide.reindex(index=pd.MultiIndex.from_product([seeds, prompts]), columns=strengths)
    return made.to_numpy().reshape(len(seeds), len(prompts), len(strengths))


def _shared(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """NaN for the prompts that are not known on both sides, so that both are averaged over the same ones."""
    known = np.isfinite(a).all(axis=(0, 2)) & np.isfinite(b).all(axis=(0, 2))
    keep = known[None, :, None]
    return np.where(keep, a, np.nan), np.where(keep, b, np.nan)
