"""Which ranks of a table of results can be told apart, which cannot, and how many seeds it would take.

python -m bench.ranks results.csv --value score          a line per run, or per run and prompt
python -m bench.ranks results/*.json                     PEFT's method comparison, a file per run
python -m bench.ranks scores.csv --row model --lower     lower is better

Every pair is compared as in our own tables (`analysis.statistics`: prompts paired, trainings independent, variances
moderated) with Holm's correction. A row's range of ranks follows from the pairs that differ: it is behind all rows that
are better beyond chance and before all that are worse. All ranges hold together with a confidence of 95 %.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.analysis.result_files import Named, read_results
from bench.contracts import BenchError
from bench.environment import one_sentence

if TYPE_CHECKING:
    import pandas as pd

    from bench.analysis.pairing import Rows

MOST = 20  # pairs that are listed


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(
        prog="python -m bench.ranks", description="Which ranks of a table can be told apart."
    )
    parse.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".csv, PEFT's .json, or a folder of them")
    for option, text in (
        ("--row", "column of what is ranked (default: method, model, name)"),
        ("--value", "column of the numbers (default: the only one; PEFT: test accuracy)"),
        ("--seed", "column of the training run (default: seed, run)"),
        ("--prompt", "column of the prompt or question (default: prompt, question, item)"),
    ):
        parse.add_argument(option, metavar="COLUMN", help=text)
    parse.add_argument("--lower", action="store_true", help="lower is better")
    return parse


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    named = Named(options.row, options.value, options.seed, options.prompt)
    frame = read_results(options.files, named)
    print("\n".join(report(frame, up=not options.lower)))


def report(frame: pd.DataFrame, up: bool = True) -> list[str]:
    """The lines of the answer for a frame of `analysis.result_files`. Raises BenchError below two rows."""
    from bench.analysis.pairing import Rows
    from bench.analysis.statistics import compare_rows

    rows = Rows({key: part for key, part in frame.groupby("row", sort=False)}, "value")
    if len(rows.lines) < 2:
        raise BenchError(f"Ranks need two rows or more, and the table has {', '.join(map(str, rows.lines))} alone.")
    pairs = compare_rows(rows)
    return [*_table(rows, ranges(rows, pairs, up)), "", *_pairs(frame, rows, pairs)]


def ranges(rows: Rows, pairs: pd.DataFrame, up: bool) -> dict[Any, tuple[int, int]]:
    """Row -> its best and its worst rank, the first row first."""
    better: dict[Any, int] = dict.fromkeys(rows.lines, 0)  # rows that are better beyond chance
    worse = dict(better)
    for line in pairs.itertuples():
        if line.verdict in ("higher", "lower"):
            first, last = (line.a, line.b) if (line.verdict == "higher") == up else (line.b, line.a)
            better[last] += 1
            worse[first] += 1
    order = sorted(rows.lines, key=lambda key: rows.row(key).mean.value, reverse=up)
    return {key: (1 + better[key], len(order) - worse[key]) for key in order}


def _table(rows: Rows, found: dict[Any, tuple[int, int]]) -> list[str]:
    from bench.analysis.statistics import interval_of

    width = max(3, *(len(str(key)) for key in found))
    lines = [f"{'rank':>4}  {'range':>7}  {'row':{width}}  mean [95 %]"]
    for place, (key, (low, high)) in enumerate(found.items(), start=1):
        made = interval_of(rows.row(key))
        limits = "" if math.isnan(made.low) else f" [{made.low:.4g}, {made.high:.4g}]"
        units = ", ".join(f"{n} {level}{'s' * (n > 1)}" for level, n in made.units.items())
        lines.append(f"{place:4}  {f'{low}-{high}':>7}  {key!s:{width}}  {made.mean:.4g}{limits}  ({units or made.n})")
    return lines


def _pairs(frame: pd.DataFrame, rows: Rows, pairs: pd.DataFrame) -> list[str]:
    apart = int((pairs.verdict != "inconclusive").sum())
    lines = [f"{apart} of {len(pairs)} pairs are told apart at 5 % (Holm's correction over all pairs)."]
    open_ = pairs[pairs.verdict == "inconclusive"]
    close = open_.reindex(open_.difference.abs().sort_values(ascending=False).index)
    for line in close.head(MOST).itertuples():
        limits = "" if math.isnan(line.low) else f" [{line.low:.3g}, {line.high:.3g}]"
        gap = f"difference {line.difference:.3g}{limits}"
        lines.append(f"not told apart: {line.a} and {line.b}, {gap}; {_needed(frame, rows, line, len(pairs))}")
    if len(close) > MOST:
        lines.append(f"and {len(close) - MOST} more pairs with smaller differences.")
    return lines


def _needed(frame: pd.DataFrame, rows: Rows, line: Any, family: int) -> str:
    """What would show a true difference of this size with a power of 80 %."""
    from bench.analysis import power

    if "seed" not in frame:
        return "one model each, so only more prompts can show it"
    made = rows.pair(line.a, line.b)
    if not made.general:
        return "a common run of each is not enough: give at least two"
    more = power.more_units(made.mean, abs(line.difference), family)
    if more.advised is None:
        return "no number of seeds would show such a difference, prompts are too few"
    span = f"{more.low} to {'more than 1000' if more.high is None else more.high}"
    return f"{more.advised} more seeds of each would show such a difference with a power of 80 % ({span})"


if __name__ == "__main__":
    with one_sentence("bench.ranks"):
        main()
        sys.stdout.flush()
