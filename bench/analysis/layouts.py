"""Records laid out as the tables of a paper: methods x metrics, methods x styles, ablations and strength sweeps.

A row is what is averaged over seeds: one (method, backbone, settings, strength), on one dataset or pooled over them.
Datasets are told apart by their content (`analysis.variants`); what differs in form or evaluation is never pooled.
Numbers are of one column when they carry the same name and network; `analysis.fingerprints` says which of those may be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from bench.analysis import fingerprints, frames, plain_text, shown_columns, statistics
from bench.analysis.table_model import POOLED, ROW, Column, Numbers, Row, TableModel, Value, cells, numbers
from bench.contracts import BenchError
from bench.settings import canonical

if TYPE_CHECKING:
    import pandas as pd

BOLD = (
    "Bold: the best, and what does not differ from it, where they leave another row of the same column{block} "
    "significantly behind (paired by prompt and seed, 5 %, Holm over all pairs)."
)
SETS = "a number of the whole set of images: its interval is over trainings, with its own error where the record has it"
COSTS = "a cost: the median over runs"
FEWER = "a mean over {k} of {most} datasets, unlike the other rows"
ONE = "one training: the intervals are over prompts alone, and it is compared with nothing"
LEVELS = {"dataset": "styles", "seed": "training seeds", "prompt": "prompts"}
ARROWS = {None: "", True: " ↑", False: " ↓"}
RANK = "mean rank"
LONGEST = 40  # letters of the settings that tell two rows of one method apart; above, their hash stands instead
LABELS = ("name", "_target_", "files")  # of a part of the settings: not what an ablation varies

Configs = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Source:
    """What a layout is made of: the long table of the chosen records, and per-image values of all."""

    scores: pd.DataFrame
    images: pd.DataFrame
    mix: bool = False  # unlike fingerprints may share a column

    @cached_property
    def done(self) -> pd.DataFrame:
        return self.scores[self.scores.status == "done"]

    def columns(self, names: Sequence[str] | None) -> list[str]:
        return shown_columns.choose(frames.wide(self.scores), names)

    def notes(self, columns: Sequence[str]) -> dict[str, list[str]]:
        """Column -> what must be said of its numbers. Raises BenchError for unlike ones that nobody asked to mix."""
        scored = self.done[self.done.metric.notna()]
        scored = scored.assign(column=frames.column_names(scored))
        scored = scored[scored.column.isin(columns)]
        mixed = fingerprints.check(scored, shown_columns.observed(), self.mix)
        said = [{name: f"unlike numbers share this column: {text}" for name, text in mixed.items()}]
        said.append(fingerprints.publishable(scored))
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
    settings = {name: dict(_flat(configs[run])) for name, run in first.items()}
    varied = _varied(settings.values())
    if not varied:
        raise BenchError("All these records have the same settings: no ablation. Choose others with --where.")
    model = _model(source, names, ROW)
    kept = [i for i, key in enumerate(model.keys) if key != "settings"]
    for i, row in enumerate(model.rows):
        own = settings[row.key["settings"]]
        labels = [row.labels[j] for j in kept] + [own.get(path, "") for path in varied]
        model.rows[i] = replace(row, labels=tuple(labels))
    model.keys = [model.keys[j] for j in kept] + _short(varied)
    return model


def _differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of each of several settings what tells it from the others, as "prior_weight=0, rank=8"."""
    settings = [dict(_flat(config)) for config in configs]
    varied = _varied(settings)
    names = _short(varied)
    return [
        ", ".join(f"{name}={own.get(path, '')}" for name, path in zip(names, varied, strict=True)) for own in settings
    ]


def _varied(settings: Iterable[Mapping[str, str]]) -> list[str]:
    """The paths at which not all have the same value."""
    known = list(settings)
    paths = dict.fromkeys(path for values in known for path in values)
    return [path for path in paths if len({values.get(path, "") for values in known}) > 1]


def by_settings(configs: Configs) -> Configs:
    """The configurations of records under the hashes that stand in the column `settings`."""
    return {frames.settings_hash(config): config for config in configs.values()}


def labels(keys: Iterable[tuple[str, str]], configs: Configs) -> dict[Any, str]:
    """Names of (method, settings): the method, and where it has several settings what tells them apart."""
    words = distinctions(keys, configs)
    methods = [method for method, _ in words]
    return {key: key[0] if methods.count(key[0]) == 1 else f"{key[0]} {said}" for key, said in words.items()}


def distinctions(keys: Iterable[tuple[str, str]], configs: Configs) -> dict[tuple[str, str], str]:
    """What tells the settings of a method from its other ones; their hash where that is long or there are no others."""
    found: dict[tuple[str, str], str] = {}
    for method, group in groupby(sorted(keys), key=itemgetter(0)):
        hashes = [settings for _, settings in group]
        words = _differences([configs.get(name, {}) for name in hashes])
        short = len(hashes) > 1 and len(set(words)) == len(words) and max(map(len, words)) <= LONGEST
        found |= {(method, name): said for name, said in zip(hashes, words if short else hashes, strict=True)}
    return found


def _flat(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """("method.recipe.lr", "0.0001") for every setting that a row's images depend on."""
    for part in frames.SETTINGS:
        yield from _leaves(part, config.get(part))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in LABELS:
                yield from _leaves(f"{path}.{key}", item)
    else:
        yield path, value if isinstance(value, str) else canonical(value)


def _short(paths: Sequence[str]) -> list[str]:
    """Without their first part, where that leaves them apart."""
    short = [path.partition(".")[2] or path for path in paths]
    return [name if short.count(name) == 1 else path for name, path in zip(short, paths, strict=True)]


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
    notes = source.notes(columns)
    for name in columns:
        found = numbers(source.done, source.images, name)
        said = [*notes[name], *([COSTS] if found.costs else [SETS] if found.of_sets and found.up is not None else [])]
        bare, _, network = name.partition(" [")
        marks = tuple(mark for note in said for mark in model.mark(note))
        column = Column(bare, network.removesuffix("]") or None, found.up, marks)
        grids[column] = cells(found, by, blocks, bold)
    _fill(model, grids)
    return _explain(model, " and dataset" if "dataset" in by else "", contest=bold)


def _rows(source: Source, by: list[str]) -> TableModel:
    """The table with its rows and their footnotes, without numbers: finished ones, and one for each other status."""
    lines = _lines(source, by)
    shared, keys = plain_text.shown_keys(lines.drop(columns="n") if "seed" in by else lines)
    model = TableModel(keys, shared=shared)
    for line in lines.to_dict("records"):
        marks = model.mark(_text(line["deviations"])) + model.mark(_text(line["fewer"]))
        key, labels = {name: line[name] for name in by}, tuple(line[name] for name in keys)
        gone, reason = line["status"] != "done", _text(line["reason"])
        values = (Value(text=line["status"]),) if gone else ()
        model.rows.append(Row(key, labels, values, marks, int(line["n"]), reason))
        if gone:
            place = f" on {line['dataset']}" if "dataset" in by else ""
            model.reasons.append(f"{line['status']}: {line['method']}{place}: {reason}")
    model.reasons = list(dict.fromkeys(model.reasons))
    return model


def _lines(source: Source, by: list[str]) -> pd.DataFrame:
    """What tells the rows apart, n runs, deviations, and "fewer" for a row that pools fewer datasets than others."""
    import pandas as pd

    groups = source.done.drop_duplicates(["run_id", "strength"]).groupby(by, dropna=False)
    done = pd.concat([groups.size().rename("n"), groups.deviations.agg(frames.all_of)], axis=1)
    kinds, most = groups.base.nunique(), source.done.base.nunique()
    if "dataset" not in by:
        done["fewer"] = [FEWER.format(k=k, most=most) if k < most else "" for k in kinds]
    other = source.scores[source.scores.status != "done"].groupby([*by, "status", "reason"], dropna=False)
    parts = [done.reset_index().assign(status="done"), other.size().rename("n").reset_index()]
    lines = pd.concat([part for part in parts if len(part)])
    order = [key for key in ("dataset", "form", "evaluation", "method", "settings", "strength", "seed") if key in by]
    return lines.reindex(columns=[*by, "n", "deviations", "fewer", "status", "reason"]).sort_values(order)


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
        names = ", ".join(model.columns[i].full for i in places)
        model.legend.append(f"Inconclusive, no row significantly behind the best: {names}.")
    return model


def _judged(column: Column) -> bool:
    return column.up is not None and column.name != RANK


def _leads(model: TableModel, i: int) -> bool:
    """Whether any two rows of one dataset differ in a column."""
    means: dict[Any, set[float]] = {}
    for row in model.rows:
        means.setdefault(row.key.get("dataset"), set()).add(row.values[i].mean)
    return any(len([mean for mean in found if mean == mean]) > 1 for found in means.values())
