"""Which method is better: every pair of them on each dataset and over all, as a frame or as a table model.

Methods are compared at their default strength (as their configuration names it, else the middle one recorded), on the
same prompts, evaluation seeds and training seeds; or, `matched`, where one's strength sweep is as close to the style
as the other is (`analysis.matched`). A backbone's methods are compared with each other alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.analysis import power, quantities, resampling, statistics
from bench.analysis.closeness import NOTHING, Side, closeness, pair_of, prompts_of
from bench.analysis.layouts import ARROWS, ONE, Source
from bench.analysis.matched import Matched, of_datasets, of_pair
from bench.analysis.pairing import Rows
from bench.analysis.power import More
from bench.analysis.settings_in_words import Configs, by_settings, labels
from bench.analysis.table_model import Column, Numbers, Row, TableModel, Value, numbers
from bench.cell import default_strength_of
from bench.contracts import BenchError, Impossible

if TYPE_CHECKING:
    import pandas as pd


KEY = ["method", "settings"]
FRAME = "dataset backbone a b at difference low high effect p p_holm verdict more more_low more_high n reason".split()
UNITS = {True: "styles", False: "training seeds"}
MISSING = "absent"
UNKNOWN = More(None, None, None)
NO_ERROR = "its error over prompts is not known, so nothing is decided; score the cells again"
P = "p: Holm over the pairs of the dataset, from a test that is stricter than the interval where trainings are few."
HOW = (
    "A - B on the same prompts, evaluation and training seeds, at each method's default strength; brackets: 95 % "
    "intervals, not corrected. Effect: the difference over the standard deviation of the paired differences. " + P
)
HOW_MATCHED = (
    "A where its strength sweep is as close to the style as B at B's default strength, less B; brackets: 95 % "
    "intervals, not corrected, from resamples that draw both sweeps anew. Effect: as of paired differences, to first "
    "order. " + P
)
NEARER = "The ideal is {ideal:g}: p compares the distances to it, and the nearer one is better."
EXPLORATORY = "Exploratory: no verdict follows. A verdict needs a claim that was declared before (t2i-bench claims)."
MORE = (
    "More: further training seeds (over all styles: styles) that would show a gap of this size after Holm's correction "
    "with a power of 80 %, and the range that the uncertain variance over trainings leaves; none: no number would, "
    "prompts are too few."
)


@dataclass(frozen=True)
class Block:
    """The methods that are compared with each other: of one backbone, on one dataset or on all."""

    dataset: str
    backbone: Any
    rows: Mapping[Any, pd.DataFrame]  # (method, settings) -> its lines at all strengths
    pooled: bool = False


@dataclass(frozen=True)
class Requested:
    """A comparison of one column, matched by another or by nothing. Raises BenchError for unlike fingerprints."""

    source: Source
    column: str
    configs: Configs  # by the column `settings`: they name the strength that is a method's own
    matched: str | None = None

    @cached_property
    def numbers(self) -> Numbers:
        return numbers(self.source.done, self.source.images, self.column)

    @cached_property
    def closeness(self) -> Numbers:
        return closeness(self.source, str(self.matched))

    @property
    def title(self) -> str:
        return self.column + (f" at matched {self.matched}" if self.matched else "")

    def table_model(self, made: pd.DataFrame | None = None) -> TableModel:
        """The table of a frame that was made before, or of a new one."""
        return table_model(self.frame() if made is None else made, self.column, self.numbers.up, self.matched)

    def frame(self) -> pd.DataFrame:
        """A line per pair with the columns FRAME.

        `verdict` is of a: better, worse (higher, lower where no way is better), inconclusive or absent. `more` is NaN
        where no number helps or nothing is known, and 0 where none is needed.
        """
        import pandas as pd

        self.source.notes([self.column, *([self.matched] if self.matched else [])])
        lines = [line for block in _blocks(self.numbers.frame) for line in self._block(block)]
        return pd.DataFrame(lines, columns=FRAME)

    def _block(self, block: Block) -> Iterator[dict[str, Any]]:
        names, head = labels(block.rows, self.configs), {"dataset": block.dataset, "backbone": block.backbone}
        made = self._matched(block) if self.matched else self._plain(block)
        for line in made:
            verdict = _worded(line["verdict"], self.numbers.up)
            yield {**head, **line, "a": names[line["a"]], "b": names[line["b"]], "verdict": verdict}

    def _plain(self, block: Block) -> Iterator[dict[str, Any]]:
        parts = {key: lines[lines.strength == self._default(key, lines)] for key, lines in block.rows.items()}
        rows = Rows(parts, "value", self.numbers.levels)
        pairs = statistics.compare_rows(rows, self.numbers.target).to_dict("records")
        for pair in pairs:
            made = rows.pair(pair["a"], pair["b"])
            reason = NO_ERROR if not self.numbers.judged else "" if made.general else ONE if pair["n"] else NOTHING
            if not self.numbers.judged:
                pair |= {"p": math.nan, "p_holm": math.nan, "verdict": statistics.INCONCLUSIVE}
            open_ = pair["verdict"] == statistics.INCONCLUSIVE and not reason
            more = power.more_units(made.mean, abs(pair["difference"]), len(pairs)) if open_ else UNKNOWN
            yield {**pair, "reason": reason, **_more(more, pair["verdict"])}

    def _default(self, key: Any, lines: pd.DataFrame) -> float:
        """The strength at which a method is compared."""
        known = sorted(lines.strength.unique())
        named = default_strength_of(self.configs.get(key[1], {}))
        return float(named if named in known else known[(len(known) - 1) // 2])

    def _matched(self, block: Block) -> Iterator[dict[str, Any]]:
        keys = list(permutations(block.rows, 2))
        lines = [self._answer(block, a, b, len(keys)) for a, b in keys]
        adjusted = resampling.holm(np.array([line["p"] for line in lines], dtype=np.float64), max(1, len(keys)))
        for line, p in zip(lines, adjusted, strict=True):
            word = line.pop("word", MISSING)
            verdict = word if p < statistics.ALPHA or word == MISSING else statistics.INCONCLUSIVE
            yield {**line, "p_holm": float(p), "verdict": verdict, **_more(line["more"], verdict)}

    def _answer(self, block: Block, a: Any, b: Any, family: int) -> dict[str, Any]:
        line: dict[str, Any] = {"a": a, "b": b, "verdict": "", "reason": "", "more": UNKNOWN}
        try:
            made = self.compared(block, a, b)
        except Impossible as reason:
            return (
                line | dict.fromkeys(("at", "difference", "p"), math.nan) | {"verdict": MISSING, "reason": str(reason)}
            )
        single = made.linear.outer < 2
        line |= {"at": made.level, "difference": made.difference, "low": made.low, "high": made.high}
        target = self.numbers.target
        word, p = statistics.direction(made.linear, *(() if target is None else (made.plus, target)))
        p = math.nan if single else max(p, made.p) if target is None else p
        line |= {"effect": made.effect, "p": p, "word": word, "n": len(made.linear.prompts)}
        if single:
            return line | {"reason": ONE}
        return line | {"more": power.more_units(made.linear, abs(made.difference), family)}

    def compared(self, block: Block, a: Any, b: Any) -> Matched:
        """A, over its strength sweep, where it is as close to the style as B. Raises Impossible with the reason."""
        (of_a, _), (of_b, default) = (
            (self._sides(block.rows[key]), self._default(key, block.rows[key])) for key in (a, b)
        )
        if not block.pooled:
            return of_pair(pair_of(next(iter(of_a.values())), next(iter(of_b.values())), default))
        prompts = prompts_of(*block.rows.values(), self.closeness.frame)
        pairs = []
        for dataset, side in of_a.items():
            try:
                pairs.append(pair_of(side, of_b[dataset], default, prompts))
                pairs[-1].refuse()
            except Impossible as reason:
                raise Impossible(f"on {side.lines.dataset.iloc[0]}: {reason}") from None
        return of_datasets(pairs)

    def _sides(self, lines: pd.DataFrame) -> dict[Any, Side]:
        """A method's numbers on each dataset; made once, as every method meets every other one."""
        found = {}
        for dataset, part in statistics.split(lines, ["dataset"]).items():
            key = tuple(part[["backbone", "dataset", *KEY]].iloc[0])
            if key not in self._known:
                close = self.closeness.frame
                self._known[key] = Side(part, close[close.run_id.isin(part.run_id)])
            found[dataset] = self._known[key]
        return found

    @cached_property
    def _known(self) -> dict[tuple[Any, ...], Side]:
        return {}


def requested(source: Source, configs: Configs, metric: str, by: str | None = None) -> Requested:
    """A comparison in one metric, matched by another; `configs` are those of records, by any name.

    Raises BenchError where a name means no column, or several.
    """
    names = [_column(source, name) for name in (metric, *([by] if by else []))]
    return Requested(source, names[0], by_settings(configs), names[1] if by else None)


def wanted(source: Source, configs: Configs, pairs: Sequence[Sequence[str | None]]) -> list[Requested]:
    """Comparisons in each (metric, what it is matched by or None) that the records have, on every network."""
    columns, by_hash = source.columns(["all"]), by_settings(configs)

    def called(name: str | None) -> list[str]:
        return [column for column in columns if column.partition(" [")[0] == name]

    made = [
        Requested(source, x, by_hash, y)
        for metric, by in pairs
        for x in called(metric)
        for y in (called(by) if by else [None])
    ]
    return [one for one in made if one.numbers.frame.method.nunique() > 1]


def _column(source: Source, name: str) -> str:
    found = source.columns([name])
    if len(found) != 1:
        raise BenchError(f"{name} is of several networks; name one of {', '.join(found)}.")
    return found[0]


def _blocks(frame: pd.DataFrame) -> Iterator[Block]:
    """Of each backbone, each dataset and, of the methods that have them all, all datasets of one form."""
    for part in statistics.split(frame.sort_values(["dataset", *KEY]), ["backbone", "form", "evaluation"]).values():
        backbone, kinds = part.backbone.iloc[0], part.dataset.unique()
        for kind in kinds:
            yield Block(kind, backbone, statistics.split(part[part.dataset == kind], KEY))
        everywhere = part[part.groupby(KEY, dropna=False).dataset.transform("nunique") == len(kinds)]
        if len(kinds) > 1 and len(everywhere):
            yield Block(f"all {len(kinds)}", backbone, statistics.split(everywhere, KEY), pooled=True)


def _worded(verdict: str, up: bool | None) -> str:
    if verdict in ("nearer", "farther"):
        return "better" if verdict == "nearer" else "worse"
    if up is None or verdict not in ("higher", "lower"):
        return verdict
    return "better" if (verdict == "higher") == up else "worse"


def _more(more: More, verdict: str) -> dict[str, float]:
    """Further units as numbers: NaN where no number helps, 0 where none is needed, else one at least."""
    found = {"more": more.advised, "more_low": more.low, "more_high": more.high}
    if verdict in ("higher", "lower", "nearer", "farther"):
        return dict.fromkeys(found, 0.0)
    return {name: math.nan if count is None else float(max(1, count)) for name, count in found.items()}


def table_model(made: pd.DataFrame, column: str, up: bool | None, by: str | None = None) -> TableModel:
    """The comparisons as a table that every format of `bench.analysis.formats` can write."""
    several = made.backbone.nunique() > 1
    keys = ["dataset", *(["backbone"] if several else []), "a", "b"]
    heads = [Column("difference"), Column("effect"), Column("p"), Column("more")]
    found = TableModel([*keys[:-2], "A", "B"], [*([Column("at")] if by else []), *heads])
    found.shared = f"{column}{ARROWS[up]}" + (f" at matched {by}" if by else "")
    ideal = quantities.heading(column.partition(" [")[0]).ideal
    found.legend = [
        HOW_MATCHED if by else HOW,
        EXPLORATORY,
        *([NEARER.format(ideal=ideal)] if ideal is not None else []),
        *([MORE] if (made.verdict == "inconclusive").any() else []),
    ]
    for line in made.to_dict("records"):
        marks = found.mark(line["reason"])
        values = [*([Value(line["at"])] if by else []), *_values(line)]
        key = {"dataset": line["dataset"], "backbone": line["backbone"], "method": line["a"], "b": line["b"]}
        found.rows.append(Row(key, tuple(line[k] for k in keys), tuple(values), marks))
    return found


def _values(line: Mapping[str, Any]) -> list[Value]:
    difference = Value(line["difference"], line["low"], line["high"])
    return [difference, Value(line["effect"]), Value(line["p_holm"]), _needed(line)]


def _needed(line: Mapping[str, Any]) -> Value:
    """How many more would decide it, where it is not decided."""
    if line["verdict"] != "inconclusive" or not line["difference"] or line["reason"]:
        return Value()
    if math.isnan(line["more"]):
        return Value(text="none")
    low, high = (f"{x:.0f}" if x == x else "more" for x in (line["more_low"], line["more_high"]))
    count = f"{line['more']:.0f}" + (f" ({low} to {high})" if low != high else "")
    return Value(text=f"{count} {UNITS[_pooled(line)]}".removesuffix("s" if line["more"] == 1 else ""))


def _pooled(line: Mapping[str, Any]) -> bool:
    return str(line["dataset"]).startswith("all ")
