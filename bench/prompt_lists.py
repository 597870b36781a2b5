"""Evaluation prompts from a table: one column of a .tsv, .csv or .txt file, less what a rule leaves out.

The rule is a mapping of a dataset.yaml, `prompt_list` (datasets/README.md):
    file: PartiPrompts.tsv        column: Prompt
    left_out: {by: Category, counts: {Abstract: 36, others: 2}, first: [{Challenge: Basic, words: 1}]}
Of each group of rows (by the value of a column; `others` are all groups not named) so many rows are left out: first
those that fit the first condition, then the second, then the rest, each in the order of the file.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.contracts import BenchError

OTHERS = "others"
WORDS = "words"  # in a condition: the number of words of the prompt; every other key is a column

Row = Mapping[str, str]


def read(path: Path, rule: Mapping[str, Any]) -> list[str]:
    """The prompts in the order of the file, without blanks at their ends. Raises BenchError."""
    column = rule.get("column", "")
    rows = _rows(path, column)
    out = _left_out(rows, column, rule["left_out"], path) if rule.get("left_out") else set()
    prompts = [row[column].strip() for i, row in enumerate(rows) if i not in out]
    twice = (
        sorted({prompt for prompt in prompts if prompts.count(prompt) > 1}) if len(set(prompts)) < len(prompts) else []
    )
    if twice or not all(prompts):
        raise BenchError(f"{path} has {f'the prompt {twice[0]!r} twice' if twice else 'an empty prompt'}; correct it.")
    return prompts


def _rows(path: Path, column: str) -> list[dict[str, str]]:
    """Rows by column name; a .txt file is one column without a name. Raises BenchError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"the prompt list {path} cannot be read ({error}); correct prompt_list.file.") from error
    if path.suffix == ".txt":
        return [{column: line} for line in text.splitlines() if line.strip()]
    tabs = path.suffix == ".tsv"  # where quotation marks are part of the text
    lines = text.splitlines()
    table = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.DictReader(lines)
    rows = list(table)
    if not rows or column not in rows[0]:
        found = ", ".join(table.fieldnames or ()) or "none"
        raise BenchError(
            f"{path} was asked for the column {column!r}; its columns are {found}; set prompt_list.column."
        )
    return rows


def _left_out(rows: Sequence[Row], column: str, rule: Mapping[str, Any], path: Path) -> set[int]:
    """Places of the rows that the rule leaves out. Raises BenchError when a group is smaller than its count."""
    counts, conditions = dict(rule["counts"]), rule.get("first", ())
    places: dict[str, list[int]] = {group: [] for group in counts}
    for i, row in enumerate(rows):
        group = row[rule["by"]] if row[rule["by"]] in counts else OTHERS
        places.setdefault(group, []).append(i)
    out: set[int] = set()
    for group, count in counts.items():
        if len(places[group]) < count:
            raise BenchError(
                f"{path} has {len(places[group])} rows of {rule['by']} {group!r} and {count} are to be left out; "
                "is it another version of the list?"
            )
        out |= set(sorted(places[group], key=lambda i: (_rank(rows[i], column, conditions), i))[:count])
    return out


def _rank(row: Row, column: str, conditions: Sequence[Mapping[str, Any]]) -> int:
    """The place of the first condition that a row fits."""
    facts = {**row, WORDS: len(row[column].split())}
    fits = (all(facts.get(key) == value for key, value in condition.items()) for condition in conditions)
    return next((i for i, fit in enumerate(fits) if fit), len(conditions))
