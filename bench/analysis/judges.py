"""What is known of the models that judge images: whether they agree with people (`bench.study`), for footnotes."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import reading
from bench.errors import BenchError
from bench.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)
FILE = "judges.json"  # in the folder of the records: id of a judge -> its agreement
ENTRY: dict[str, Any] = {
    "study": str,
    "question": str,
    "raters": int,
    "alpha": (int, float, type(None)),
    "low": (int, float, type(None)),
    "high": (int, float, type(None)),
    "people alpha": (int, float, type(None)),
}
UNKNOWN = (
    "a model is the judge, and its agreement with people was not measured; type python -m bench.study judge, "
    "then read --keep"
)


def measured(root: Path) -> dict[str, dict[str, Any]]:
    """The agreement of each judge that was measured, by its id; a damaged file costs a warning line."""
    path = root / FILE
    if not path.exists():
        return {}
    try:
        found = reading.mapping(path)
        for name, entry in found.items():
            reading.check({name: entry}, {name: dict})
            reading.check(entry, ENTRY, f"{name}.")
    except (OSError, BenchError) as error:
        log.warning("%s was left out: %s.", path, error)
        return {}
    return found


def keep(root: Path, found: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write what was measured, beside what is known of other judges; the latest study of a judge counts."""
    atomic_write(root / FILE, json.dumps(measured(root) | dict(found), indent=1).encode())
    return root / FILE


def notes(scored: pd.DataFrame, root: Path | None) -> dict[str, str]:
    """Column -> what must be said of its judge, of lines with column and fingerprint of records below `root`."""
    judged = {text: json.loads(text).get("judge") for text in scored.fingerprint.unique() if '"judge"' in text}
    lines = scored[scored.fingerprint.isin([text for text, judge in judged.items() if judge])]
    known = measured(root) if root is not None and len(lines) else {}
    pairs = lines[["column", "fingerprint"]].drop_duplicates()
    return {str(pair.column): _about(known.get(judged[pair.fingerprint])) for pair in pairs.itertuples()}


def _about(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["alpha"] is None:
        return UNKNOWN
    around = "" if entry["low"] is None else f" ({entry['low']:.2f} to {entry['high']:.2f})"
    people = "" if entry["people alpha"] is None else f", people with each other {entry['people alpha']:.2f}"
    return (
        f"a model is the judge; in study {entry['study']} its Krippendorff's alpha with {entry['raters']} people is "
        f"{entry['alpha']:.2f}{around}{people}; the question was: {entry['question']}"
    )
