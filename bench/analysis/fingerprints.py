"""Which numbers may stand in one column: those that depend on the same things besides the images.

A record keeps a fingerprint with every number. What says how it was measured (RECIPE) must be the same in a whole
column; all else in it (the reference set, its size, n) belongs to the dataset and must be the same for one dataset.
What a metric only observed, listed as `observed` in conf/table.yaml, may differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.contracts import BenchError

if TYPE_CHECKING:
    import pandas as pd

SMALL = 0.1  # of a number: a null below this share is no reason not to publish it
MOST_RUNS = 12  # that a hint lists
RECIPE = ("metric", "network", "weights", "preprocessing", "versions")


def check(scored: pd.DataFrame, observed: frozenset[str] = frozenset(), mix: bool = False) -> dict[str, str]:
    """Column -> in what its numbers differ, of lines with column, dataset, run_id and fingerprint.

    Raises BenchError when there is such a column, unless `mix` says that it is wanted.
    """
    made = {str(name): list(_splits(part, observed)) for name, part in scored.groupby("column", sort=False)}
    made = {name: splits for name, splits in made.items() if splits}
    found = {name: "; ".join(split.words for split in splits) for name, splits in made.items()}
    if found and not mix:
        name, text = next(iter(found.items()))
        more = f" The same holds for {', '.join(list(found)[1:])}." if len(found) > 1 else ""
        raise BenchError(
            f"Numbers of unlike fingerprints would share the column {name}: {text}.{more} "
            f"{_hint([split for splits in made.values() for split in splits])}"
        )
    return found


def _hint(splits: Sequence[Split]) -> str:
    """What to type: each of these alone ends the refusal."""
    ways = ["put them together all the same, with a footnote: --mix"]
    others = sorted({run for split in splits for run in split.others})
    if len(others) <= MOST_RUNS:
        ways.insert(0, f"leave the others out with --where 'run_id!={','.join(others)}'")
    if all(split.key == "metric" for split in splits):
        ways.insert(0, "give the commands of the older records again, which measures them anew")
    text = ", or ".join(ways)
    return f"{text[0].upper()}{text[1:]}."


@dataclass(frozen=True)
class Split:
    """A thing in which numbers of one column differ: the runs that have each of its values."""

    key: str
    runs: Mapping[str, Sequence[str]]

    @property
    def words(self) -> str:
        return f"{self.key} is " + " and ".join(f"{value} in {runs[0]}" for value, runs in self.runs.items())

    @property
    def others(self) -> list[str]:
        """All runs but those that have the most frequent value."""
        most = max(self.runs.values(), key=len)
        return [run for runs in self.runs.values() if runs is not most for run in runs]


def publishable(scored: pd.DataFrame, nulls: pd.DataFrame | None = None) -> dict[str, str]:
    """Column -> why its numbers are not fit to publish, where their fingerprints say that they are not.

    `nulls` are lines of the same records: "<metric>_null" is what a perfect set scores at this size, so where it is a
    small part of every number of a column, the bias does not matter.
    """
    found: dict[str, str] = {}
    for (name, text), part in scored.groupby(["column", "fingerprint"], sort=False):
        about = json.loads(text)
        null = part.metric.iloc[0].endswith("_null")  # its bias is what it shows
        if about.get("publishable") is False and not null and not (part.value > _bias(part, nulls) / SMALL).all():
            found[str(name)] = f"at n = {about.get('n')} its bias is large against what it measures; do not publish it"
    return found


def _bias(part: pd.DataFrame, nulls: pd.DataFrame | None) -> float:
    """The largest null of some lines; infinite where it is not known."""
    if nulls is None:
        return float("inf")
    names, networks = {f"{name}_null" for name in part.metric.unique()}, list(part.network.unique())
    same = nulls[nulls.run_id.isin(part.run_id) & nulls.metric.isin(names) & nulls.network.isin(networks)]
    return float(same.value.max()) if same.value.notna().any() else float("inf")


def _splits(part: pd.DataFrame, observed: frozenset[str]) -> Iterator[Split]:
    """Each thing that must not differ and does."""
    lines = part.drop_duplicates(["dataset", "fingerprint", "run_id"])
    if lines.fingerprint.nunique() < 2:
        return
    known = {text: _flat(json.loads(text)) for text in lines.fingerprint.unique()}
    prints = [(str(row.dataset), str(row.run_id), known[row.fingerprint]) for row in lines.itertuples()]
    for key in dict.fromkeys(key for about in known.values() for key in about):
        if key.partition(".")[0] not in observed:
            yield from _split_values(key, prints)


def _flat(about: Mapping[str, Any]) -> dict[str, str]:
    """Versions apart, {"versions.torch": "2.14.1"}, so that a difference names the library."""
    parts = {f"versions.{name}": value for name, value in (about.get("versions") or {}).items()}
    rest = {key: value for key, value in about.items() if key != "versions"} | parts
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in rest.items()}


def _split_values(key: str, prints: list[tuple[str, str, dict[str, str]]]) -> Iterator[Split]:
    whole = key.partition(".")[0] in RECIPE
    for dataset in [None] if whole else dict.fromkeys(dataset for dataset, _, _ in prints):
        runs: dict[str, list[str]] = {}
        for found, run, about in prints:
            if dataset in (None, found):
                runs.setdefault(about.get(key, "absent"), []).append(run)
        if len(runs) > 1:
            yield Split(key, runs)
