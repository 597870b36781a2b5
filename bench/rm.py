"""Delete finished cells of a store: python -m bench.rm --where method=slider status=failed

It lists the cells and asks first. A cell that a process works on is left alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import paths
from bench.contracts import BenchError
from bench.environment import one_sentence
from bench.store.leases import Taken
from bench.store.record import Store


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(prog="python -m bench.rm", description="Delete finished cells of a store.")
    parse.add_argument(
        "--where", nargs="+", action="extend", required=True, metavar="COLUMN=A,B", help="as bench.table"
    )
    parse.add_argument("--results", type=Path, default=paths.results_folder(), help="folder of the records")
    parse.add_argument("--yes", action="store_true", help="do not ask")
    return parse


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all that was chosen is gone, or the answer was no; 1 when a cell is being worked on."""
    options = parser().parse_args(arguments)
    chosen = listed(options.results, options.where)
    if not chosen:
        print("No record.")
        return 0
    for run_id, status in chosen.items():
        print(f"{run_id}  {status}")
    if not options.yes and not _agreed(len(chosen)):
        print("Nothing was deleted.")
        return 0
    return removed(Store(options.results), list(chosen))


def listed(root: Path, conditions: Sequence[str]) -> dict[str, str]:
    """Run id -> status of the cells that meet the conditions."""
    from bench.analysis import frames

    table = frames.where(frames.load(root), conditions)
    return dict(zip(table.run_id, table.status, strict=True))


def removed(store: Store, run_ids: Sequence[str]) -> int:
    from bench.store.housekeeping import remove

    left = 0
    for run_id in run_ids:
        try:
            remove(store, run_id)
        except Taken as error:
            left += 1
            print(f"bench.rm: {error}", file=sys.stderr)
    print(f"{len(run_ids) - left} deleted" + (f", {left} left" if left else ""))
    return 1 if left else 0


def _agreed(count: int) -> bool:
    try:
        return input(f"Delete {count} cell{'s' * (count != 1)}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        raise BenchError("Nobody is there to answer, so nothing was deleted; type --yes.") from None


if __name__ == "__main__":
    with one_sentence("bench.rm"):
        sys.exit(main())
