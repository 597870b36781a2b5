"""Records as data frames.

`frame` has a line per record, strength and metric; `wide` a line per record and strength; `summary` a line per
(method, dataset, backbone, settings, strength) with mean and standard deviation over seeds. A metric's column carries
its network's name, so numbers of unlike networks never share one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import reading
from bench.analysis import stored_rows, variants
from bench.analysis.stored_rows import CELL, COST, SCORE, SETTINGS, STATE, settings_hash
from bench.contracts import BenchError
from bench.store.old_names import today
from bench.store.record import Record, read_record

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CELL", "COST", "SCORE", "SETTINGS", "STATE", "settings_hash"]  # and what is defined below
ABOUT = ("_se", "_null")  # endings of numbers about another number: nobody wins in them
GROUP = ["method", "dataset", "backbone", "settings", "strength"]


def load(root: Path | str, only: Collection[str] | None = None) -> pd.DataFrame:
    """The long table of all records below a folder, through its index. Texts are categories, in their order.

    With `only` these metrics, with their errors and nulls, and these costs are whole; of the others there is a line
    here and there, and no cost.
    """
    from bench.store import index

    def wanted(names: Sequence[str]) -> list[str]:
        costs = [] if only is None else set(COST) - set(only)
        left_out = {index.FOLDER, stored_rows.FIRST, *costs}
        return [name for name in names if name not in left_out]

    whole = {f"{name}{ending}" for name in only or () for ending in ("", *ABOUT)}

    def some(column: Callable[[str], pd.Series]) -> pd.Series:
        return column("metric").isin(whole) | column(stored_rows.FIRST)

    keep = None if only is None else some
    rows = index.load(root, "scores", "record.json", stored_rows.VERSION, stored_rows.scores, wanted, keep)
    return variants.labelled(rows)


def images(root: Path | str, metrics: Collection[str] | None = None) -> pd.DataFrame:
    """Per-image values of all records: run_id, strength, prompt, image_seed (evaluation) and a column per metric.

    With `metrics` only those of these names, on every network.
    """
    from bench.store import index

    def wanted(names: Sequence[str]) -> list[str]:
        about = {index.FOLDER, *reading.INDEX}
        return [name for name in names if metrics is None or name in about or name.partition(" [")[0] in metrics]

    rows = index.load(root, "images", "per_image.csv", "2", stored_rows.per_image, wanted)
    if "prompt" in rows and any(reading.unescaped(prompt) != prompt for prompt in rows.prompt.cat.categories):
        rows["prompt"] = rows.prompt.astype(str).map(reading.unescaped).astype("category")
    return rows.rename(columns={"seed": "image_seed", index.FOLDER: "run_id"})


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """One line per record, strength and metric; a record without scores has one line."""
    return variants.labelled(stored_rows.frame(list(records)))


def long(records: Iterable[Record]) -> pd.DataFrame:
    """Only the numbers: strength, metric, network, value, higher_is_better."""
    table = frame(records)
    return table.loc[table.metric.notna(), SCORE].reset_index(drop=True)


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """One line per record and strength; a column "metric [network]" for each metric."""
    scored = table[table.metric.notna()]
    names = column_names(scored)
    keys = ["run_id", "strength"]
    costs = [cost for cost in COST if cost in table]
    cells = table[[*CELL, "strength", *STATE, *costs]].drop_duplicates(keys)
    values = scored.assign(column=names).drop_duplicates([*keys, "column"], keep="last")
    values = values.pivot(index=keys, columns="column", values="value")[list(dict.fromkeys(names))].reset_index()
    rows = cells.merge(values, on=keys, how="left").sort_values(["dataset", "method", "settings", "strength", "seed"])
    rows.attrs["higher_is_better"] = dict(zip(names, scored.higher_is_better, strict=True))
    return rows.reset_index(drop=True)


def column_names(scored: pd.DataFrame) -> list[str]:
    """ "fid [mini-clip]", or "cost" alone where no network is involved."""
    pairs = scored[["metric", "network"]].drop_duplicates()
    names = {
        (metric, network): f"{metric} [{network}]" if isinstance(network, str) else metric
        for metric, network in zip(pairs.metric, pairs.network, strict=True)
    }
    metrics, networks = scored.metric.to_numpy(object), scored.network.to_numpy(object)
    return [names[pair] for pair in zip(metrics, networks, strict=True)]


def filled(table: pd.DataFrame) -> list[str]:
    """The columns of `wide` that hold a number: metrics in their order, then costs."""
    scored = table[table.metric.notna()]
    pairs = scored.drop_duplicates(["metric", "network"])
    known = scored[scored.value.notna()].drop_duplicates(["metric", "network"])
    have = set(column_names(known))
    return [name for name in column_names(pairs) if name in have] + [
        cost for cost in COST if cost in table and table[cost].notna().any()
    ]


def metric_columns(rows: pd.DataFrame) -> list[str]:
    """The columns of `wide` or `summary` that hold numbers to compare: metrics, then costs."""
    fixed = {*CELL, *STATE, *COST, "strength", "n"}
    costs = [cost for cost in COST if cost in rows]
    return [column for column in rows if column not in fixed and not column.endswith(" sd")] + costs


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds, a column "<name> sd" with the standard deviation (n - 1; NaN for one seed), and n.

    Failed and skipped cells are one line per reason, with n seeds and no numbers.
    """
    import pandas as pd

    rows = wide(table)
    numbers = metric_columns(rows)
    done = rows[rows.status == "done"]
    groups = done.groupby(GROUP, dropna=False)
    parts = [groups.size().rename("n"), groups["deviations"].agg(all_of), groups[numbers].mean()]
    parts.append(groups[numbers].std().add_suffix(" sd"))
    means = pd.concat(parts, axis=1).reset_index().assign(status="done", reason=None)
    other = rows[rows.status != "done"].groupby([*GROUP, "status", "reason"], dropna=False).size()
    joined = pd.concat([means, other.rename("n").reset_index()]) if len(other) else means
    joined.attrs = rows.attrs
    return joined.sort_values(["dataset", "method", "settings", "strength"]).reset_index(drop=True)


def all_of(deviations: Iterable[str]) -> str:
    """What any of these cells departs in."""
    return "; ".join(dict.fromkeys(part for text in deviations for part in text.split("; ") if part))


def where(table: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """Lines that meet all of "column=a,b" (or "column=a,other!=b"); a and b may hold * and ?.

    `dataset` is met by a label, and by the name that the label begins with.
    """
    for condition in [part for text in conditions for part in re.split(r",(?=\w+!?=)", text)]:
        name, equals, wanted = condition.partition("=")
        column = today(name.removesuffix("!"))
        if not equals or column not in table:
            raise BenchError(
                "--where takes column=value[,value] or column!=value with a column of "
                f"{', '.join(table)}; got {condition!r}."
            )
        values = table[column].drop_duplicates()
        met = values[[_meets(_word(value), wanted, column) for value in values]]
        table = table[table[column].isin(met) != name.endswith("!")]
    return table


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _meets(text: str, wanted: str, column: str) -> bool:
    names = [text, text.partition(" (")[0]] if column == "dataset" else [text]
    return text == wanted or any(fnmatch(name, pattern) for name in names for pattern in wanted.split(","))


def configs(root: Path, table: pd.DataFrame) -> dict[str, Mapping[str, Any]]:
    """The settings of one run for each value of the column `settings`, by run id."""
    found = [read_record(root / run / "record.json") for run in table.drop_duplicates("settings").run_id]
    return {record.run_id: record.config for record in found if record is not None}
