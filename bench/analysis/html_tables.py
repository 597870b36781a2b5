"""Table models as HTML: a page of its own without a script, or a part of one."""

from __future__ import annotations

import html as markup
from collections.abc import Sequence

from bench.analysis import shown_cells
from bench.analysis.digits import figures
from bench.analysis.shown_cells import goal, key_title, row_labels
from bench.analysis.table_model import Column, Row, TableModel, Value

STYLE = (
    "body{font:14px sans-serif;margin:2em}table{border-collapse:collapse;margin:1em 0}p{max-width:60em}"
    "th,td{padding:.3em .7em;text-align:right;border-bottom:1px solid #ddd;vertical-align:top}"
    "th.key,td.key{text-align:left}small{color:#555;display:block}caption{text-align:left;padding:.5em 0}"
    "th.group{text-align:center}tr.head th{text-align:left;padding-top:1em;font-style:italic}"
    "tr.rule td{border-top:2px solid #555}"
)


def html(*models: TableModel) -> str:
    """A whole page: tables, each with its footnotes, legend and reasons."""
    head = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Records as a table</title>'
    body = "\n".join(map(html_table, models))
    return f"{head}\n<style>{STYLE}</style></head><body>{body}\n</body></html>"


def html_table(model: TableModel) -> str:
    """The part of a page: the table, split between groups of columns where it is wide, footnotes, legend, reasons."""
    body, heads = shown_cells.under_heads(model)
    parts = shown_cells.split(body, [1] * len(body.columns), shown_cells.MOST)
    notes = [f"<p><sup>{i}</sup> {_html(note)}</p>" for i, note in enumerate(model.notes, 1)]
    below = [f"<p>{_html(line)}</p>" for line in (*model.legend, *model.reasons)]
    caption = f"<caption>{_html(model.shared)}</caption>" if model.shared else ""
    tables = [_table(part, heads, "" if i else caption) for i, part in enumerate(parts)]
    return "\n".join([*tables, *notes, *below])


def _table(model: TableModel, heads: Sequence[str], caption: str) -> str:
    places = shown_cells.places(model)
    head = [f'<th class="key">{_html(key_title(key))}</th>' for key in model.keys] + [
        _html_head(c) for c in model.columns
    ]
    body, width = [], len(model.keys) + len(model.columns)
    for i, (separator, row) in enumerate(shown_cells.before(model)):
        if heads[i] and (not i or heads[i] != heads[i - 1]):
            body.append(f'<tr class="head"><th colspan="{width}">{_html(heads[i])}</th></tr>')
        body.append(f'<tr class="{separator}">{"".join(_html_row(model, row, places))}</tr>')
    start = f"<table>{caption}\n<thead>{_groups(model)}<tr>{''.join(head)}</tr></thead><tbody>"
    return "\n".join([start, *body, "</tbody></table>"])


def _groups(model: TableModel) -> str:
    """A line with the groups of columns."""
    found = shown_cells.grouped(model.columns)
    cells = [f'<th class="group" colspan="{count}">{_html(name)}</th>' for name, count in found]
    return f'<tr><th colspan="{len(model.keys)}"></th>{"".join(cells)}</tr>' if cells else ""


def _html(line: str) -> str:
    return markup.escape(line, quote=True)


def _html_head(column: Column) -> str:
    network = f"<small>{_html(f'[{column.network}]')}</small>" if column.network else ""
    title = _html(column.title + goal(column).replace(" ", "\u00a0"))  # an arrow stays on its line
    return f"<th>{title}{_html_marks(column.marks)}{network}</th>"


def _html_marks(marks: Sequence[int]) -> str:
    return f"<sup>{' '.join(map(str, marks))}</sup>" if marks else ""


def _html_row(model: TableModel, row: Row, places: Sequence[int | None]) -> list[str]:
    labels = [f'<td class="key">{part}</td>' for part in row_labels(model, row, _html, _html_marks)]
    return labels + [f"<td>{_html_value(*pair)}</td>" for pair in zip(row.values, places, strict=True)]


def _html_value(value: Value, places: int | None) -> str:
    number, limits = map(_html, figures(value, places))
    number = f"<b>{number}</b>" if value.bold else f"<i>{number}</i>" if value.with_best else number
    return number + (f"<small>{limits}</small>" if limits else "")
