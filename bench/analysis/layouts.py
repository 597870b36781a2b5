"""Records laid out as the tables of a paper: methods x metrics, methods x styles, ablations and strength sweeps.

A row is what is averaged over seeds: one (method, backbone, settings, strength), on one dataset or pooled over them.
Datasets are told apart by their content (`analysis.variants`); what differs in form or evaluation is never pooled.
Numbers are of one column when they carry the same name and network; `analysis.fingerprints` says which of those may be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.analysis import (
    fingerprints,
    frames,
    judges,
    method_titles,
    plain_text,
    quantities,
    settings_in_words,
    shown_columns,
    statistics,
    variants,
)
from bench.analysis.settings_in_words import Configs
from bench.analysis.table_model import POOLED, ROW, Column, Numbers, Row, TableModel, Value, cells, numbers
from bench.contracts import BenchError

if TYPE_CHECKING:
    import pandas as pd

    from bench.analysis.kept_numbers import Kept

BOLD = (
    "Bold: the best of the same column{block}. Italic: cannot be separated from the best. All others are behind it "
    "(Hsu's comparison with the best, 95 %). Bounds do not compete."
)
SETS = "a number of the whole set of images without its error over prompts: nothing is decided; score the cells again"
SETS_SE = "a number of the whole set of images: its interval is over trainings, with the error that the record has"
COSTS = "a cost: the median over runs"
FEWER = "a mean over {k} of {most} datasets, unlike the other rows"
ONE = "one training: the intervals are over prompts alone, and it is compared with nothing"
LEVELS = {"dataset": "styles", "seed": "training seeds", "prompt": "prompts"}
ARROWS = {None: "", True: " ↑", False: " ↓"}
RANK = "mean rank"
IDS = "Columns by their ids: {names}. t2i-bench list metrics defines them."


@dataclass(frozen=True)
class Source:
    """What a layout is made of: the long table of the chosen records, and per-image values of all."""

    scores: pd.DataFrame
    images: pd.DataFrame
    mix: bool = False  # unlike fingerprints may share a column
    configs: Callable[[], Configs] | None = dict  # of records, by any name, to say in words what settings are; or not
    kept: Kept | None = None  # numbers that were worked out before
    root: Path | None = None  # folder of the records, where the agreement of judges is kept

    @cached_property
    def done(self) -> pd.DataFrame:
        return self.scores[self.scores.status == "done"]

    def columns(self, names: Sequence[str] | None) -> list[str]:
        return shown_columns.among(frames.filled(self.scores), names)

    def notes(self, columns: Sequence[str]) -> dict[str, list[str]]:
        """Column -> what must be said of its numbers. Raises BenchError for unlike ones that nobody asked to mix."""
        scored = self.done[self.done.metric.notna()]
        scored = scored.assign(column=frames.column_names(scored))
        scored = scored[scored.column.isin(columns)]
        mixed = fingerprints.check(scored, shown_columns.observed(), self.mix)
        said = [{name: f"unlike numbers share this column: {text}" for name, text in mixed.items()}]
        said += [fingerprints.publishable(scored, self.done), judges.notes(scored, self.root)]
        return {column: [notes[column] for notes in said if column in notes] for column in columns}


def metrics(source: Source, names: Sequence[str] | None, pool: bool = False, runs: bool = False) -> TableModel:
    """Methods x metrics: a row per method and dataset, pooled over datasets, or one per run."""
    by = [*(POOLED if pool else ROW), *(["seed"] if runs else [])]
    return _model(source, names, by, bold=not runs)


def sweep(source: Source, names: Sequence[str] | None) -> TableModel:
    """Strength sweeps: rows that have several strengths, in their order. Nothing is bold: it is no contest."""
    several = source.scores.groupby(ROW[:-1], dropna=False).strength.transform("nunique") > 1
    if not several.any():
        raise BenchError("No row has several strengths; draw some with python -m bench ... strength=sweep.")
    return _model(replace(source, scores=source.scores[several]), names, ROW, bold=False)


def ablation(source: Source, names: Sequence[str] | None, configs: Configs) -> TableModel:
    """What differs in the settings becomes columns of its own. `configs` are those of records, by run id."""
    first = source.scores.drop_duplicates("settings").set_index("settings").run_id
    settings = {name: settings_in_words.flat(configs[run]) for name, run in first.items()}
    varied = settings_in_words.varied(settings.values())
    if not varied:
        raise BenchError("All these records have the same settings: no ablation. Choose others with --where.")
    model = _model(replace(source, configs=None), names, ROW)
    for i, row in enumerate(model.rows):
        own = settings[row.key["settings"]]
        model.rows[i] = replace(row, labels=(*row.labels, *[own.get(path, "") for path in varied]))
    model.keys += settings_in_words.short(varied)
    return model


def styles(source: Source, names: Sequence[str] | None) -> TableModel:
    """Methods x styles of one metric, with the mean over styles and, from three rows on, mean ranks."""
    wanted = source.columns(names)
    if len(wanted) != 1:
        raise BenchError(f"The styles layout shows one metric; name one of {', '.join(wanted)} with --metrics.")
    by, found = POOLED, numbers(source.done, source.images, wanted[0])
    blocks = ["backbone", "form", "evaluation"]
    kinds = sorted(found.frame.base.unique())
    grids = {kind: cells(_part(found, found.frame.base == kind), by, blocks) for kind in kinds}
    ranked = grids.copy()
    if len(kinds) > 1:
        everywhere = found.frame.groupby(by, dropna=False).base.transform("nunique") == len(kinds)
        grids[f"all {len(kinds)}"] = cells(_part(found, everywhere), by, blocks)
    model = _rows(source, by)
    marks = tuple(mark for note in source.notes(wanted)[wanted[0]] for mark in model.mark(note))
    model.shared = ", ".join(filter(None, [f"{wanted[0]}{ARROWS[found.up]}", model.shared]))
    _fill(model, {Column(kind, None, found.up, marks): values for kind, values in grids.items()})
    _rank(model, ranked, found.up)
    return _explain(model, "")


def _part(found: Numbers, chosen: pd.Series) -> Numbers:
    return replace(found, frame=found.frame[chosen])


def _rank(model: TableModel, grids: Mapping[str, Mapping[Any, Value]], up: bool | None) -> None:
    """A column of mean ranks, where there are enough rows and styles for it, and what they say."""
    import pandas as pd

    keys = [_key(row) for row in model.rows]
    means = pd.DataFrame([[values.get(key, Value()).mean for key in keys] for values in grids.values()])
    means = means.dropna(axis=1)  # rows that have every style
    if up is None or means.shape[1] < 3 or len(means) < 2:
        return
    found = statistics.ranks(means, up)
    model.columns.append(Column(RANK, None, False))
    for i, row in enumerate(model.rows):
        value = Value(found.mean[i]) if i in found.mean else Value()
        model.rows[i] = replace(row, values=(*row.values, value))
    differ = "differ" if found.p < statistics.ALPHA else "are not shown to differ"
    model.legend.append(
        f"Mean ranks over {found.styles} styles {differ} (Friedman's test by permutation, p = {found.p:.2g}); two that "
        f"are closer than {found.critical_difference:.2f} do not differ (Nemenyi, 5 %)."
    )


# --- how ---------------------------------------------------------------------------------------------------------


def _model(source: Source, names: Sequence[str] | None, by: list[str], bold: bool = True) -> TableModel:
    """A row for each of `by`, a column for each metric."""
    blocks = [key for key in ("dataset", "backbone", "form", "evaluation") if key in by]
    model, grids, columns = _rows(source, by), {}, source.columns(names)
    if names in (None, ["all"]):
        columns = shown_columns.by_group(columns)
    notes = source.notes(columns)
    for name in columns:
        found = numbers(source.done, source.images, name)
        said = [*notes[name], *_about_errors(found)]
        bare, _, network = name.partition(" [")
        marks = tuple(mark for note in said for mark in model.mark(note))
        about = quantities.heading(bare)
        column = Column(bare, network.removesuffix("]") or None, found.up, marks, about.text, about.ideal, about.group)
        grids[column] = cells(found, by, blocks, bold, source.kept)
    _fill(model, grids)
    model = _explain(model, " and dataset" if "dataset" in by else "", contest=bold)
    if any(column.heading != column.name for column in grids):
        model.legend.append(IDS.format(names=", ".join(dict.fromkeys(column.name for column in grids))))
    return model


def _about_errors(found: Numbers) -> list[str]:
    """What must be said of a column's intervals."""
    if found.costs:
        return [COSTS]
    if found.up is None or not found.of_sets:
        return []
    return [SETS_SE if found.judged else SETS]


def _rows(source: Source, by: list[str]) -> TableModel:
    """The table with its rows and their footnotes, without numbers: finished ones, and one for each other status."""
    lines = _lines(source, by)
    keys, shared = _shown(lines, by)
    words = _words(source, lines)
    model = TableModel(keys, shared=shared)
    for line in lines.to_dict("records"):
        marks = model.mark(_text(line["deviations"])) + model.mark(_text(line["fewer"]))
        key, labels = {name: line[name] for name in by}, tuple(_label(line, name, words) for name in keys)
        gone, reason = line["status"] != "done", _text(line["reason"])
        values = (Value(text=line["status"]),) if gone else ()
        model.rows.append(Row(key, labels, values, marks, int(line[_count(by)]), reason, line["bound"]))
        if gone:
            place = f" on {line['dataset']}" if "dataset" in by else ""
            model.reasons.append(f"{line['status']}: {method_titles.title(line['method'])}{place}: {reason}")
    model.reasons = list(dict.fromkeys(model.reasons))
    return model


def _count(by: Sequence[str]) -> str:
    """What the number of a row's cells is: of one dataset they differ in the training seed alone."""
    return "seeds" if "dataset" in by else "cells"


def _shown(lines: pd.DataFrame, by: list[str]) -> tuple[list[str], str]:
    """The columns that tell the rows apart, and a line of what is the same in all of them."""
    order = ("dataset", "form", "evaluation", "method", "backbone", "strength", "seed", _count(by))
    keys = [key for key in order if key in lines and not (lines[key] == variants.DEFAULT).all()]
    if "seed" in by:
        keys.remove("seeds")
    same = [key for key in keys if key != "method" and lines[key].nunique(dropna=key == "strength") == 1]
    said = {key: plain_text.word(lines[key].dropna().iloc[0]) for key in same}
    shared = [f"{n} {key.removesuffix('s') if n == '1' else key}" if key == _count(by) else f"{key} {n}"
              for key, n in said.items()]  # fmt: skip
    return [key for key in keys if key not in same], ", ".join(shared)


def _words(source: Source, lines: pd.DataFrame) -> Mapping[tuple[str, str], str]:
    """What tells the settings of a method from its other ones on the same backbone."""
    if source.configs is None or (lines.groupby(["method", "backbone"], dropna=False).settings.nunique() < 2).all():
        return {}
    keys = set(zip(lines.method, lines.settings, strict=True))
    return settings_in_words.distinctions(keys, settings_in_words.by_settings(source.configs()))


def _label(line: Mapping[str, Any], name: str, words: Mapping[tuple[str, str], str]) -> Any:
    if name != "method":
        return line[name]
    said = words.get((line["method"], line["settings"])) if words else ""
    return method_titles.title(line["method"]) + (f" ({said})" if said else "")


def _lines(source: Source, by: list[str]) -> pd.DataFrame:
    """What tells the rows apart, how many cells, deviations, and "fewer" for a row that pools fewer datasets."""
    import pandas as pd

    n = _count(by)
    groups = source.done.drop_duplicates(["run_id", "strength"]).groupby(by, dropna=False)
    done = pd.concat([groups.size().rename(n), groups.deviations.agg(frames.all_of)], axis=1)
    kinds, most = groups.base.nunique(), source.done.base.nunique()
    if "dataset" not in by:
        done["fewer"] = [FEWER.format(k=k, most=most) if k < most else "" for k in kinds]
    other = source.scores[source.scores.status != "done"].groupby([*by, "status", "reason"], dropna=False)
    parts = [done.reset_index().assign(status="done"), other.size().rename(n).reset_index()]
    lines = pd.concat([part for part in parts if len(part)])
    lines = lines.assign(bound=[method_titles.bound(method) for method in lines.method])
    lines["competes"] = lines.bound == ""
    order = [key for key in ("dataset", "form", "evaluation") if key in by]
    rest = [key for key in ("method", "settings", "strength", "seed") if key in by]
    columns = [*by, n, "deviations", "fewer", "status", "reason", "bound"]
    ascending = [*[True] * len(order), False, *[True] * len(rest)]
    return lines.sort_values([*order, "competes", *rest], ascending=ascending).reindex(columns=columns)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row.key.values())


def _fill(model: TableModel, grids: Mapping[Column, Mapping[Any, Value]]) -> None:
    """The numbers into the rows; a row without any keeps its status in front."""
    model.columns = list(grids)
    for i, row in enumerate(model.rows):
        values = tuple(grid.get(_key(row), Value()) for grid in grids.values())
        if row.values:
            values = (*row.values, *values[1:])[: len(values)]
        model.rows[i] = replace(row, values=values)


def _explain(model: TableModel, block: str, contest: bool = True) -> TableModel:
    """What brackets and bold mean, which rows rest on one training, and where nothing was decided."""
    for i, row in enumerate(model.rows):
        if contest and any(value.covers == ("prompt",) for value in row.values):
            model.rows[i] = replace(row, marks=(*row.marks, *model.mark(ONE)))
    covered = {level for row in model.rows for value in row.values for level in value.covers}
    *most, last = [word for level, word in LEVELS.items() if level in covered] or [""]
    over = f"{', '.join(most)} and {last}" if most else last
    model.legend = ([f"Brackets: 95 % intervals over {over}."] if over else []) + model.legend
    decided = [any(row.values[i].bold for row in model.rows if row.values) for i in range(len(model.columns))]
    if any(decided):
        model.legend.append(BOLD.format(block=block))
    places = [i for i, column in enumerate(model.columns) if not decided[i] and _judged(column) and _leads(model, i)]
    if contest and places:
        names = ", ".join(_name(model.columns[i]) for i in places)
        model.legend.append(f"Inconclusive, most rows cannot be separated from the best: {names}.")
    return model


def _name(column: Column) -> str:
    return f"{column.title} [{column.network}]" if column.network else column.title


def _judged(column: Column) -> bool:
    return column.up is not None and column.name != RANK


def _leads(model: TableModel, i: int) -> bool:
    """Whether any two rows of one dataset differ in a column."""
    means: dict[Any, set[float]] = {}
    for row in model.rows:
        means.setdefault(row.key.get("dataset"), set()).add(row.values[i].mean)
    return any(len([mean for mean in found if mean == mean]) > 1 for found in means.values())
