"""Each format read back by a reader of its own, with names that would break it; LaTeX through pdflatex."""

import html.parser
import math
import shutil
import subprocess

import pandas as pd
import pytest

from bench.analysis import formats, latex_tables
from bench.analysis.table_model import Column, Row, TableModel, Value

HOSTILE = [
    r"a_b & 100% $x$ #1 {y} ~ ^ \ \\ \input{x}",
    "<script>alert(\"1\")</script> &amp; 'q'",
    "| a | *b* _c_ `d` [e](f) ![g](h) ~~i~~ <b>j</b>",
    "é ü ñ ç š, 中文, ☃, [0], - x, “q”",
    "line\nbreak | end",
    "1. # not a list",
]


def model(names=HOSTILE):
    made = TableModel(["method", "dataset"], [Column("clip_t", "net_a", True), Column("kid", None, False, (1,))])
    made.shared, made.legend, made.reasons = f"metric {names[0]}", [names[1]], [f"failed: {names[2]}"]
    for i, name in enumerate(names):
        marks = made.mark(f"a note about {name}")
        values = (Value(23.8213, 21.05, 26.61, 9, (), i == 0), Value(-0.5, -0.62, -0.38, 3))
        made.rows.append(Row({"method": name, "dataset": "dots"}, (name, "dots"), values, marks))
    made.rows.append(Row({"method": "bad", "dataset": "dots"}, ("bad", "dots"), (Value(text="failed"), Value())))
    return made


class Texts(html.parser.HTMLParser):
    """What a browser would show, cell by cell, and the tags that it would see."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.cells = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag in ("td", "th", "p", "caption"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells and data.strip():
            self.cells[-1] += data


def test_html_shows_the_names_and_has_no_tag_of_theirs():
    read = Texts(formats.html(model()))
    ours = {"html", "head", "meta", "title", "style", "body", "table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert set(read.tags) == ours | {"p", "sup", "small", "b"}
    first = read.cells[5::4]
    assert [cell.startswith(name) for cell, name in zip(first, HOSTILE, strict=False)] == [True] * len(HOSTILE)
    assert read.cells[0] == f"metric {HOSTILE[0]}" and read.cells[7] == "23.8[21.1, 26.6]"
    assert HOSTILE[1] in read.cells


def test_markdown_shows_the_names():
    markdown = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    page = markdown.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(formats.markdown(model()))
    read = Texts(page)
    assert not {"a", "img", "em", "code", "script", "s", "h1", "ol"} & set(read.tags)
    cells = [cell.strip() for cell in read.cells]
    for name in HOSTILE:
        assert any(cell.startswith(" ".join(name.split())) for cell in cells), name
    assert "23.8 [21.1, 26.6]" in cells and read.tags.count("strong") == 1


def test_text_stacks_intervals_and_marks_the_best():
    shown = formats.text(model(["one", "two", "three"]))
    assert "23.8*" in shown and shown.count("[21.1, 26.6]") == 3 and "kid ↓¹" in shown
    assert "¹ a note about one" in shown and "bad" in shown and "failed" in shown


def test_figures_are_those_that_the_interval_warrants():
    def shown(mean, low, high):
        return formats.figures(Value(mean, low, high))

    assert shown(23.8213, 21.0, 26.6) == ("23.8", "[21.0, 26.6]")
    assert shown(92.84, 81.2, 104.0) == ("93", "[81, 104]")
    assert shown(0.00978, 0.0084, 0.0112) == ("0.0098", "[0.0084, 0.0112]")
    assert shown(1234.5, math.nan, math.nan) == ("1234", "") and shown(0.0, 0.0, 0.0) == ("0", "")
    assert shown(14.458986913698092, 14.458986913698087, 14.458986913698098) == ("14.46", "")
    assert formats.figures(Value(text="failed")) == ("failed", "")


def test_frames_hold_every_number():
    made = model(["one", "two", "three"])
    long, wide = formats.long(made), formats.wide(made)
    assert len(long) == 6 and long.metric.tolist() == ["clip_t", "kid"] * 3
    assert long[["mean", "low", "high"]].iloc[0].tolist() == [23.8213, 21.05, 26.61]
    assert long.bold.tolist() == [True] + [False] * 5 and long.higher_is_better.tolist() == [True, False] * 3
    assert wide["clip_t [net_a]"].tolist()[:3] == [23.8213] * 3 and wide["kid low"][0] == -0.62
    assert wide.status.tolist() == ["done"] * 3 + ["failed"] and pd.isna(wide["kid"][3])


def test_latex_leaves_no_sign_that_it_would_read():
    body = latex_tables._tex("".join(HOSTILE)).replace(r"\textbackslash{}", "")
    for sign in "&%$#_{}":
        assert body.count(sign) == body.count("\\" + sign) + body.count(sign + "}") * (sign in "{}") or sign in "{}"
    assert latex_tables._tex("中☃é") == r"\texttt{U+4E2D}\texttt{U+2603}é" and "\n" not in body


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex on this machine")
def test_latex_compiles(tmp_path):
    (tmp_path / "table.tex").write_text(formats.latex(model()))
    page = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}\input{table.tex}\end{document}"
    (tmp_path / "page.tex").write_text(page)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert result.returncode == 0, result.stdout[-2000:]
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF") and "Overfull" not in result.stdout


def test_what_cannot_be_separated_from_the_best_is_italic():
    values = [Value(2.0, bold=True), Value(1.9, with_best=True), Value(0.5)]
    rows = [Row({"method": str(i)}, (str(i),), (value,)) for i, value in enumerate(values)]
    model = TableModel(["method"], [Column("up")], rows, legend=["Bold: the best. Italic: near it."])
    assert all(part in formats.markdown(model) for part in ("**2.00**", "*1.90*", "0.50"))
    assert all(part in formats.latex(model) for part in (r"\textbf{2.00}", r"\textit{1.90}"))
    assert all(part in formats.html(model) for part in ("<b>2.00</b>", "<i>1.90</i>"))
    shown = formats.text(model)
    assert "2.00*" in shown and "1.90+" in shown and "*: the best. +: near it." in shown
