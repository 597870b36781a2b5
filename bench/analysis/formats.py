"""A table model as text, Markdown, LaTeX, HTML or a data frame. Names from records are escaped as each needs it."""

from __future__ import annotations

import math
import re
import shutil
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.analysis import shown_cells
from bench.analysis.digits import figures
from bench.analysis.html_tables import html, html_table
from bench.analysis.latex_tables import latex
from bench.analysis.plain_text import short_lines
from bench.analysis.shown_cells import RULE, goal, key_title, raised, row_labels
from bench.analysis.table_model import Column, TableModel, Value

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["figures", "html", "html_table", "latex", "long", "markdown", "text", "wide"]
WIDTH = 120  # letters of a line where there is no terminal
NO_BREAK = "\u00a0"  # between a scale or an arrow and what it belongs to
HEAD = 13  # letters of a line of a heading
LABEL = 26  # letters of a line of a label


# --- a data frame ------------------------------------------------------------------------------------------------


def long(model: TableModel) -> pd.DataFrame:
    """A line per row and column that has a number: what tells the row apart, metric, network, mean, low, high, ..."""
    import pandas as pd

    lines = [
        {**row.key, "metric": column.name, "network": column.network, "higher_is_better": column.up}
        | {
            "mean": value.mean,
            "low": value.low,
            "high": value.high,
            "n": value.n,
            "bold": value.bold,
            "with_best": value.with_best,
        }
        for row in model.rows
        for column, value in zip(model.columns, row.values, strict=True)
        if not math.isnan(value.mean)
    ]
    rest = ["metric", "network", "higher_is_better", "mean", "low", "high", "n", "bold", "with_best"]
    return pd.DataFrame(lines, columns=[*(model.rows[0].key if model.rows else ()), *rest])


def wide(model: TableModel) -> pd.DataFrame:
    """A line per row: what tells it apart, status, runs; for each column "<name>", "<name> low", "<name> high"."""
    import pandas as pd

    lines: list[dict[str, Any]] = []
    for row in model.rows:
        status = (row.values[0].text if row.values else "") or "done"
        line = {**row.key, "status": status, "reason": row.reason, "runs": row.runs}
        for column, value in zip(model.columns, row.values, strict=True):
            line |= {column.full: value.mean, f"{column.full} low": value.low, f"{column.full} high": value.high}
        lines.append(line)
    return pd.DataFrame(lines)


# --- text --------------------------------------------------------------------------------------------------------


def text(model: TableModel, width: int | None = None) -> str:
    """For the terminal: the interval below the number, an asterisk for bold.

    A table that is wider than `width` letters (default: the terminal) is split between groups of columns.
    """
    if not model.rows:
        return "No record."
    width = width or shutil.get_terminal_size((WIDTH, 24)).columns
    body, heads = shown_cells.under_heads(model)
    keys = sum(2 + max(map(_width, column)) for column in zip(*_labels(body), strict=True))
    parts = [_text(part, heads) for part in shown_cells.split(body, _widths(body), width - keys + 2)]
    notes = [f"{raised([i])} {note}" for i, note in enumerate(model.notes, 1)]
    legend = [line.replace("Bold:", "*:").replace("Italic:", "+:") for line in model.legend]
    below = [_filled(lines, width) for lines in (notes, legend, model.reasons) if lines]
    return "\n\n".join(part for part in ("\n".join(_wrap(model.shared, width)), *parts, *below) if part)


def _filled(lines: list[str], width: int) -> str:
    return "\n".join(short for line in lines for short in _wrap(line, width))


def _text(model: TableModel, heads: Sequence[str]) -> str:
    import tabulate

    tabulate.MIN_PADDING = 0  # else each heading is two letters wider
    labels, places = _labels(model), shown_cells.places(model)
    head = [*labels[0], *["\n".join(_stacked(column)) for column in model.columns]]
    body: list[Any] = []
    for i, ((separator, row), names) in enumerate(zip(shown_cells.before(model), labels[1:], strict=True)):
        body += [tabulate.SEPARATING_LINE] if separator == RULE else []
        body += [[f"{heads[i]}:"]] if heads[i] and (not i or heads[i] != heads[i - 1]) else []
        body.append(names + [_stack(value, place) for value, place in zip(row.values, places, strict=True)])
    align = ["left"] * len(model.keys) + ["right"] * len(model.columns)
    return tabulate.tabulate(body, head, tablefmt="simple", colalign=align, disable_numparse=True)


def _labels(model: TableModel) -> list[list[str]]:
    """The headings of the labels, and those of each row, on lines that are not long; repeated datasets once."""
    made = [[key_title(key) for key in model.keys]]
    for row in model.rows:
        labels = row_labels(model, row, str, raised)
        made.append(["\n".join(_wrap(label, LABEL)) for label in labels])
    return made


def _widths(model: TableModel) -> list[float]:
    places = shown_cells.places(model)
    return [
        2.0
        + max(
            [max(map(len, _stacked(column)))]
            + [_width(_stack(row.values[i], places[i])) for row in model.rows if row.values]
        )
        for i, column in enumerate(model.columns)
    ]


def _width(label: str) -> int:
    return max(map(len, label.split("\n")))


def _wrap(line: str, width: int) -> list[str]:
    return textwrap.wrap(line, width, break_on_hyphens=False) if len(line) > width else [line]


def _stack(value: Value, places: int | None) -> str:
    number, limits = figures(value, places)
    return f"{number}{'*' if value.bold else '+' if value.with_best else ''}\n{limits}".strip()


def _stacked(column: Column) -> list[str]:
    whole = re.sub(r" (?=↑|↓|→)|(?<= x) |(?<=→) ", NO_BREAK, column.title + goal(column) + raised(column.marks))
    title = [
        line.replace(NO_BREAK, " ")
        for line in textwrap.wrap(whole, HEAD, break_on_hyphens=False, break_long_words=False)
    ]
    network = [f"[{column.network}]"] if column.network else []
    return [line for part in (*title, *network) for line in short_lines(part, HEAD)]


# --- Markdown ----------------------------------------------------------------------------------------------------


def markdown(*models: TableModel) -> str:
    """Pipe tables, with footnotes and reasons as lists."""
    return "\n".join(map(_markdown, models))


def _markdown(model: TableModel) -> str:
    """One table; a wide one is split between groups of columns."""
    if not model.rows:
        return "No record.\n"
    parts = shown_cells.split(model, [1] * len(model.columns), shown_cells.MOST)
    below = [f"- {raised([i])} {_md(note)}" for i, note in enumerate(model.notes, 1)]
    below += [f"- {_md(line)}" for line in (*model.legend, *model.reasons)]
    whole = [_md(model.shared), *map(_md_table, parts), "\n".join(below)]
    return "\n\n".join(part for part in whole if part) + "\n"


def _md_table(model: TableModel) -> str:
    places = shown_cells.places(model)
    head = [*[_md(key_title(key)) for key in model.keys], *map(_md_head, model.columns)]
    rule = [":--"] * len(model.keys) + ["--:"] * len(model.columns)
    body = [
        row_labels(model, row, _md, raised) + [_md_value(*pair) for pair in zip(row.values, places, strict=True)]
        for row in model.rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body))


def _md(line: str) -> str:
    """Backslashes before what Markdown reads, but not before an underscore inside a word."""
    flat = " ".join(line.split())
    escaped = re.sub(r"([\\`*\[\]<>#|~&!])|(?<!\w)(_)|(_)(?!\w)", r"\\\1\2\3", flat)
    return re.sub(r"^(\d*)([-+.)])(?=\s|$)", r"\1\\\2", escaped)


def _md_head(column: Column) -> str:
    network = f" {_md(f'[{column.network}]')}" if column.network else ""
    return _md(column.title + goal(column)) + raised(column.marks) + network


def _md_value(value: Value, places: int | None) -> str:
    number, limits = figures(value, places)
    number = f"**{number}**" if value.bold else f"*{number}*" if value.with_best else _md(number)
    return " ".join(filter(None, [number, _md(limits)]))
