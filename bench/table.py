"""All records as one table: python -m bench.table --where method=pair,dreambooth --latex table.tex

It shows what `analysis.layouts` makes of the records: means with 95 % intervals, bold where significant. Numbers of
unlike fingerprints are refused (`analysis.fingerprints`). Failed and skipped cells are lines with their reason. Where a
cell departs from the experiment's fairness contract, its method carries a mark and a footnote says how. Records that
were evaluated on other prompts or seeds than their dataset says are a table of their own below.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench import paths
from bench.analysis.frames import configs, images, load, where, wide
from bench.analysis.variants import DEFAULT
from bench.contracts import BenchError
from bench.environment import one_sentence
from bench.files import atomic_write
from bench.store.old_names import today

if TYPE_CHECKING:
    import pandas as pd

    from bench.analysis.comparisons import Requested
    from bench.analysis.layouts import Source
    from bench.analysis.table_model import TableModel


LAYOUTS = ("metrics", "styles", "ablation", "sweep")


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(prog="python -m bench.table", description="Show all records as one table.")
    parse.add_argument("--results", type=Path, default=paths.results_folder(), help="folder of the records")
    parse.add_argument("--where", nargs="+", action="extend", default=[], metavar="COLUMN=A,B", help="* and ? match")
    parse.add_argument("--by", choices=("seeds", "runs"), default="seeds", help="mean over seeds, or each run")
    parse.add_argument(
        "--layout", type=today, choices=LAYOUTS, default=LAYOUTS[0], help="what stands in rows and columns"
    )
    parse.add_argument("--compare", metavar="METRIC", help="every pair of methods: difference, effect, p, verdict")
    parse.add_argument(
        "--matched", metavar="METRIC", help="compare where one's strength sweep meets the other's METRIC"
    )
    parse.add_argument("--pool", action="store_true", help="one row for all datasets, with intervals over them")
    parse.add_argument("--metrics", help="names, comma-separated, or all; default: conf/table.yaml")
    parse.add_argument("--mix", action="store_true", help="unlike fingerprints may share a column, with a footnote")
    parse.add_argument("--shape", choices=("wide", "long"), default="wide", help="of csv and parquet, all columns")
    for kind in ("csv", "parquet", "markdown", "latex", "html"):
        parse.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"also write {kind}")
    return parse


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if options.matched and not options.compare:
        raise BenchError("--matched METRIC says where methods are compared; say in what with --compare METRIC.")
    table = where(load(options.results), options.where)
    if table.empty:
        print("No record.")
        return
    from bench.analysis import formats

    parts = sections(options, table)
    models = [model for _, model in parts]
    print("\n\n".join(map(formats.text, models)))
    for kind, make in (("markdown", formats.markdown), ("latex", formats.latex), ("html", formats.html)):
        if path := getattr(options, kind):
            atomic_write(path, make(*models).encode())
    if options.csv or options.parquet:
        import pandas as pd

        whole = pd.concat([_as_frame(options, part, model) for part, model in parts], ignore_index=True)
        write(whole, options.csv, options.parquet)


def sections(options: argparse.Namespace, table: pd.DataFrame) -> list[tuple[pd.DataFrame, TableModel]]:
    """A table for each evaluation: numbers of other prompts or seeds stand apart, and never hold the others up.

    Raises BenchError where none of them can be shown.
    """
    names = options.metrics.split(",") if options.metrics else None
    kinds = sorted(table.evaluation.unique(), key=lambda words: (words != DEFAULT, words))
    made, errors = [], []
    for words in kinds:
        part = table[table.evaluation == words]
        try:
            made.append((part, lay_out(options, part, names)))
        except BenchError as error:
            errors.append((words, error))
    if not made:
        raise errors[0][1]
    for words, reason in errors:
        made[-1][1].reasons.append(f"Records of another evaluation ({words}) are not shown: {reason}")
    return made


def _as_frame(options: argparse.Namespace, table: pd.DataFrame, shown: TableModel) -> pd.DataFrame:
    """All columns of what is shown; of runs, the lines of their records themselves."""
    from bench.analysis import formats

    if options.compare:
        return compared(options, table).frame()
    long = options.shape == "long"
    if options.layout == "metrics" and options.by == "runs":
        return table if long else wide(table)
    whole = shown if options.layout == "styles" else lay_out(options, table, ["all"])
    return formats.long(whole) if long else formats.wide(whole)


def lay_out(options: argparse.Namespace, table: pd.DataFrame, names: Sequence[str] | None) -> TableModel:
    """The table model that the command line asks for, of some metrics."""
    from bench.analysis import layouts

    if options.compare:
        return compared(options, table).table_model()
    source = _source(options, table)
    if options.layout == "styles":
        return layouts.styles(source, names)
    if options.layout == "ablation":
        return layouts.ablation(source, names, configs(options.results, table))
    if options.layout == "sweep":
        return layouts.sweep(source, names)
    return layouts.metrics(source, names, options.pool, options.by == "runs")


def _source(options: argparse.Namespace, table: pd.DataFrame) -> Source:
    from bench.analysis import layouts

    per_image = images(options.results)
    chosen = per_image[per_image.run_id.isin(table.run_id)]
    return layouts.Source(table, chosen, options.mix, lambda: configs(options.results, table))


def compared(options: argparse.Namespace, table: pd.DataFrame) -> Requested:
    """The comparison that the command line asks for."""
    from bench.analysis import comparisons

    known = configs(options.results, table)
    return comparisons.requested(_source(options, table), known, options.compare, options.matched)


def write(rows: pd.DataFrame, csv: Path | None, parquet: Path | None) -> None:
    """A frame as files."""
    if csv:
        atomic_write(csv, rows.to_csv(index=False).encode())
    if parquet:
        atomic_write(parquet, rows.to_parquet(index=False))


if __name__ == "__main__":
    with one_sentence("bench.table"):
        main()
