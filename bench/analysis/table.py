"""All records as one table: python -m bench.table --where method=pair,dreambooth --latex table.tex

`frame` has a line per record, strength and metric; `wide` a line per record and strength; `summary` a line per
(method, dataset, backbone, settings, strength) with mean and standard deviation over seeds. The command shows what
`analysis.layouts` makes of them: means with 95 % intervals, bold where significant. A metric's column carries its
network's name, so numbers of unlike networks never share one; numbers of otherwise unlike fingerprints are refused
(`analysis.fingerprints`). Failed and skipped cells are lines with their reason. Where a cell departs from the
experiment's fairness contract, its method carries a mark and a footnote says how.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import paths
from bench.cell import own_strength_of
from bench.contracts import BenchError
from bench.fairness import PREFIX
from bench.files import atomic_write
from bench.settings import digest
from bench.store.record import Record, read_record

if TYPE_CHECKING:
    import pandas as pd

    from bench.analysis.comparisons import Asked
    from bench.analysis.layouts import Source
    from bench.analysis.table_model import Sheet

CELL = ["method", "dataset", "backbone", "settings", "seed"]
STATE = ["status", "reason", "deviations", "run_id"]
SCORE = ["strength", "metric", "network", "value", "higher_is_better"]
COST = (
    "load_s baseline_s prior_s train_s sample_s score_s images_per_s steps_per_s peak_gb adapter_bytes "
    "trainable_parameters"
).split()
GROUP = ["method", "dataset", "backbone", "settings", "strength"]
ALL = [*CELL, *SCORE, "own", *STATE, *COST, "fingerprint"]  # own: at the strength that the method's settings name
VERSION = f"3 {' '.join(ALL)}"  # of the rows in the index; raise the number when they are read otherwise
SETTINGS = ("method", "backbone", "trainer", "sampler")  # parts of a cell's config on which `settings` depends
LAYOUTS = ("metrics", "styles", "ablation", "curve")
RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
CONF = paths.CONF / "table.yaml"


def load(root: Path | str) -> pd.DataFrame:
    """The long table of all records below a folder, through its index."""
    from bench.store import index

    return index.load(root, "scores", "record.json", VERSION, _scores).drop(columns=index.FOLDER)


def images(root: Path | str) -> pd.DataFrame:
    """Per-image values of all records: run_id, strength, prompt, image_seed (evaluation) and a column per metric."""
    from bench.store import index

    return index.load(root, "images", "per_image.csv", "1", _per_image).rename(columns={index.FOLDER: "run_id"})


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """One line per record, strength and metric; a record without scores has one line."""
    return _typed([line for record in records for line in _lines(record)])


def _typed(lines: Sequence[Mapping[str, Any]], *more: str) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame(lines, columns=[*ALL, *more])
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
    parts = [(name, csv.read_csv(path, None, lines, words)) for name, path in whole if path.stat().st_size]
    named = [part.append_column("folder", pyarrow.array([name] * len(part), pyarrow.string())) for name, part in parts]
    empty = pyarrow.table({"folder": pyarrow.array([], pyarrow.string())})
    found = pyarrow.concat_tables([empty, *named], promote_options="permissive").to_pandas()
    return found.rename(columns={"seed": "image_seed"})


def long(records: Iterable[Record]) -> pd.DataFrame:
    """Only the numbers: strength, metric, network, value, higher_is_better."""
    table = frame(records)
    return table.loc[table.metric.notna(), SCORE].reset_index(drop=True)


def _lines(record: Record) -> list[dict[str, Any]]:
    cell = {key: _name(record.config.get(key)) for key in CELL if key != "settings"}
    head = {**cell, "settings": _settings(record.config), "status": record.status, "reason": record.reason}
    head |= {"deviations": "; ".join(_deviations(record)), "run_id": record.run_id}
    head |= {key: record.cost.get(key) for key in COST}
    own = own_strength_of(record.config)
    scores = [score for score in record.scores if score.get("metric") is not None]
    return [head | {"own": score.get("strength") == own} | _score(score) for score in scores] or [head]


def _score(score: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of a record; its fingerprint as text, equal for numbers that are alike."""
    about = json.dumps(score.get("fingerprint") or {}, sort_keys=True)
    return {key: score.get(key) for key in SCORE} | {"fingerprint": about}


def _deviations(record: Record) -> list[str]:
    return [note.removeprefix(PREFIX) for note in record.notes if note.startswith(PREFIX)]


def _name(value: Any) -> Any:
    return value.get("name") if isinstance(value, Mapping) else value


def _settings(config: Mapping[str, Any]) -> str:
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
    """Lines that meet all of "column=a,b" (or "column=a,other=b"); a and b may hold * and ?."""
    for condition in [part for text in conditions for part in re.split(r",(?=\w+=)", text)]:
        column, equals, wanted = condition.partition("=")
        if not equals or column not in table:
            raise BenchError(
                f"--where takes column=value[,value] with a column of {', '.join(table)}; got {condition!r}."
            )
        patterns = wanted.split(",")
        texts = table[column].map(lambda value: f"{value:g}" if isinstance(value, float) else str(value))
        table = table[[any(fnmatch(text, pattern) for pattern in patterns) for text in texts]]
    return table


# --- showing -----------------------------------------------------------------------------------------------------


@cache
def _settings_of_tables() -> dict[str, Any]:
    import yaml

    return yaml.safe_load(CONF.read_text())


def headline() -> list[str]:
    """Names of the columns shown first, from conf/table.yaml."""
    return _settings_of_tables()["headline"]


def observed() -> frozenset[str]:
    """Parts of a fingerprint in which numbers of one column may differ, from conf/table.yaml."""
    return frozenset(_settings_of_tables()["observed"])


def per_image() -> dict[str, str]:
    """Number of a set -> per-image column of whose mean it may be a straight line, from conf/table.yaml."""
    return _settings_of_tables()["per_image"]


def choose(rows: pd.DataFrame, metrics: Sequence[str] | None = None) -> list[str]:
    """Columns to show: the headline, those named (without or with their network), or ["all"] that hold a number."""
    have = [column for column in metric_columns(rows) if rows[column].notna().any()]
    if metrics == ["all"]:
        return have
    wanted = metrics or headline()
    unknown = [name for name in metrics or [] if name not in {_bare(column) for column in have} | set(have)]
    if unknown:
        raise BenchError(f"No record has the metric {', '.join(unknown)}; there are {', '.join(have) or 'none'}.")
    return [column for name in wanted for column in have if name in (column, _bare(column))]


def _bare(column: str) -> str:
    return column.partition(" [")[0]


def render(rows: pd.DataFrame, metrics: Sequence[str] | None = None, style: str = "simple") -> str:
    """A readable text of `wide` or `summary`: what all lines share stands above, footnotes and reasons below."""
    import tabulate

    if rows.empty:
        return "No record."
    tabulate.MIN_PADDING = 0  # else each heading is two letters wider
    shared, keys = shown_keys(rows)
    chosen = choose(rows, metrics)
    head = [*keys, *[_heading(column, rows.attrs.get("higher_is_better", {}), style) for column in chosen]]
    marks = _marks(rows)
    body = [[_text(row[key]) for key in keys] + _cells(row, chosen) for row in _dicts(rows)]
    for line, row in zip(body, _dicts(rows), strict=True):
        line[0] += marks.get(row["deviations"], "")
    align = ["left"] * len(keys) + ["right"] * len(chosen)
    text = tabulate.tabulate(body, head, tablefmt=style, colalign=align, disable_numparse=True)
    return "\n\n".join(part for part in (shared, text, _footnotes(marks, style), _reasons(rows, style)) if part)


def _dicts(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return rows.to_dict("records")


def shown_keys(rows: pd.DataFrame) -> tuple[str, list[str]]:
    """A line of what is the same everywhere, and the columns that tell the lines apart."""
    keys = [key for key in ("method", "dataset", "backbone", "strength", "seed", "n") if key in rows]
    same = [key for key in keys if key not in CELL[:2] and rows[key].nunique(dropna=False) == 1]
    shared = ", ".join(f"{key} {_text(rows[key].iloc[0])}" for key in same)
    if (rows.groupby(["method", "backbone"], dropna=False).settings.nunique() > 1).any():
        keys.insert(keys.index("backbone") + 1, "settings")
    return shared, [key for key in keys if key not in same]


def _heading(column: str, higher: Mapping[str, Any], style: str) -> str:
    """Name, direction and network; in the terminal on several short lines."""
    up = higher.get(column)
    arrow = "" if up is None else " ↑" if up else " ↓"
    name, bracket, network = column.partition(" [")
    parts = [name + arrow, bracket.strip() + network]
    if style == "pipe":
        return " ".join(filter(None, parts))
    return "\n".join(line for part in parts for line in short_lines(part))


def short_lines(text: str, width: int = 12) -> list[str]:
    """Break behind _ and - so that lines stay short."""
    lines = [""]
    for word in re.findall(r"[^_-]*[_-]?", text):
        if len(lines[-1]) + len(word) > width and lines[-1]:
            lines.append("")
        lines[-1] += word
    return [line for line in lines if line]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:g}"
    return "" if value is None else str(value)


def _cells(row: Mapping[str, Any], chosen: Sequence[str]) -> list[str]:
    """The numbers of a line, or "failed" or "skipped" in the first one's place."""
    numbers = [_number(row, column) for column in chosen]
    return numbers if row["status"] == "done" else [row["status"], *numbers[1:]][: len(chosen)]


def _number(row: Mapping[str, Any], column: str) -> str:
    """Four figures, or as many as the standard deviation's second figure warrants."""
    value, spread = row[column], row.get(f"{column} sd", math.nan)
    if math.isnan(value):
        return ""
    if math.isnan(spread) or spread <= 1e-9 * abs(value):  # the same number, but for the last bits
        return f"{value:.4g}"
    places = max(0, 1 - math.floor(math.log10(spread)))
    return f"{value:.{places}f}±{spread:.{places}f}"


def _marks(rows: pd.DataFrame) -> dict[Any, str]:
    """A raised number for each departure from the fairness contract, in the order of the lines."""
    found = [text for text in dict.fromkeys(rows.deviations) if isinstance(text, str) and text]
    return {text: str(i).translate(RAISED) for i, text in enumerate(found, start=1)}


def _footnotes(marks: Mapping[Any, str], style: str) -> str:
    start = "- " if style == "pipe" else ""
    return "\n".join(f"{start}{mark} {text}" for text, mark in marks.items())


def _reasons(rows: pd.DataFrame, style: str) -> str:
    """A line for each cell that has no numbers."""
    bad = [row for row in _dicts(rows) if row["status"] != "done"]
    lines = [f"{row['status']}: {row['method']} on {row['dataset']}: {_text(row['reason'])}" for row in bad]
    start = "- " if style == "pipe" else ""
    return "\n".join(start + line for line in dict.fromkeys(lines))


# --- command line ------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(prog="python -m bench.table", description="Show all records as one table.")
    parse.add_argument("--results", type=Path, default=Path("results"), help="folder of the records")
    parse.add_argument("--where", nargs="+", action="extend", default=[], metavar="COLUMN=A,B", help="* and ? match")
    parse.add_argument("--by", choices=("seeds", "runs"), default="seeds", help="mean over seeds, or each run")
    parse.add_argument("--layout", choices=LAYOUTS, default=LAYOUTS[0], help="what stands in rows and columns")
    parse.add_argument("--compare", metavar="METRIC", help="every pair of methods: difference, effect, p, verdict")
    parse.add_argument(
        "--matched", metavar="METRIC", help="compare where one's strength curve meets the other's METRIC"
    )
    parse.add_argument("--pool", action="store_true", help="one row for all datasets, with intervals over them")
    parse.add_argument("--metrics", help="names, comma-separated, or all; default: conf/table.yaml")
    parse.add_argument("--mix", action="store_true", help="unlike fingerprints may share a column, with a footnote")
    parse.add_argument("--shape", choices=("wide", "long"), default="wide", help="of csv and parquet, all columns")
    for kind in ("csv", "parquet", "markdown", "latex", "html"):
        parse.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"also write {kind}")
    return parse


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if options.matched and not options.compare:
        raise BenchError("--matched METRIC says where methods are compared; say in what with --compare METRIC.")
    table = where(load(options.results), options.where)
    if table.empty:
        print("No record.")
        return
    from bench.analysis import formats

    shown = lay_out(options, table, options.metrics.split(",") if options.metrics else None)
    print(formats.text(shown))
    for kind, make in (("markdown", formats.markdown), ("latex", formats.latex), ("html", formats.html)):
        if path := getattr(options, kind):
            atomic_write(path, make(shown).encode())
    if options.csv or options.parquet:
        write(_as_frame(options, table, shown), options.csv, options.parquet)


def _as_frame(options: argparse.Namespace, table: pd.DataFrame, shown: Sheet) -> pd.DataFrame:
    """All columns of what is shown; of runs, the lines of their records themselves."""
    from bench.analysis import formats

    if options.compare:
        return compared(options, table).frame()
    long = options.shape == "long"
    if options.layout == "metrics" and options.by == "runs":
        return table if long else wide(table)
    whole = shown if options.layout == "styles" else lay_out(options, table, ["all"])
    return formats.long(whole) if long else formats.wide(whole)


def lay_out(options: argparse.Namespace, table: pd.DataFrame, names: Sequence[str] | None) -> Sheet:
    """The sheet that the command line asks for, of some metrics."""
    from bench.analysis import layouts

    if options.compare:
        return compared(options, table).sheet()
    source = _source(options, table)
    if options.layout == "styles":
        return layouts.styles(source, names)
    if options.layout == "ablation":
        return layouts.ablation(source, names, configs(options.results, table))
    if options.layout == "curve":
        return layouts.curve(source, names)
    return layouts.metrics(source, names, options.pool, options.by == "runs")


def _source(options: argparse.Namespace, table: pd.DataFrame) -> Source:
    from bench.analysis import layouts

    per_image = images(options.results)
    return layouts.Source(table, per_image[per_image.run_id.isin(table.run_id)], options.mix)


def compared(options: argparse.Namespace, table: pd.DataFrame) -> Asked:
    """The comparison that the command line asks for."""
    from bench.analysis import comparisons

    known = configs(options.results, table)
    return comparisons.asked(_source(options, table), known, options.compare, options.matched)


def configs(root: Path, table: pd.DataFrame) -> dict[str, Mapping[str, Any]]:
    """The settings of one run for each value of the column `settings`, by run id."""
    found = [read_record(root / run / "record.json") for run in table.drop_duplicates("settings").run_id]
    return {record.run_id: record.config for record in found if record is not None}


def write(rows: pd.DataFrame, csv: Path | None, parquet: Path | None) -> None:
    """A frame as files."""
    if csv:
        atomic_write(csv, rows.to_csv(index=False).encode())
    if parquet:
        atomic_write(parquet, rows.to_parquet(index=False))
