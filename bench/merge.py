"""Take the finished cells of another store into this one: python -m bench.merge OTHER

Each cell is checked: its record is whole, and its adapters and images are as the record lists them. A run id that is
here with other content is kept as it is, and named.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import paths
from bench.contracts import BenchError
from bench.environment import one_sentence
from bench.store.record import Store


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(prog="python -m bench.merge", description="Take in the cells of another store.")
    parse.add_argument("other", metavar="OTHER", type=Path, help="folder of the other records")
    parse.add_argument("--results", type=Path, default=paths.results_folder(), help="folder of the records")
    parse.add_argument(
        "--cache", type=Path, help="the other store's cache folder: its images of backbones, so none is drawn again"
    )
    return parse


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all cells are here, 1 when some were refused."""
    options = parser().parse_args(arguments)
    for folder in filter(None, (options.other, options.cache)):
        if not folder.is_dir():
            raise BenchError(f"{folder} was requested, which is no folder; correct the path.")
    if options.other.resolve() == options.results.resolve():
        raise BenchError(f"{options.other} is this store itself; give the folder of another one.")
    refused = merged(options.other, options.results)
    if options.cache:
        from bench.store.housekeeping import take_in_images

        print(f"{take_in_images(paths.cache_folder(), options.cache)} folders of cached images taken in")
    return 1 if refused else 0


def merged(other: Path, results: Path) -> int:
    """Take in all cells; how many were refused."""
    from bench.store.housekeeping import take_in

    taken, known, refused = 0, 0, 0
    for path in sorted(other.glob("[!.]*/record.json")):
        try:
            new = take_in(Store(results), path.parent)
            taken, known = taken + new, known + (not new)
        except BenchError as error:
            refused += 1
            print(f"bench.merge: {error}", file=sys.stderr)
    if not taken + known + refused:
        raise BenchError(f"{other} holds no finished cell; give a folder of records, such as results.")
    print(f"{taken} taken in, {known} here already, {refused} refused")
    return refused


if __name__ == "__main__":
    with one_sentence("bench.merge"):
        sys.exit(main())
