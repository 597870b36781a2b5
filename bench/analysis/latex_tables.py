"""Table models as LaTeX in booktabs style, which wants `\\usepackage{booktabs,graphicx}` and nothing else."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from bench.analysis import shown_cells
from bench.analysis.digits import figures
from bench.analysis.shown_cells import RULE, SPACE, goal, key_title, row_labels
from bench.analysis.table_model import Column, TableModel, Value

TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "[": "{[}", "]": "{]}", '"': "''", "`": r"\textasciigrave{}", "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", "±": r"$\pm$", "×": r"$\times$", "…": r"\ldots{}", "–": "--", "—": "---", "²": r"$^2$",
    "→": r"$\rightarrow$",
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
    lines += [rf"\caption{{{_tex(_sentence(model.shared))}}}\smallskip"] if model.shared else []
    lines += [r"\scriptsize\setlength{\tabcolsep}{4pt}"]
    body, heads = shown_cells.under_heads(model)
    parts = shown_cells.split(body, [1] * len(body.columns), shown_cells.MOST)
    for i, part in enumerate(parts):
        lines += [*([r"\par\medskip"] if i else []), *_tabular(part, heads)]
    return "\n".join([*lines, *_tex_below(model), r"\end{table}"]) + "\n"


def _sentence(shared: str) -> str:
    return f"{shared[0].upper()}{shared[1:]}."


def _tabular(model: TableModel, heads: Sequence[str]) -> list[str]:
    places = shown_cells.places(model)
    lines = [r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"]  # no wider than the page
    lines += [rf"\begin{{tabular}}{{@{{}}{'l' * len(model.keys)}{'r' * len(model.columns)}@{{}}}}", r"\toprule"]
    lines += _groups(model)
    lines += [_tex_line([*[_tex(key_title(key)) for key in model.keys], *map(_tex_head, model.columns)]), r"\midrule"]
    width = len(model.keys) + len(model.columns)
    for i, (separator, row) in enumerate(shown_cells.before(model)):
        lines += {RULE: [rf"\cmidrule{{1-{width}}}"], SPACE: [r"\addlinespace"]}.get(separator, [])
        if heads[i] and (not i or heads[i] != heads[i - 1]):
            lines.append(rf"\multicolumn{{{width}}}{{@{{}}l}}{{\textit{{{_tex(heads[i])}}}}} \\")
        values = [_tex_value(*pair) for pair in zip(row.values, places, strict=True)]
        lines.append(_tex_line(row_labels(model, row, _tex, _tex_marks) + values))
    return [*lines, r"\bottomrule", r"\end{tabular}}"]


def _groups(model: TableModel) -> list[str]:
    """A line with the groups of columns, each above a rule."""
    names, rules, place = [""] * len(model.keys), [], len(model.keys)
    for name, count in shown_cells.grouped(model.columns):
        names.append(rf"\multicolumn{{{count}}}{{c}}{{{_tex(name)}}}")
        rules += [rf"\cmidrule(lr){{{place + 1}-{place + count}}}"] if name else []
        place += count
    return [_tex_line(names), "".join(rules)] if rules else []


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
    first = _tex(column.title + goal(column)).replace(" x ", r" $\times$ ") + _tex_marks(column.marks)
    return rf"\shortstack[r]{{{first}\\{_tex(f'[{column.network}]')}}}" if column.network else first


def _tex_value(value: Value, places: int | None) -> str:
    number, limits = (_tex(part).replace("-", "$-$") for part in figures(value, places))
    number = rf"\textbf{{{number}}}" if value.bold else rf"\textit{{{number}}}" if value.with_best else number
    return (
        rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}{number}\\[-2pt]{{\tiny {limits}}}\end{{tabular}}" if limits else number
    )


def _tex_below(model: TableModel) -> list[str]:
    below = [rf"\textsuperscript{{{i}}} {_tex(note)}" for i, note in enumerate(model.notes, 1)]
    below += [_tex(line) for line in (*model.legend, *model.reasons)]
    if not below:
        return []
    frame = r"\begin{minipage}{\linewidth}\footnotesize\raggedright", r"\end{minipage}"
    return [r"\par\smallskip", frame[0], " \\par\n".join(below), frame[1]]
