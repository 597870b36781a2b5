"""Which numbers may stand in one column: those that depend on the same things besides the images.

A record keeps a fingerprint with every number. What says how it was measured (RECIPE) must be the same in a whole
column; all else in it (the reference set, its size, n) belongs to the dataset and must be the same for one dataset.
What a metric only observed, listed as `observed` in conf/table.yaml, may differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bench.contracts import BenchError

if TYPE_CHECKING:
    import pandas as pd

RECIPE = ("metric", "network", "weights", "preprocessing", "versions")


def check(scored: pd.DataFrame, observed: frozenset[str] = frozenset(), mix: bool = False) -> dict[str, str]:
    """Column -> in what its numbers differ, of lines with column, dataset, run_id and fingerprint.

    Raises BenchError when there is such a column, unless `mix` says that it is wanted.
    """
    found = {str(name): "; ".join(_differences(part, observed)) for name, part in scored.groupby("column", sort=False)}
    found = {name: text for name, text in found.items() if text}
    if found and not mix:
        name, text = next(iter(found.items()))
        more = f" The same holds for {', '.join(list(found)[1:])}." if len(found) > 1 else ""
        raise BenchError(
            f"Numbers of unlike fingerprints would share the column {name}: {text}.{more} Give the commands of the "
            "older records again, which measures them anew; or choose some with --where, or put them together all the "
            "same, with a footnote: --mix."
        )
    return found


def publishable(scored: pd.DataFrame) -> dict[str, str]:
    """Column -> why its numbers are not fit to publish, where their fingerprints say that they are not."""
    found: dict[str, str] = {}
    for (name, text), _ in scored.groupby(["column", "fingerprint"], sort=False):
        about = json.loads(text)
        if about.get("publishable") is False:
            found[str(name)] = f"at n = {about.get('n')} its bias is larger than what it measures; do not publish it"
    return found


def _differences(part: pd.DataFrame, observed: frozenset[str]) -> Iterator[str]:
    """A sentence for each thing that must not differ and does, with a run for each of its values."""
    lines = part.drop_duplicates(["dataset", "fingerprint"])
    prints = [(str(row.dataset), str(row.run_id), _flat(json.loads(row.fingerprint))) for row in lines.itertuples()]
    for key in dict.fromkeys(key for _, _, about in prints for key in about):
        if key.partition(".")[0] not in observed:
            yield from _split_values(key, prints)


def _flat(about: Mapping[str, Any]) -> dict[str, str]:
    """Versions apart, {"versions.torch": "2.14.1"}, so that a difference names the library."""
    parts = {f"versions.{name}": value for name, value in (about.get("versions") or {}).items()}
    rest = {key: value for key, value in about.items() if key != "versions"} | parts
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in rest.items()}


def _split_values(key: str, prints: list[tuple[str, str, dict[str, str]]]) -> Iterator[str]:
    whole = key.partition(".")[0] in RECIPE
    for dataset in [None] if whole else dict.fromkeys(dataset for dataset, _, _ in prints):
        runs: dict[str, str] = {}
        for found, run, about in prints:
            if dataset in (None, found):
                runs.setdefault(about.get(key, "absent"), run)
        if len(runs) > 1:
            yield f"{key} is " + " and ".join(f"{value} in {run}" for value, run in runs.items())
