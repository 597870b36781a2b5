"""All records as one table: python -m bench.table --where method=pair,dreambooth --latex table.tex

It shows what `analysis.layouts` makes of the records: means with 95 % intervals, bold where significant. Numbers of
unlike fingerprints are refused (`analysis.fingerprints`). Failed and skipped cells are lines with their reason. Where a
cell departs from the experiment's fairness contract, its method carries a mark and a footnote says how. Records that
were evaluated on other prompts or seeds than their dataset says are a table of their own below.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import paths
from bench.analysis import shown_columns
from bench.analysis.frames import configs, images, load, where, wide
from bench.analysis.variants import DEFAULT
from bench.contracts import BenchError
from bench.environment import one_sentence
from bench.files import atomic_write, check_place
from bench.reading import spreadsheet
from bench.store.old_names import today

if TYPE_CHECKING:
    import pandas as pd

    from bench.analysis.comparisons import Requested
    from bench.analysis.kept_numbers import Kept
    from bench.analysis.layouts import Source
    from bench.analysis.table_model import TableModel


FILES = ("csv", "parquet", "markdown", "latex", "html")
LAYOUTS = ("metrics", "styles", "ablation", "sweep")


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(prog="python -m bench.table", description="Show all records as one table.")
    parse.add_argument("--results", type=Path, default=paths.results_folder(), help="folder of the records")
    parse.add_argument("--where", nargs="+", action="extend", default=[], metavar="COLUMN=A,B", help="* and ? match")
    parse.add_argument("--by", choices=("seeds", "runs"), default="seeds", help="mean over seeds, or each run")
    parse.add_argument(
        "--layout", type=today, choices=LAYOUTS, default=LAYOUTS[0], help="what stands in rows and columns"
    )
    parse.add_argument("--compare", metavar="METRIC", help="every pair of methods: difference, effect, p")
    parse.add_argument(
        "--matched", metavar="METRIC", help="compare where one's strength sweep meets the other's METRIC"
    )
    parse.add_argument("--pool", action="store_true", help="one row for all datasets, with intervals over them")
    parse.add_argument("--metrics", help="names, comma-separated, or all; default: conf/table.yaml")
    parse.add_argument("--mix", action="store_true", help="unlike fingerprints may share a column, with a footnote")
    parse.add_argument("--shape", choices=("wide", "long"), default="wide", help="of csv and parquet, all columns")
    for kind in FILES:
        parse.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"also write {kind}")
    return parse


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if options.matched and not options.compare:
        raise BenchError("--matched METRIC says where methods are compared; say in what with --compare METRIC.")
    for kind in FILES:
        check_place(f"--{kind}", getattr(options, kind))
    names = options.metrics.split(",") if options.metrics else None
    every = options.compare or options.csv or options.parquet or names == ["all"]
    shown = None if every else [today(name.partition(" [")[0]) for name in names or shown_columns.headline()]
    table = where(load(options.results, None if names or options.where else shown), options.where)
    if table.empty:
        print("No record.")
        return
    from bench.analysis import formats
    from bench.analysis.kept_numbers import Kept

    kept = Kept(options.results)
    parts = sections(options, Shown(options.results, table, images(options.results, shown), options.mix, kept), names)
    models = [model for _, model in parts]
    print("\n\n".join(map(formats.text, models)))
    for kind, make in (("markdown", formats.markdown), ("latex", formats.latex), ("html", formats.html)):
        if path := getattr(options, kind):
            atomic_write(path, make(*models).encode())
    if options.csv or options.parquet:
        import pandas as pd

        whole = pd.concat([_as_frame(options, part, model) for part, model in parts], ignore_index=True)
        write(whole, options.csv, options.parquet)
    kept.save()


@dataclass(frozen=True)
class Shown:
    """The records that a table is about."""

    root: Path
    table: pd.DataFrame
    images: pd.DataFrame
    mix: bool
    kept: Kept | None = None

    def of(self, evaluation: str) -> Shown:
        """Those that were evaluated in one way."""
        return replace(self, table=self.table[self.table.evaluation == evaluation])

    def configs(self) -> Mapping[str, Mapping[str, Any]]:
        return configs(self.root, self.table)

    @property
    def source(self) -> Source:
        from bench.analysis import layouts

        mine = self.images.run_id.isin(self.table.run_id)
        images = self.images if mine.all() else self.images[mine]
        return layouts.Source(self.table, images, self.mix, self.configs, self.kept, self.root)


def sections(options: argparse.Namespace, shown: Shown, names: Sequence[str] | None) -> list[tuple[Shown, TableModel]]:
    """A table for each evaluation: numbers of other prompts or seeds stand apart, and never hold the others up.

    Raises BenchError where none of them can be shown.
    """
    made, errors = [], []
    for words in sorted(shown.table.evaluation.unique(), key=lambda words: (words != DEFAULT, words)):
        part = shown.of(words)
        try:
            made.append((part, lay_out(options, part, names)))
        except BenchError as error:
            errors.append((words, error))
    if not made:
        raise errors[0][1]
    for words, reason in errors:
        made[-1][1].reasons.append(f"Records of another evaluation ({words}) are not shown: {reason}")
    return made


def _as_frame(options: argparse.Namespace, part: Shown, model: TableModel) -> pd.DataFrame:
    """All columns of what is shown; of runs, the lines of their records themselves."""
    from bench.analysis import formats

    if options.compare:
        return compared(options, part).frame()
    long = options.shape == "long"
    if options.layout == "metrics" and options.by == "runs":
        return part.table if long else wide(part.table)
    whole = model if options.layout == "styles" else lay_out(options, part, ["all"])
    return formats.long(whole) if long else formats.wide(whole)


def lay_out(options: argparse.Namespace, part: Shown, names: Sequence[str] | None) -> TableModel:
    """The table model that the command line asks for, of some metrics."""
    from bench.analysis import layouts

    if options.compare:
        return compared(options, part).table_model()
    if options.layout == "styles":
        return layouts.styles(part.source, names)
    if options.layout == "ablation":
        return layouts.ablation(part.source, names, part.configs())
    if options.layout == "sweep":
        return layouts.sweep(part.source, names)
    return layouts.metrics(part.source, names, options.pool, options.by == "runs")


def compared(options: argparse.Namespace, part: Shown) -> Requested:
    """The comparison that the command line asks for."""
    from bench.analysis import comparisons

    return comparisons.requested(part.source, part.configs(), options.compare, options.matched)


def write(rows: pd.DataFrame, csv: Path | None, parquet: Path | None) -> None:
    """A frame as files."""
    if csv:
        atomic_write(csv, spreadsheet(rows).to_csv(index=False).encode())
    if parquet:
        atomic_write(parquet, rows.to_parquet(index=False))


if __name__ == "__main__":
    with one_sentence("bench.table"):
        main()
