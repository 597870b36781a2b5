"""A table model as text, Markdown, LaTeX, HTML or a data frame. Text from records is escaped as each format needs it.

LaTeX wants `\\usepackage{booktabs,graphicx}` and nothing else; HTML is a page of its own without a script.
"""

from __future__ import annotations

import html as markup
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bench.analysis.plain_text import RAISED, short_lines
from bench.analysis.table_model import Column, Row, TableModel, Value

if TYPE_CHECKING:
    import pandas as pd

ROUNDING = 1e-9  # an interval narrower than this share of its mean is noise of the arithmetic
Escape = Callable[[str], str]


def figures(value: Value) -> tuple[str, str]:
    """A mean and its interval, "23.8" and "[21.0, 26.6]", with the figures that the interval's width warrants."""
    if math.isnan(value.mean):
        return value.text, ""
    spread = (value.high - value.low) / 2
    if math.isnan(spread) or spread <= ROUNDING * abs(value.mean):
        return f"{value.mean:.4g}", ""
    places = max(0, 1 - math.floor(math.log10(spread)))
    return f"{value.mean:.{places}f}", f"[{value.low:.{places}f}, {value.high:.{places}f}]"


def label(value: Any) -> str:
    """The text of a row's label: numbers short, nothing for what is missing."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:g}"
    return "" if value is None else str(value)


def arrow(column: Column) -> str:
    return "" if column.up is None else " ↑" if column.up else " ↓"


# --- a data frame ------------------------------------------------------------------------------------------------


def long(model: TableModel) -> pd.DataFrame:
    """A line per row and column that has a number: what tells the row apart, metric, network, mean, low, high, ..."""
    import pandas as pd

    lines = [
        {**row.key, "metric": column.name, "network": column.network, "higher_is_better": column.up}
        | {"mean": value.mean, "low": value.low, "high": value.high, "n": value.n, "bold": value.bold}
        for row in model.rows
        for column, value in zip(model.columns, row.values, strict=True)
        if not math.isnan(value.mean)
    ]
    rest = ["metric", "network", "higher_is_better", "mean", "low", "high", "n", "bold"]
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


def text(model: TableModel) -> str:
    """For the terminal: the interval below the number, an asterisk for bold."""
    import tabulate

    if not model.rows:
        return "No record."
    tabulate.MIN_PADDING = 0  # else each heading is two letters wider
    head = [*model.keys, *["\n".join(_stacked(column)) for column in model.columns]]
    body = [_labels(row, str, _raised) + [_stack(value) for value in row.values] for row in model.rows]
    align = ["left"] * len(model.keys) + ["right"] * len(model.columns)
    made = tabulate.tabulate(body, head, tablefmt="simple", colalign=align, disable_numparse=True)
    notes = [f"{_raised([i])} {note}" for i, note in enumerate(model.notes, 1)]
    legend = [line.replace("Bold:", "*:") for line in model.legend]
    return "\n\n".join("\n".join(part) for part in ([model.shared], [made], notes, legend, model.reasons) if any(part))


def _stack(value: Value) -> str:
    number, limits = figures(value)
    return f"{number}{'*' if value.bold else ''}\n{limits}".strip()


def _stacked(column: Column) -> list[str]:
    parts = [column.name + arrow(column) + _raised(column.marks), f"[{column.network}]" if column.network else ""]
    return [line for part in parts for line in short_lines(part)]


def _raised(marks: Sequence[int]) -> str:
    return " ".join(str(mark).translate(RAISED) for mark in marks)


def _labels(row: Row, escape: Escape, raised: Callable[[Sequence[int]], str]) -> list[str]:
    """The row's labels, its footnotes' marks behind the first."""
    labels = [escape(label(value)) for value in row.labels]
    return [labels[0] + (raised(row.marks) if row.marks else ""), *labels[1:]]


# --- Markdown ----------------------------------------------------------------------------------------------------


def markdown(*models: TableModel) -> str:
    """Pipe tables, with footnotes and reasons as lists."""
    return "\n".join(map(_markdown, models))


def _markdown(model: TableModel) -> str:
    if not model.rows:
        return "No record.\n"
    head = [*map(_md, model.keys), *map(_md_head, model.columns)]
    rule = [":--"] * len(model.keys) + ["--:"] * len(model.columns)
    body = [_labels(row, _md, _raised) + [_md_value(value) for value in row.values] for row in model.rows]
    lines = [f"| {' | '.join(line)} |" for line in (head, rule, *body)]
    below = [f"- {_raised([i])} {_md(note)}" for i, note in enumerate(model.notes, 1)]
    below += [f"- {_md(line)}" for line in (*model.legend, *model.reasons)]
    return "\n\n".join("\n".join(part) for part in ([_md(model.shared)], lines, below) if any(part)) + "\n"


def _md(line: str) -> str:
    """Backslashes before what Markdown reads, but not before an underscore inside a word."""
    flat = " ".join(line.split())
    escaped = re.sub(r"([\\`*\[\]<>#|~&!])|(?<!\w)(_)|(_)(?!\w)", r"\\\1\2\3", flat)
    return re.sub(r"^(\d*)([-+.)])(?=\s|$)", r"\1\\\2", escaped)


def _md_head(column: Column) -> str:
    network = f" {_md(f'[{column.network}]')}" if column.network else ""
    return _md(column.name) + arrow(column) + _raised(column.marks) + network


def _md_value(value: Value) -> str:
    number, limits = figures(value)
    return " ".join(filter(None, [f"**{number}**" if value.bold else _md(number), _md(limits)]))


# --- LaTeX -------------------------------------------------------------------------------------------------------

TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "[": "{[}", "]": "{]}", '"': "''", "`": r"\textasciigrave{}", "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", "±": r"$\pm$", "×": r"$\times$", "…": r"\ldots{}", "–": "--", "—": "---", "²": r"$^2$",
}  # fmt: skip


def latex(*models: TableModel) -> str:
    """`table` environments in booktabs style, with some space between datasets, or between methods."""
    return "\n".join(map(_latex, models))


def _latex(model: TableModel) -> str:
    lines = [
        "% made by python -m bench.table; needs \\usepackage{booktabs,graphicx}",
        r"\begin{table}[htbp]",
        r"\centering",
    ]
    lines += [rf"\caption{{{_tex(model.shared)}}}\smallskip"] if model.shared else []
    lines += [r"\scriptsize\setlength{\tabcolsep}{4pt}"]
    lines += [r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"]  # no wider than the page
    lines += [rf"\begin{{tabular}}{{@{{}}{'l' * len(model.keys)}{'r' * len(model.columns)}@{{}}}}", r"\toprule"]
    lines += [_tex_line([*map(_tex, model.keys), *map(_tex_head, model.columns)]), r"\midrule"]
    for before, row in zip([None, *model.rows], model.rows, strict=False):
        if before and _group(model, before) != _group(model, row):
            lines.append(r"\addlinespace")
        lines.append(_tex_line(_labels(row, _tex, _tex_marks) + [_tex_value(value) for value in row.values]))
    lines += [r"\bottomrule", r"\end{tabular}}", *_tex_below(model), r"\end{table}"]
    return "\n".join(lines) + "\n"


def _group(model: TableModel, row: Row) -> Any:
    """Rows of one dataset stand together, or of one method where there is one dataset."""
    several = len({row.key.get("dataset") for row in model.rows}) > 1
    return row.key.get("dataset" if several else "method")


def _tex_line(parts: Sequence[str]) -> str:
    return f"{' & '.join(parts)} \\\\"


def _tex(line: str) -> str:
    """Text that any LaTeX sets as it is meant; a sign that pdflatex has no letter for becomes its code, U+4E2D."""
    return "".join(TEX.get(sign) or _tex_sign(sign) for sign in " ".join(line.split()))


def _tex_sign(sign: str) -> str:
    if sign.isascii() or (sign.isalpha() and ord(sign) < 0x180 and _decomposed(sign)):
        return sign if sign.isprintable() else ""
    return rf"\texttt{{U+{ord(sign):04X}}}"


def _decomposed(sign: str) -> bool:
    """An accented Latin letter, which the default font can build."""
    parts = unicodedata.normalize("NFD", sign)
    return len(parts) == 2 and parts[0].isascii() and parts[1] in "\u0300\u0301\u0302\u0303\u0308\u030a\u0327\u030c"


def _tex_marks(marks: Sequence[int]) -> str:
    return rf"\textsuperscript{{{','.join(map(str, marks))}}}" if marks else ""


def _tex_head(column: Column) -> str:
    first = _tex(column.name + arrow(column)) + _tex_marks(column.marks)
    return rf"\shortstack[r]{{{first}\\{_tex(f'[{column.network}]')}}}" if column.network else first


def _tex_value(value: Value) -> str:
    number, limits = (_tex(part).replace("-", "$-$") for part in figures(value))
    number = rf"\textbf{{{number}}}" if value.bold else number
    return rf"\shortstack[r]{{{number}\\{{\tiny {limits}}}}}" if limits else number


def _tex_below(model: TableModel) -> list[str]:
    below = [rf"\textsuperscript{{{i}}} {_tex(note)}" for i, note in enumerate(model.notes, 1)]
    below += [_tex(line) for line in (*model.legend, *model.reasons)]
    if not below:
        return []
    frame = r"\begin{minipage}{\linewidth}\footnotesize\raggedright", r"\end{minipage}"
    return [r"\par\smallskip", frame[0], " \\par\n".join(below), frame[1]]


# --- HTML --------------------------------------------------------------------------------------------------------

STYLE = (
    "body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}th,td{padding:.3em .7em;text-align:right;"
    "border-bottom:1px solid #ddd;vertical-align:top}th.key,td.key{text-align:left}small{color:#555;display:block}"
)


def html(*models: TableModel) -> str:
    """A whole page: tables, each with its footnotes, legend and reasons."""
    head = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Records as a table</title>'
    body = "\n".join(map(html_table, models))
    return f"{head}\n<style>{STYLE}</style></head><body>{body}\n</body></html>"


def html_table(model: TableModel) -> str:
    """The part of a page: the table, its footnotes, legend and reasons."""
    head = [f'<th class="key">{_html(key)}</th>' for key in model.keys] + [_html_head(c) for c in model.columns]
    body = [f"<tr>{''.join(_html_row(row))}</tr>" for row in model.rows]
    notes = [f"<p><sup>{i}</sup> {_html(note)}</p>" for i, note in enumerate(model.notes, 1)]
    below = [f"<p>{_html(line)}</p>" for line in (*model.legend, *model.reasons)]
    start = f"<table><caption>{_html(model.shared)}</caption>\n<thead><tr>{''.join(head)}</tr></thead><tbody>"
    return "\n".join([start, *body, "</tbody></table>", *notes, *below])


def _html(line: str) -> str:
    return markup.escape(line, quote=True)


def _html_head(column: Column) -> str:
    network = f"<small>{_html(f'[{column.network}]')}</small>" if column.network else ""
    return f"<th>{_html(column.name + arrow(column))}{_html_marks(column.marks)}{network}</th>"


def _html_marks(marks: Sequence[int]) -> str:
    return f"<sup>{' '.join(map(str, marks))}</sup>" if marks else ""


def _html_row(row: Row) -> list[str]:
    labels = [f'<td class="key">{part}</td>' for part in _labels(row, _html, _html_marks)]
    return labels + [f"<td>{_html_value(value)}</td>" for value in row.values]


def _html_value(value: Value) -> str:
    number, limits = map(_html, figures(value))
    return (f"<b>{number}</b>" if value.bold else number) + (f"<small>{limits}</small>" if limits else "")
