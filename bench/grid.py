"""A labelled picture of many images: rows are methods or strengths, columns are prompts, same seeds in each column.

python -m bench.grid --where dataset=halftone,seed=0 --out grid.png     a row per method and strength, from all records
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import paths
from bench.contracts import BenchError
from bench.environment import one_sentence
from bench.files import check_place
from bench.sampling.grid import grid
from bench.store.record import Store

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from bench.steps.work import Work


def drawn(root: Path, conditions: Sequence[str]) -> pd.DataFrame:
    """A line per record and strength that has images: the order of the rows."""
    from bench.analysis import frames

    rows = frames.wide(frames.where(frames.frame(Store(root).records()), conditions))
    rows = rows[(rows.status == "done") & rows.strength.notna()]
    if rows.empty:
        raise BenchError(
            f"No finished cell below {root} meets --where {' '.join(conditions)}; see python -m bench.table."
        )
    return rows.sort_values(["method", "settings", "strength", "seed"])


def collect(root: Path, conditions: Sequence[str], columns: int) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
    """Rows (label, uint8 (n, 3, P, P)) for the baseline, each method, strength and seed, and the oracle; and prompts.

    All images of a column have the same prompt and the same evaluation seed, the dataset's first.
    """
    import numpy as np

    from bench.analysis import frames
    from bench.steps.baseline import baseline
    from bench.steps.reopen import reopen
    from bench.steps.sample import images

    lines = drawn(root, conditions)
    cells = {run_id: reopen(root / run_id) for run_id in lines.run_id.unique()}
    _alike(cells)
    some = next(iter(cells.values()))
    first = [i for i, shot in enumerate(some.shots) if shot.seed == some.shots[0].seed][:columns]
    rows = [("backbone", baseline(some)[first])]
    label = _label(lines, frames.configs(root, lines))
    rows += [(label(row), images(cells[row.run_id], row.strength)[first]) for row in lines.itertuples()]
    if some.dataset.oracle is not None:
        rows.append(("style itself", np.stack([some.dataset.oracle(image) for image in baseline(some)[first]])))
    return rows, [some.shots[i].prompt for i in first]


def _alike(cells: Mapping[str, Work]) -> None:
    """Raises BenchError unless the cells, by run id, share what makes a column: prompts, noise and way of sampling."""
    first = next(iter(cells.values())).cell.identity
    differ = {
        run: [key for key in ("dataset", "backbone", "sampler") if work.cell.identity[key] != first[key]]
        for run, work in cells.items()
    }
    others = [run for run, keys in differ.items() if keys]
    if others:
        keep = [run for run in cells if run not in others]
        how = f"run_id={','.join(keep)}" if len(keep) < len(others) else f"run_id!={','.join(others)}"
        raise BenchError(
            f"The records differ in their {differ[others[0]][0]} ({keep[0]} and {others[0]}), so their images cannot "
            f"share columns; show those like the first one with --where '{how}'."
        )


def _label(lines: pd.DataFrame, configs: Mapping[str, Mapping[str, Any]]) -> Any:
    """What names a row: method and strength, and what tells its settings and its training seed from those of others."""
    from bench.analysis import settings_in_words

    rows = set(zip(lines.method, lines.settings, strict=True))
    names = settings_in_words.labels(rows, settings_in_words.by_settings(configs))
    several = lines.seed.nunique() > 1
    return lambda row: (
        f"{names[row.method, row.settings]} {row.strength:g}" + (f" seed {row.seed:g}" if several else "")
    )


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(prog="python -m bench.grid", description="Images of many records in one picture.")
    parse.add_argument("--results", type=Path, default=paths.results_folder(), help="folder of the records")
    parse.add_argument("--where", nargs="+", action="extend", default=[], metavar="COLUMN=A,B", help="as bench.table")
    parse.add_argument("--columns", type=int, default=8, help="how many prompts")
    parse.add_argument("--out", type=Path, required=True, help="the PNG to write")
    return parse


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    check_place("--out", options.out)
    grid(*collect(options.results, options.where, options.columns), options.out)
    print(options.out)


if __name__ == "__main__":
    with one_sentence("bench.grid"):
        main()
