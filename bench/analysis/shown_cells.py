"""What every format of a table shares: headings, labels, decimal places, rules, and how a wide table is split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from bench.analysis import digits
from bench.analysis.plain_text import RAISED
from bench.analysis.table_model import Column, Row, TableModel

Escape = Callable[[str], str]
TITLES = ("dataset", "form", "evaluation", "method", "settings", "backbone", "strength", "seed", "seeds", "cells")
MOST = 8  # columns of numbers side by side on a page
GROUPS = ("dataset", "form", "evaluation")  # keys of which rows stand together
SPACE, RULE = "space", "rule"


def label(value: Any) -> str:
    """The text of a row's label: numbers short, nothing for what is missing."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:g}"
    return "" if value is None else str(value)


def key_title(key: str) -> str:
    """The heading of a column of labels; names of settings stay as they are."""
    return key.capitalize() if key in TITLES else key


def goal(column: Column) -> str:
    """The direction of a column, or the value that is best."""
    if column.ideal is not None:
        return f" → {column.ideal:g}"
    return "" if column.up is None else " ↑" if column.up else " ↓"


def raised(marks: Sequence[int]) -> str:
    return " ".join(str(mark).translate(RAISED) for mark in marks)


def row_labels(model: TableModel, row: Row, escape: Escape, marked: Callable[[Sequence[int]], str]) -> list[str]:
    """The row's labels; its footnotes' marks stand behind the method, or behind the first label."""
    labels = [escape(label(value)) for value in row.labels]
    place = model.keys.index("method") if "method" in model.keys else 0
    labels[place] += marked(row.marks) if row.marks else ""
    return labels


def under_heads(model: TableModel) -> tuple[TableModel, list[str]]:
    """The model without the labels that rows share with their neighbours, and those of each row as a heading.

    Empty headings where there is one group, or hardly a row in each.
    """
    places = [i for i, key in enumerate(model.keys) if key in GROUPS]
    heads = [", ".join(label(row.labels[i]) for i in places) for row in model.rows]
    if "method" not in model.keys or not places or 2 * len(set(heads)) > len(heads) or len(set(heads)) < 2:
        return model, [""] * len(heads)
    kept = [i for i in range(len(model.keys)) if i not in places]
    rows = [replace(row, labels=tuple(row.labels[i] for i in kept)) for row in model.rows]
    return replace(model, keys=[model.keys[i] for i in kept], rows=rows), heads


def places(model: TableModel) -> list[int | None]:
    """The decimal places of each column."""
    rows = [row for row in model.rows if row.values]
    return [digits.of_column([row.values[i] for row in rows]) for i in range(len(model.columns))]


def before(model: TableModel) -> Iterator[tuple[str, Row]]:
    """Each row with what separates it from the one above: space between datasets, a rule above bounds."""
    above: Row | None = None
    for row in model.rows:
        new = above is not None and _group(model, above) != _group(model, row)
        bounds = above is not None and not new and bool(row.bound) and not above.bound
        yield RULE if bounds else SPACE if new else "", row
        above = row


def _group(model: TableModel, row: Row) -> Any:
    return tuple(row.key.get(key) for key in GROUPS)


def grouped(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """The groups of neighbouring columns and how many each has; nothing where there is one group."""
    found = [(name, len(list(part))) for name, part in groupby(columns, key=lambda column: column.group)]
    return found if len(found) > 1 and any(name for name, _ in found) else []


def split(model: TableModel, widths: Sequence[float], most: float) -> list[TableModel]:
    """Tables that are no wider than `most`, by groups of columns; one with all columns as they are where they fit."""
    if sum(widths) <= most or len(model.columns) < 2:
        return [model]
    order: dict[str, list[int]] = {}
    for i, column in enumerate(model.columns):
        order.setdefault(column.group, []).append(i)
    parts: list[list[int]] = [[]]
    for members in order.values():
        room = most - sum(widths[i] for i in parts[-1])
        if parts[-1] and sum(widths[i] for i in members) > room:
            parts.append([])
        for i in members:
            if parts[-1] and sum(widths[j] for j in parts[-1]) + widths[i] > most:
                parts.append([])
            parts[-1].append(i)
    return [_columns(model, part) for part in parts]


def _columns(model: TableModel, kept: Sequence[int]) -> TableModel:
    """The model with some of its columns; a row without numbers has its status in the first of them."""
    rows = []
    for row in model.rows:
        values = [row.values[i] for i in kept] if row.values else []
        if row.values and row.values[0].text and values:
            values[0] = row.values[0]
        rows.append(replace(row, values=tuple(values)))
    return replace(model, columns=[model.columns[i] for i in kept], rows=rows)
