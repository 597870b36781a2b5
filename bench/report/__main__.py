"""python -m bench.report --results results --where dataset=halftone --out page.html --figures figures/"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.contracts import BenchError


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(
        prog="python -m bench.report", description="All records as one HTML page that opens without a network."
    )
    parse.add_argument("--results", type=Path, default=Path("results"), help="folder of the records")
    parse.add_argument("--where", nargs="+", action="extend", default=[], metavar="COLUMN=A,B", help="as bench.table")
    parse.add_argument("--out", type=Path, default=None, help="the page; default: report.html below --results")
    parse.add_argument("--max-mb", type=float, default=5.0, help="most millions of bytes; images beyond are left out")
    parse.add_argument("--side", type=int, default=160, help="most pixels of a thumbnail's side")
    parse.add_argument("--gallery-metric", help="per-image metric of median and worst; default: conf/report.yaml")
    parse.add_argument("--title", default=None)
    parse.add_argument("--figures", type=Path, metavar="DIR", help="also write the figures as PDF and PNG")
    parse.add_argument("--wandb", action="store_true", help="also give page, tables and figures to W&B (offline)")
    return parse


def main(arguments: Sequence[str] | None = None) -> None:
    from bench.record import atomic_write
    from bench.report.page import TITLE, Wishes, build

    asked = parser().parse_args(arguments)
    out = asked.out or asked.results / "report.html"
    for folder in [out.parent, *([asked.figures.parent] if asked.figures else [])]:
        if not folder.is_dir():
            raise BenchError(f"{folder} is no folder that exists; make it first, or write elsewhere.")
    wishes = Wishes(
        asked.results, asked.where, asked.max_mb, asked.side, asked.gallery_metric, asked.title or TITLE
    )
    page = build(wishes)
    atomic_write(out, page.html.encode())
    print(f"{out}: {len(page.html.encode()) / 1e6:.2f} MB, {page.shown:,} images shown, {page.left_out:,} left out")
    if asked.figures:
        from bench.report.figures import write

        print("\n".join(map(str, write(asked.results, asked.where, asked.figures))))
    if asked.wandb:
        from bench.report.publish import publish

        publish(asked.results, asked.where, out)


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"bench.report: {error}")
