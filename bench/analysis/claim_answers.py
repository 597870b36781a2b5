"""What the records say of the claims of an experiment: one family of contrasts, and the cells that are missing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import compose
from bench.analysis import contrasts, frames
from bench.analysis.claims import OVER_STRENGTHS, Claim, declared
from bench.analysis.comparisons import NO_ERROR, Block, Requested
from bench.analysis.contrasts import Answer, Contrast
from bench.analysis.layouts import Source
from bench.analysis.table_model import Numbers, numbers
from bench.cell import Cell, default_strength
from bench.contracts import BenchError, Impossible
from bench.data import schema

if TYPE_CHECKING:
    import pandas as pd

UNTRAINED = "train_s"  # a method that trains nothing has no such cost: it took 0 s

PART = "cells are missing: the numbers are of those that are there, and nothing is decided"


@dataclass(frozen=True)
class Wanted:
    """The cells of one side of a claim."""

    words: Sequence[str]  # the overrides that they share
    cells: Sequence[Cell]

    @cached_property
    def runs(self) -> set[str]:
        return {cell.run_id for cell in self.cells}

    @property
    def default(self) -> float:
        return default_strength(self.cells[0].method)

    def missing(self, stored: set[tuple[str, float]]) -> list[str]:
        """The commands of the cells that have no finished record at all their strengths."""
        seeds: dict[str, list[int]] = {}
        for cell in self.cells:
            if any((cell.run_id, strength) not in stored for strength in cell.strengths):
                seeds.setdefault(cell.dataset["name"], []).append(cell.seed)
        return self.commands(seeds)

    def commands(self, seeds: Mapping[str, Sequence[int]]) -> list[str]:
        """One command for all datasets that lack the same seeds."""
        datasets: dict[tuple[int, ...], list[str]] = {}
        for name, lacking in seeds.items():
            datasets.setdefault(tuple(lacking), []).append(name)
        return [self._command(names, lacking) for lacking, names in datasets.items()]

    def _command(self, names: Sequence[str], seeds: Sequence[int]) -> str:
        population = [f"dataset={','.join(names)}", f"seed={','.join(map(str, seeds))}"]
        return shlex.join(["python", "-m", "bench", "-m", *self.words, *population])


@dataclass(frozen=True)
class Answered:
    """A claim, what the numbers say of it, and how its cells are made."""

    claim: Claim
    answer: Answer
    commands: Sequence[str] = ()  # of all its cells
    missing: Sequence[str] = ()  # of those without a finished record


@dataclass
class Records:
    """The records below a folder, read for the metrics of some claims."""

    root: Path
    claims: Sequence[Claim]
    mix: bool = False
    made: dict[Any, Numbers] = field(default_factory=dict)

    @cached_property
    def source(self) -> Source:
        metrics = {name.partition(" [")[0] for claim in self.claims for name in claim.metrics}
        table = frames.load(self.root, metrics | {name.replace("gap_closed", "oracle") for name in metrics})
        return Source(table, frames.images(self.root), self.mix)

    @cached_property
    def stored(self) -> set[tuple[str, float]]:
        done = self.source.done[["run_id", "strength"]].drop_duplicates()
        return set(zip(done.run_id.astype(str), done.strength.astype(float), strict=True))

    def of(self, runs: set[str]) -> Source:
        """The records of some cells."""
        scores, images = (lines[lines.run_id.isin(runs)] for lines in (self.source.scores, self.source.images))
        return replace(self.source, scores=scores, images=images)


def answered(
    experiment: str, root: Path, words: Sequence[str] = (), datasets: Sequence[str] | None = None
) -> list[Answered]:
    """The answers to the claims of an experiment from the records below a folder; `words` are overrides of all cells.

    Raises BenchError where the experiment has no claims, or one that is wrong.
    """
    claims = declared(experiment)
    if not claims:
        raise BenchError(f"experiment={experiment} declares no claims; add `claims` to its yaml (docs/claims.md).")
    return of_claims(claims, Records(root, claims), {claim.id: sides(claim, root, words) for claim in claims})


def sides(claim: Claim, root: Path, words: Sequence[str] = ()) -> dict[str, Wanted] | str:
    """The cells of A and B by letter, or why they cannot be named on this machine."""
    try:
        return {side: _wanted(claim, side, root, words) for side in claim.sides}
    except BenchError as error:
        return str(error)


def _wanted(claim: Claim, side: str, root: Path, words: Sequence[str]) -> Wanted:
    shared = [*claim.words(side), *words]
    first = [replace(_composed((*shared, f"dataset={name}")), results=root) for name in claim.datasets]
    made = [cell.with_seed(seed) for cell in first for seed in claim.seeds]
    for cell in made:
        _ = cell.run_id  # raises BenchError where images or weights are not on this machine
    return Wanted(shared, made)


@cache
def _composed(words: tuple[str, ...]) -> Cell:
    """The cell of these overrides. Claims share many of them, and of most only the dataset differs."""
    *others, name = words
    if any(word.startswith("dataset.") for word in others):
        return compose.from_overrides(*words)
    first = _of_method(tuple(others))
    described = json.loads(json.dumps(schema.describe(name.removeprefix("dataset="))))
    return replace(first, dataset=described)


@cache
def _of_method(words: tuple[str, ...]) -> Cell:
    return compose.from_overrides(*words)


def of_claims(
    claims: Sequence[Claim], records: Records, wanted: Mapping[str, Mapping[str, Wanted] | str]
) -> list[Answered]:
    """Answers to one family of claims; the cells of each are given by its id, or why there are none."""
    known = {claim.id: found for claim in claims if not isinstance(found := wanted[claim.id], str)}
    made = [_contrast(claim, known, records) if claim.id in known else str(wanted[claim.id]) for claim in claims]
    answers = []
    for claim, answer in zip(claims, contrasts.answers(made), strict=True):
        parts = list(known.get(claim.id, {}).values())
        commands = [line for part in parts for line in part.commands(dict.fromkeys(claim.datasets, claim.seeds))]
        missing = [line for part in parts for line in part.missing(records.stored)]
        answers.append(Answered(claim, _decided(answer, missing), commands, missing))
    return answers


def _decided(answer: Answer, missing: Sequence[str]) -> Answer:
    """Nothing is decided before all declared cells are there."""
    return replace(answer, status=contrasts.NOT, reason=answer.reason or PART) if missing else answer


def _contrast(claim: Claim, known: Mapping[str, Mapping[str, Wanted]], records: Records) -> Contrast | str:
    """The contrast of a claim, or why there is none."""
    mine = known[claim.id]
    try:
        source = records.of({run for side in mine.values() for run in side.runs})
        if source.done.empty:
            return "none of its cells has a finished record"
        columns = [_column(source, name) for name in claim.metrics]
        source.notes(columns)  # raises BenchError for unlike fingerprints
        return _of_numbers(claim, known, records, source, columns)
    except (BenchError, Impossible) as error:
        return str(error)


def _column(source: Source, name: str) -> str:
    columns = [column for column in source.columns(["all"]) if name in (column, column.partition(" [")[0])]
    if not columns:
        raise BenchError(f"no finished cell of it has {name}")
    if len(columns) > 1:
        raise BenchError(f"{name} is of several networks; the claim must name one of {', '.join(columns)}")
    return columns[0]


def _of_numbers(
    claim: Claim, known: Mapping[str, Mapping[str, Wanted]], records: Records, source: Source, columns: Sequence[str]
) -> Contrast | str:
    found = _numbers(source, columns[0])
    if not (found.judged or found.costs):
        return NO_ERROR
    lines = {side: _lines(found, wanted, claim) for side, wanted in known[claim.id].items()}
    for side, part in lines.items():
        if part.empty:
            return f"no finished cell of {side.upper()} has {claim.metric}"
    about: dict[str, Any] = {
        "kind": claim.kind,
        "direction": claim.direction,
        "ideal": found.target or 0.0,
        "margin": claim.margin if claim.kind in ("equivalence", "bound") else 0.0,
        "near": claim.near,
        "levels": found.levels,
    }
    if claim.matched:
        return Contrast(a=lines["a"], estimates=_matched(claim, known[claim.id], source, columns), **about)
    block = [] if claim.kind in OVER_STRENGTHS else _block(claim, known, records, columns[0])
    return Contrast(a=lines["a"], b=lines.get("b"), block=block, **about)


def _numbers(source: Source, column: str) -> Numbers:
    found = numbers(source.done, source.images, column)
    if column != UNTRAINED:
        return found
    value = found.frame.value.where(found.frame.trained.astype(bool), found.frame.value.fillna(0.0))
    return replace(found, frame=found.frame.assign(value=value))


def _lines(found: Numbers, wanted: Wanted, claim: Claim) -> pd.DataFrame:
    """The lines of a side, at its default strength where the claim is not about several."""
    part = found.frame[found.frame.run_id.isin(wanted.runs)]
    if claim.kind in OVER_STRENGTHS:
        return part[part.strength.isin(wanted.cells[0].strengths)]
    return part[part.strength == wanted.default]


def _block(
    claim: Claim, known: Mapping[str, Mapping[str, Wanted]], records: Records, column: str
) -> list[pd.DataFrame]:
    """The same numbers of the other methods that are declared on the same datasets, each once."""
    own = {run for side in known[claim.id].values() for run in side.runs}
    others = {frozenset(side.runs): side for name in known for side in known[name].values() if not side.runs & own}
    found = []
    for runs, side in others.items():
        if {cell.dataset["name"] for cell in side.cells} == set(claim.datasets):
            source = records.of(set(runs))
            made = numbers(source.done, source.images, column).frame
            found.append(made[made.strength == side.default].dropna(subset=["value"]))
    return [part for part in found if len(part) and part.dataset.nunique() == len(claim.datasets)]


def _matched(claim: Claim, mine: Mapping[str, Wanted], source: Source, columns: Sequence[str]) -> Any:
    """The estimates of A - B and A + B where A's sweep is as close to the style as B. Raises Impossible."""
    configs = {cell.run_id: {"requested": {"method": cell.method}} for side in mine.values() for cell in side.cells}
    settings = dict(zip(source.scores.run_id, source.scores.settings, strict=True))
    requested = Requested(source, columns[0], {settings[r]: configs[r] for r in settings}, columns[1])
    frame = requested.numbers.frame
    rows = {}
    for side, wanted in mine.items():
        part = frame[frame.run_id.isin(wanted.runs)]
        rows[side] = ((side, part.settings.iloc[0]), part)
    block = Block("", frame.backbone.iloc[0], dict(rows.values()), pooled=len(claim.datasets) > 1)
    made = requested.compared(block, rows["a"][0], rows["b"][0])
    return contrasts.matched_estimates(made)
