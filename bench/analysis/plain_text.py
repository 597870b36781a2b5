"""A frame as plain text: what all lines share stands above, footnotes and reasons below."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.analysis.frames import CELL
from bench.analysis.shown_columns import choose
from bench.analysis.variants import DEFAULT

if TYPE_CHECKING:
    import pandas as pd


RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


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
    body = [[word(row[key]) for key in keys] + _cells(row, chosen) for row in _dicts(rows)]
    for line, row in zip(body, _dicts(rows), strict=True):
        line[0] += marks.get(row["deviations"], "")
    align = ["left"] * len(keys) + ["right"] * len(chosen)
    text = tabulate.tabulate(body, head, tablefmt=style, colalign=align, disable_numparse=True)
    return "\n\n".join(part for part in (shared, text, _footnotes(marks, style), _reasons(rows, style)) if part)


def _dicts(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return rows.to_dict("records")


def shown_keys(rows: pd.DataFrame) -> tuple[str, list[str]]:
    """A line of what is the same everywhere, and the columns that tell the lines apart."""
    order = ("method", "dataset", "form", "evaluation", "backbone", "strength", "seed", "n")
    keys = [key for key in order if key in rows and not (rows[key] == DEFAULT).all()]
    same = [key for key in keys if key not in CELL[:2] and rows[key].nunique(dropna=False) == 1]
    shared = ", ".join(f"{key} {word(rows[key].iloc[0])}" for key in same)
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


def word(value: Any) -> str:
    """A label as text: numbers short, nothing for what is missing."""
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
    lines = [f"{row['status']}: {row['method']} on {row['dataset']}: {word(row['reason'])}" for row in bad]
    start = "- " if style == "pipe" else ""
    return "\n".join(start + line for line in dict.fromkeys(lines))
