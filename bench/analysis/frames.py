"""Records as data frames.

`frame` has a line per record, strength and metric; `wide` a line per record and strength; `summary` a line per
(method, dataset, backbone, settings, strength) with mean and standard deviation over seeds. A metric's column carries
its network's name, so numbers of unlike networks never share one.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import reading
from bench.analysis import variants
from bench.cell import default_strength_of
from bench.contracts import BenchError
from bench.fairness import PREFIX
from bench.settings import digest
from bench.store.old_names import today
from bench.store.record import Record, read_record

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)
CELL = ["method", "dataset", "backbone", "settings", "seed"]
STATE = ["status", "reason", "deviations", "run_id"]
SCORE = ["strength", "metric", "network", "value", "higher_is_better"]
COST = (
    "load_s baseline_s prior_s train_s sample_s score_s images_per_s steps_per_s peak_gb adapter_bytes "
    "trainable_parameters"
).split()
GROUP = ["method", "dataset", "backbone", "settings", "strength"]
READ = [
    *CELL,
    *variants.KEPT,
    *SCORE,
    "default_strength",
    *STATE,
    *COST,
    "fingerprint",
]  # default_strength: at the strength that the method's settings name
VERSION = f"5 {' '.join(READ)}"  # of the rows in the index; raise the number when they are read otherwise
SETTINGS = ("method", "backbone", "trainer", "sampler")  # parts of a cell's config on which `settings` depends


def load(root: Path | str) -> pd.DataFrame:
    """The long table of all records below a folder, through its index."""
    from bench.store import index

    found = index.load(root, "scores", "record.json", VERSION, _scores).drop(columns=index.FOLDER)
    return variants.labelled(found)


def images(root: Path | str) -> pd.DataFrame:
    """Per-image values of all records: run_id, strength, prompt, image_seed (evaluation) and a column per metric."""
    from bench.store import index

    return index.load(root, "images", "per_image.csv", "1", _per_image).rename(columns={index.FOLDER: "run_id"})


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """One line per record, strength and metric; a record without scores has one line."""
    return variants.labelled(_typed([line for record in records for line in _lines(record)]))


def _typed(lines: Sequence[Mapping[str, Any]], *more: str) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame(lines, columns=[*READ, *more])
    return table.astype({"strength": float, "value": float} | dict.fromkeys(COST, float))


def _scores(folders: Sequence[Path]) -> pd.DataFrame:
    found = [(folder.name, read_record(folder / "record.json")) for folder in folders]
    return _typed([line | {"folder": name} for name, record in found if record for line in _lines(record)], "folder")


def _per_image(folders: Sequence[Path]) -> pd.DataFrame:
    import pyarrow
    from pyarrow import csv

    words = csv.ConvertOptions(column_types={"prompt": pyarrow.string()})
    lines = csv.ParseOptions(newlines_in_values=True)
    whole = [(folder.name, folder / "per_image.csv") for folder in folders]
    parts = [(name, part) for name, path in whole if (part := _table(path, lines, words)) is not None]
    named = [part.append_column("folder", pyarrow.array([name] * len(part), pyarrow.string())) for name, part in parts]
    empty = pyarrow.table({"folder": pyarrow.array([], pyarrow.string())})
    found = pyarrow.concat_tables([empty, *named], promote_options="permissive").to_pandas()
    return found.rename(columns={"seed": "image_seed"})


def _table(path: Path, lines: Any, words: Any) -> Any:
    """A per_image.csv as a table of Arrow, None where it is empty; a damaged one costs a warning line."""
    import pyarrow
    from pyarrow import csv, types

    try:
        data = reading.content(path)
        if not data:
            return None
        part = csv.read_csv(pyarrow.BufferReader(data), None, lines, words)
        numbers = (types.is_floating, types.is_integer, types.is_null)
        odd = [f.name for f in part.schema if f.name != "prompt" and not any(kind(f.type) for kind in numbers)]
        absent = [name for name in reading.INDEX if name not in part.column_names]
        if odd or absent or len(set(part.column_names)) < part.num_columns or "folder" in part.column_names:
            raise reading.Damaged(f"its column {(odd or absent or ['names'])[0]} is not as it should be")
        return part
    except (OSError, ValueError, BenchError, pyarrow.ArrowException) as error:
        log.warning("%s was left out: %s.", path, " ".join(str(error).split()))
        return None


def trained(table: pd.DataFrame) -> pd.Series:
    """Whether each line's cell trained anything; where a record does not say, it did."""
    said = table.score_s.notna() & table.train_s.isna()
    return ~(said & (table.trainable_parameters.fillna(0) == 0))


def long(records: Iterable[Record]) -> pd.DataFrame:
    """Only the numbers: strength, metric, network, value, higher_is_better."""
    table = frame(records)
    return table.loc[table.metric.notna(), SCORE].reset_index(drop=True)


def _lines(record: Record) -> list[dict[str, Any]]:
    cell = {key: variants.name_of(record.config.get(key)) for key in CELL if key != "settings"}
    cell |= variants.of_config(record.config)
    head = {**cell, "settings": settings_hash(record.config), "status": record.status, "reason": record.reason}
    head |= {"deviations": "; ".join(_deviations(record)), "run_id": record.run_id}
    head |= {key: record.cost.get(key) for key in COST}
    default = default_strength_of(record.config)
    scores = [score for score in record.scores if score.get("metric") is not None]
    return [head | {"default_strength": score.get("strength") == default} | _score(score) for score in scores] or [head]


def _score(score: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of a record; its fingerprint as text, equal for numbers that are alike."""
    about = json.dumps(score.get("fingerprint") or {}, sort_keys=True)
    return {key: score.get(key) for key in SCORE} | {"fingerprint": about}


def _deviations(record: Record) -> list[str]:
    return [note.removeprefix(PREFIX) for note in record.notes if note.startswith(PREFIX)]


def settings_hash(config: Mapping[str, Any]) -> str:
    """A short hash of everything but the dataset and the seed: cells that differ in it are not averaged."""
    what = {key: config.get(key) for key in SETTINGS}
    return digest(what, 6)


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """One line per record and strength; a column "metric [network]" for each metric."""
    scored = table[table.metric.notna()]
    names = column_names(scored)
    keys = ["run_id", "strength"]
    cells = table[[*CELL, "strength", *STATE, *COST]].drop_duplicates(keys)
    values = scored.assign(column=names).drop_duplicates([*keys, "column"], keep="last")
    values = values.pivot(index=keys, columns="column", values="value")[list(dict.fromkeys(names))].reset_index()
    rows = cells.merge(values, on=keys, how="left").sort_values(["dataset", "method", "settings", "strength", "seed"])
    rows.attrs["higher_is_better"] = dict(zip(names, scored.higher_is_better, strict=True))
    return rows.reset_index(drop=True)


def column_names(scored: pd.DataFrame) -> list[str]:
    """ "fid [mini-clip]", or "cost" alone where no network is involved."""
    pairs = zip(scored.metric, scored.network, strict=True)
    return [f"{metric} [{network}]" if isinstance(network, str) else metric for metric, network in pairs]


def metric_columns(rows: pd.DataFrame) -> list[str]:
    """The columns of `wide` or `summary` that hold numbers to compare: metrics, then costs."""
    fixed = {*CELL, *STATE, *COST, "strength", "n"}
    return [column for column in rows if column not in fixed and not column.endswith(" sd")] + COST


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
        texts = table[column].map(lambda value: f"{value:g}" if isinstance(value, float) else str(value))
        met = {text for text in texts.unique() if _meets(text, wanted, column)}
        table = table[texts.isin(met) != name.endswith("!")]
    return table


def _meets(text: str, wanted: str, column: str) -> bool:
    names = [text, text.partition(" (")[0]] if column == "dataset" else [text]
    return text == wanted or any(fnmatch(name, pattern) for name in names for pattern in wanted.split(","))


def configs(root: Path, table: pd.DataFrame) -> dict[str, Mapping[str, Any]]:
    """The settings of one run for each value of the column `settings`, by run id."""
    found = [read_record(root / run / "record.json") for run in table.drop_duplicates("settings").run_id]
    return {record.run_id: record.config for record in found if record is not None}
