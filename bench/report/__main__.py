"""python -m bench.report --results results --where dataset=halftone --out page.html --figures figures/"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.environment import one_sentence
from bench.paths import results_folder
from bench.settings import finite

if TYPE_CHECKING:
    from bench.report.page import Gathered


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(
        prog="python -m bench.report", description="All records as one HTML page that opens without a network."
    )
    parse.add_argument("--results", type=Path, default=results_folder(), help="folder of the records")
    parse.add_argument("--where", nargs="+", action="extend", default=[], metavar="COLUMN=A,B", help="as bench.table")
    parse.add_argument("--out", type=Path, default=None, help="the page; default: report.html below --results")
    parse.add_argument("--max-mb", type=finite, default=5.0, help="most millions of bytes; images beyond are left out")
    parse.add_argument("--side", type=int, default=160, help="most pixels of a thumbnail's side")
    parse.add_argument("--gallery-metric", help="per-image metric of median and worst; default: conf/report.yaml")
    parse.add_argument("--mix", action="store_true", help="as bench.table: unlike fingerprints may share a column")
    parse.add_argument("--experiment", help="whose claims open the page; default: those of which there are cells")
    parse.add_argument("--title", default=None)
    parse.add_argument("--figures", type=Path, metavar="DIR", help="also write the figures as PDF and PNG")
    parse.add_argument("--wandb", action="store_true", help="also give page, tables and figures to W&B (offline)")
    return parse


def main(arguments: Sequence[str] | None = None) -> None:
    from bench.files import atomic_write, check_place
    from bench.report.page import TITLE, Wishes, build, gathered

    requested = parser().parse_args(arguments)
    out = requested.out or requested.results / "report.html"
    check_place("--out", out)
    if requested.figures and not requested.figures.is_dir():
        check_place("--figures", requested.figures)
    wishes = Wishes(
        requested.results,
        requested.where,
        requested.max_mb,
        requested.side,
        requested.gallery_metric,
        requested.title or TITLE,
        requested.mix,
        experiment=requested.experiment,
    )
    found = gathered(wishes)
    page = build(found)
    atomic_write(out, page.html.encode())
    print(f"{out}: {len(page.html.encode()) / 1e6:.2f} MB, {page.shown:,} images shown, {page.left_out:,} left out")
    drawn = _figures(found, requested.figures) if requested.figures else []
    if requested.figures:
        print("\n".join(map(str, drawn)) or "No figure: the records have none of the metrics of conf/report.yaml.")
    if requested.wandb:
        _publish(found, out, drawn)


def _figures(found: Gathered, folder: Path) -> list[Path]:
    from bench.report.figures import figures, write
    from bench.report.page import settings

    return write(figures(found.content, settings()), folder)


def _publish(found: Gathered, page: Path, drawn: list[Path]) -> None:
    import tempfile

    from bench.report.publish import publish

    with tempfile.TemporaryDirectory() as folder:
        publish(found, page, drawn or _figures(found, Path(folder)))


if __name__ == "__main__":
    with one_sentence("bench.report"):
        main()
