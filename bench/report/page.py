"""The page itself: the gathered records as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.analysis import claim_text, claims, comparisons, formats, frames, layouts, settings_in_words, shown_columns
from bench.analysis.claim_answers import Answered, answered
from bench.analysis.table_model import TableModel
from bench.contracts import BenchError
from bench.report import gather
from bench.report.claims import shown as shown_claims
from bench.report.gallery import RULE, Gallery, galleries
from bench.report.size import least_bytes
from bench.report.thumbnails import PREFIX, Budget, Filled, fill, training
from bench.store.record import Record, _plain

if TYPE_CHECKING:
    import pandas as pd

TITLE = "Results of t2i-bench"
PIXELS = 128  # images below this are shown with hard pixels
SECTIONS = [
    ("galleries", "Galleries"),
    ("results", "Results"),
    ("comparisons", "Comparisons"),
    ("sweeps", "Strength sweeps"),
    ("fronts", "Pareto fronts"),
    ("failures", "Failures"),
    ("cells", "Cells and commands"),
    ("about", "About"),
]
READING = (
    "A line is a method on a dataset at one strength, averaged over training seeds. A number carries the network that "
    "it was measured with; numbers of unlike networks do not compare."
)


@dataclass(frozen=True)
class Wishes:
    """What was asked of the page."""

    root: Path
    conditions: Sequence[str] = ()
    max_mb: float = 5.0  # millions of bytes
    side: int = 160  # most pixels of a thumbnail
    metric: str | None = None  # per-image metric of the gallery's rule; default: conf/report.yaml
    title: str = TITLE
    mix: bool = False  # unlike fingerprints may share a column, with a footnote
    runs: frozenset[str] | None = None  # only these cells
    experiment: str | None = None  # whose claims are shown; None: every one of whose cells there are some
    words: tuple[str, ...] = ()  # overrides of all cells of the claims


@dataclass
class Page:
    """The finished text and what its limit left out."""

    html: str
    shown: int
    left_out: int


def settings() -> dict[str, Any]:
    """conf/report.yaml: which metrics the figures and the gallery's rule use."""
    import yaml

    return yaml.safe_load((shown_columns.CONF.parent / "report.yaml").read_text())


@dataclass
class Gathered:
    """The records that the page, the figures and W&B show."""

    wishes: Wishes
    records: Sequence[Record]
    lines: pd.DataFrame  # bench.analysis.frames.frame of them
    galleries: Sequence[Gallery]

    @cached_property
    def source(self) -> layouts.Source:
        images = frames.images(self.wishes.root)
        chosen = images[images.run_id.isin(self.lines.run_id)]
        return layouts.Source(self.lines, chosen, self.wishes.mix, lambda: self.configs, root=self.wishes.root)

    @cached_property
    def datasets(self) -> dict[str, str]:
        """Run id -> the label of its dataset."""
        return dict(zip(self.lines.run_id, self.lines.dataset, strict=True))

    @cached_property
    def configs(self) -> settings_in_words.Configs:
        return {record.run_id: record.config for record in self.records}

    @cached_property
    def model(self) -> TableModel:
        """The table of methods and metrics, with intervals."""
        return layouts.metrics(self.source, ["all"])

    @cached_property
    def comparisons(self) -> list[tuple[str, pd.DataFrame, TableModel]]:
        """Title, frame and model of each comparison of conf/report.yaml that has an answer."""
        requested = comparisons.wanted(self.source, self.configs, settings()["compare"])
        made = [(one.title, one.frame(), one) for one in requested]
        return [
            (title, frame, one.table_model(frame)) for title, frame, one in made if (frame.verdict != "absent").any()
        ]

    @cached_property
    def claims(self) -> list[Answered]:
        """Of the experiment that was asked for, else of every experiment some of whose cells are here."""
        here = set(zip(self.lines.method.astype(str), self.lines.base.astype(str), strict=True))
        names = [self.wishes.experiment] if self.wishes.experiment else claims.about(here)
        return [one for name in names for one in answered(name, self.wishes.root, self.wishes.words)]

    @cached_property
    def drawn(self) -> dict[str, Any]:
        """What the figures show."""
        rows = gather.rows(self.model, _main(self.galleries))
        return {"columns": gather.columns(self.model), "rows": self.worded(rows)}

    def worded(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows with words in place of the hash of their settings, where words tell those of a method apart."""
        keys = set(zip(self.lines.method, self.lines.settings, strict=True))
        words = settings_in_words.distinctions(keys, settings_in_words.by_settings(self.configs))
        return [row | {"settings": words.get((row["method"], row["settings"]), row["settings"])} for row in rows]

    @cached_property
    def content(self) -> dict[str, Any]:
        """What the page says apart from its thumbnails."""
        return _content(self)


def gathered(wishes: Wishes) -> Gathered:
    """All records that meet the conditions. Raises BenchError when there are none."""
    records, lines = gather.chosen(wishes.root, wishes.conditions, wishes.runs)
    if not records:
        raise BenchError(
            f"No record below {wishes.root} meets --where {' '.join(wishes.conditions)}; see python -m bench.table."
        )
    names = dict(zip(lines.run_id, lines.dataset, strict=True))
    shown = galleries(records, wishes.root, [wishes.metric] if wishes.metric else settings()["gallery"], names)
    _check_metric(shown, wishes.metric)
    return Gathered(wishes, records, lines, shown)


def build(found: Gathered) -> Page:
    """The page, with as many thumbnails as its limit allows. Raises BenchError when not even its text fits."""
    wishes, shown = found.wishes, found.galleries
    _refuse(least_bytes(found.records, shown, found.datasets, wishes.root, wishes.side), wishes)
    empty = _render(found.content, [{} for _ in shown], "x" * 600, wishes)
    _refuse(len(empty.encode()), wishes)
    budget = Budget(int(wishes.max_mb * 1e6) - len(empty.encode()))
    filled = fill(shown, budget, wishes.side)
    html = _render(found.content, filled.chunks, _left_out(filled, wishes), wishes)
    return Page(html, filled.shown, filled.left_out)


def _refuse(size: int, wishes: Wishes) -> None:
    if size > wishes.max_mb * 1e6:
        raise BenchError(
            f"The page takes {size / 1e6:.1f} MB without an image, more than --max-mb {wishes.max_mb:g}; "
            "raise it, or choose fewer records with --where."
        )


def _check_metric(shown: Sequence[Gallery], metric: str | None) -> None:
    if metric and shown and not any(gallery.metric == metric for gallery in shown):
        raise BenchError(f"--gallery-metric {metric} is a column of no per_image.csv that all rows of a gallery have.")


def _content(found: Gathered) -> dict[str, Any]:
    records, wishes, shown = found.records, found.wishes, found.galleries
    cells, provenances = gather.cells(records, wishes.root, found.datasets)
    return {
        **found.drawn,
        "claims": [one | {"chart": _markup(one["chart"])} for one in shown_claims(found.claims)],
        "claims_how": claim_text.HOW.format(count=len(found.claims)),
        "comparisons": [(title, _markup(formats.html_table(model))) for title, _, model in found.comparisons],
        "cells": found.worded(cells),
        "provenances": provenances,
        "galleries": [made | {"rows": found.worded(made["rows"])} for made in (_gallery(g, wishes) for g in shown)],
        "footnotes": found.model.notes,
        "legend": found.model.legend,
        "failures": gather.failures(records, wishes.root, not wishes.conditions),
        "fingerprints": gather.fingerprints(records),
        "packages": gather.package_differences(records),
        "images": sum(len(row.files) for gallery in shown for row in gallery.rows),
        "rule": RULE.format(metric=_metric_words(shown)),
    }


def _main(shown: Sequence[Gallery]) -> set[tuple[Any, ...]]:
    """What tells the rule's rows from the others, as bench.analysis.table_model.ROW names it."""
    return {
        (gallery.dataset, row.key[0], gallery.backbone, row.key[1], row.strength)
        for gallery in shown
        for row in gallery.rows
        if row.main
    }


def _metric_words(shown: Sequence[Gallery]) -> str:
    names = [f"{g.metric} ({'higher' if g.higher else 'lower'} is better)" for g in shown if g.metric]
    return " or ".join(dict.fromkeys(names)) or "a per-image metric (there is none here)"


def _gallery(gallery: Gallery, wishes: Wishes) -> dict[str, Any]:
    column = {shot: c for c, shot in enumerate(gallery.shots)}
    picks = {part: [column[shot] for shot in shots] for part, shots in gallery.picks().items()}
    first = next(path for row in gallery.rows for path in row.files.values())
    return {
        "title": f"{gallery.dataset} on {gallery.backbone}",
        "metric": gallery.metric,
        "prompts": list(gallery.prompts),
        "shots": gallery.shots,
        "picks": picks,
        "rows": [_row(gallery, r, wishes.root) for r in range(len(gallery.rows))],
        "training": training(gallery, wishes.side),
        "pixels": _width(first) < PIXELS,
    }


def _row(gallery: Gallery, r: int, root: Path) -> dict[str, Any]:
    row = gallery.rows[r]
    column = {shot: c for c, shot in enumerate(gallery.shots)}
    method, hashed = row.key
    return {
        "cell": row.record.run_id,
        "method": method,
        "settings": hashed,
        "seed": row.seed,
        "strength": row.strength,
        "main": row.main,
        "folder": row.folder.relative_to(root).as_posix(),
        "has": {column[shot]: path.name for shot, path in row.files.items()},
        "values": {column[s]: gather.short(v) for s in row.files if (v := gallery.value(row, s)) is not None},
        "own": [column[shot] for shot in gallery.own_worst(row)],
    }


def _width(path: Path) -> int:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return PIXELS


def _left_out(filled: Filled, wishes: Wishes) -> str:
    broken = f" {len(filled.broken)} image files could not be read, first {filled.broken[0]}." if filled.broken else ""
    if not filled.left_out:
        return broken.strip()
    total = filled.shown + filled.left_out + len(filled.broken)
    return (
        f"The page holds {filled.shown:,} of {total:,} images: --max-mb {wishes.max_mb:g} left out "
        f"{filled.left_out:,}. The columns of the rule come first, then their other strengths and seeds, then the rest."
        + broken
    )


# --- writing -----------------------------------------------------------------------------------------------------


def _json(value: Any) -> Any:
    """JSON that may stand inside a script element: <, >, & and ' are escaped."""
    from jinja2.utils import htmlsafe_json_dumps

    dumps = partial(json.dumps, allow_nan=False, separators=(",", ":"))
    return htmlsafe_json_dumps(_plain(value), dumps=dumps)


def _render(content: dict[str, Any], chunks: Sequence[dict[str, str]], left_out: str, wishes: Wishes) -> str:
    own = settings()
    script_keys = ("columns", "rows", "cells", "provenances", "galleries")
    data = {key: content[key] for key in script_keys}
    data |= {"prefix": PREFIX, "sweeps": own["sweeps"], "fronts": own["fronts"]}
    return render(
        "page.html",
        css=asset("page.css"),
        js=asset("page.js"),
        data=_json(data),
        chunks=[_json(chunk) for chunk in chunks],
        left_out=left_out,
        title=wishes.title,
        sections=[*([("claims", "Claims")] if content["claims"] else []), *SECTIONS],
        reading=READING,
        counts=_counts(content),
        about=_about(wishes),
        **{
            key: content[key]
            for key in "legend footnotes claims claims_how comparisons failures fingerprints packages rule".split()
        },
    )


def _markup(text: str) -> Any:
    """HTML that is safe as it is: our own, or escaped by `bench.analysis.formats`."""
    from markupsafe import Markup

    return Markup(text)


def asset(name: str, package: str = "bench.report") -> Any:
    """One of our own files, to stand in a page as it is."""
    return _markup(files(package).joinpath(name).read_text(encoding="utf-8"))


def render(name: str, package: str = "bench.report", **values: Any) -> str:
    """A template of ours, everything escaped but our own files; only the script whose hash it carries may run."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package, ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    digest = base64.b64encode(hashlib.sha256(str(values["js"]).encode()).digest()).decode()
    return environment.get_template(name).render(script_hash=f"sha256-{digest}", **values)


def _counts(content: dict[str, Any]) -> list[tuple[str, str]]:
    statuses = [cell["status"] for cell in content["cells"]]
    counts = [(f"cells {status}", f"{statuses.count(status):,}") for status in dict.fromkeys(sorted(statuses))]
    for key, label in (("method", "methods"), ("dataset", "datasets"), ("backbone", "backbones")):
        counts.append((label, str(len({cell[key] for cell in content["cells"]}))))
    return [*counts, ("images", f"{content['images']:,}")]


def _about(wishes: Wishes) -> list[tuple[str, str]]:
    import shlex

    where = ["--where", *wishes.conditions] if wishes.conditions else []
    limits = ["--max-mb", f"{wishes.max_mb:g}"]
    return [
        ("made", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("this page again", shlex.join(["python", "-m", "bench.report", *where, *limits, "--out", "page.html"])),
        ("its numbers as a table", shlex.join(["python", "-m", "bench.table", *where])),
        ("network", "none: the page fetches nothing, and its content security policy forbids it"),
    ]
