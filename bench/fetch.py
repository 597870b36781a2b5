"""Stage data and weights on this machine, verify them by sha256, find them again: `python -m bench.fetch NAME ...`.

A file is looked for in the offline mirror (BENCH_MIRROR), then in the cache (BENCH_CACHE, else .cache/ at the root).
Nothing is downloaded unless this command is typed: a run only ever reads what is staged.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.contracts import BenchError
from bench.data import schema, sources
from bench.data.download import check, stage
from bench.data.files import File, human
from bench.data.weights import (
    entry_of,
    hub_command,
    weights,
    weights_as_file,
    weights_file,
    weights_place,
    weights_state,
)
from bench.paths import configuration


def show() -> None:
    """Print every dataset and every entry of the weights registry with what is on this machine."""
    for name in schema.names():
        spec = schema.describe(name)
        wanted = sources.files(spec)
        here = sum(file.place() is not None for file in wanted)
        state = f"{here} of {len(wanted)} files here" if wanted else "drawn by the project, or your own images"
        print(f"{name:32} {state:42} {spec['licence'] or ''}")
    print()
    show_weights()


def show_weights() -> None:
    for id, entry in weights().items():
        state, about = weights_state(id)
        size = "" if "hub" in entry else f"{human(entry.get('size'))}; "
        print(f"{id:26} {state:7} {entry['used_by']}; {size}{entry['licence']}; read by {entry['loader']}")
        print(f"{'':34} {about}")


def fetch_dataset(name: str, act: Callable[[File], Path]) -> None:
    """Stage or check every file of a dataset, its licence shown first. Raises BenchError."""
    spec = schema.describe(name)
    wanted = sources.files(spec)
    print(f"{name}: {len(wanted)} files. Licence: {spec['licence']}. Source: {spec['source']}")
    for file in wanted:
        print(f"  {act(file)}")


def fetch_weights(id: str, act: Callable[[File], Path]) -> None:
    """Stage or check one file of the registry; of a hub repository, print the command. Raises BenchError."""
    entry = entry_of(id)
    if "hub" in entry:
        print(f"{id}: {hub_command(entry)}")
        return
    print(f"{id}: {human(entry.get('size'))}. Licence: {entry['licence']}. Source: {entry['url']}")
    here = weights_place(entry)
    print(f"  {weights_file(id) if here else act(weights_as_file(id))}")


def _tasks(what: Sequence[str]) -> list[tuple[Callable, str]]:
    """(function, name) for everything requested: datasets, then weights. `all` is every one of them."""
    place = what.index("weights") if "weights" in what else len(what)
    requested, named = what[:place], what[place + 1 :]
    names = schema.names() if "all" in requested else requested
    ids = list(weights()) if "all" in named else [id for name in named for id in _named_weights(name)]
    return [(fetch_dataset, name) for name in names] + [(fetch_weights, id) for id in dict.fromkeys(ids)]


def _named_weights(name: str) -> list[str]:
    """The weights of this id, or all that a set of metrics names (conf/metrics/<name>.yaml)."""
    path = configuration(f"metrics/{name}.yaml")
    if name in weights() or not path.is_file():
        return [name]
    words = re.findall(r"\w+", path.read_text())
    return [id for id in weights() if id in words]


def main(argv: Sequence[str] | None = None) -> int:
    """0 when everything requested is here, 1 otherwise; one failure does not keep the others from being staged."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.fetch", description="Stage datasets and weights on this machine and verify them."
    )
    parser.add_argument(
        "what",
        nargs="*",
        help="datasets or all, then perhaps: weights ID|METRICS ...|all; without any: a list",
    )
    parser.add_argument("--check", action="store_true", help="download nothing, only verify what is here")
    args = parser.parse_args(argv)
    failures = 0
    if args.what in ([], ["weights"]):
        show() if not args.what else show_weights()
        return 0
    for task, name in _tasks(args.what):
        try:
            task(name, check if args.check else stage)
        except BenchError as error:
            failures += 1
            print(f"bench.fetch: {name}: {error}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
