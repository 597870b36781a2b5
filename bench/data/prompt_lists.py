"""Which rows of a table of prompts are left out, by a rule of a dataset.yaml (`prompts.left_out`, docs/datasets.md).

    {by: Category, counts: {Abstract: 36, others: 2}, first: [{Challenge: Basic, words: 1}], kept: [a prompt]}

Of each group of rows (by the value of a column; `others` are all groups that are not named) so many are left out: first
those that fit the first condition, then the second, then the rest, each in the order of the table. `kept` never are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.contracts import BenchError

OTHERS = "others"
WORDS = "words"  # in a condition: the number of words of the prompt; every other key is a column

Row = Mapping[str, str]


def left_out(rows: Sequence[Row], column: str, rule: Mapping[str, Any] | None, path: Path) -> set[int]:
    """Places of the rows that the rule leaves out. Raises BenchError when the table does not fit the rule."""
    if not rule:
        return set()
    _check(rows, column, rule, path)
    return {i for group, count in rule["counts"].items() for i in _first(rows, column, rule, group, count, path)}


def _first(rows: Sequence[Row], column: str, rule: Mapping[str, Any], group: str, count: int, path: Path) -> list[int]:
    places = [i for i in _group(rows, rule, group) if rows[i][column] not in rule.get("kept", ())]
    if len(places) < count:
        raise BenchError(
            f"{path} has {len(places)} rows of {rule['by']} {group!r} and {count} are to be left out; "
            "is it another version of the list?"
        )
    return sorted(places, key=lambda i: (_rank(rows[i], column, rule.get("first", ())), i))[:count]


def _group(rows: Sequence[Row], rule: Mapping[str, Any], group: str) -> Iterator[int]:
    for i, row in enumerate(rows):
        name = row[rule["by"]]
        if (name if name in rule["counts"] else OTHERS) == group:
            yield i


def _rank(row: Row, column: str, conditions: Sequence[Mapping[str, Any]]) -> int:
    """The place of the first condition that a row fits."""
    facts = {**row, WORDS: len(row[column].split())}
    fits = (all(facts.get(key) == value for key, value in condition.items()) for condition in conditions)
    return next((i for i, fit in enumerate(fits) if fit), len(conditions))


def _check(rows: Sequence[Row], column: str, rule: Mapping[str, Any], path: Path) -> None:
    columns = set(rows[0]) if rows else set()
    named = {rule["by"], *(key for condition in rule.get("first", ()) for key in condition)} - {WORDS}
    if named - columns:
        raise BenchError(
            f"{path} has no column {min(named - columns)!r}, which prompts.left_out names; correct the rule."
        )
    absent = set(rule.get("kept", ())) - {row[column] for row in rows}
    if absent:
        raise BenchError(f"{path} does not hold {min(absent)!r}, which prompts.left_out keeps; correct the rule.")
