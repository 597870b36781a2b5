"""Which numbers of a finished cell stand, and which are to be measured: new ones, and those of an older version.

A record keeps under "scored" what `Cell.measure` says of each metric and strength: "<name> <settings> <version and
weights> <strength>". Older records lack the third word; what their fingerprints say stands in for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bench.cell import Cell, identity
from bench.store.record import Record


def lacks(record: Record, cell: Cell) -> list[tuple[float, list[str]]]:
    """Strengths with the metrics to score: what the record lacks, and of an outdated metric all strengths it has."""
    wanted: dict[float, list[str]] = {strength: [] for strength in cell.strengths}
    for name in cell.metrics:
        has = {entry["strength"] for entry in record.scores if entry.get("group") == name}
        for strength in dict.fromkeys([*cell.strengths, *sorted(has)]):
            if not stands(record, cell, name, strength):
                wanted.setdefault(strength, []).append(name)
    return [(strength, names) for strength, names in wanted.items() if names]


def stands(record: Record, cell: Cell, name: str, strength: float) -> bool:
    """Whether the record holds what a metric, with these settings, this version and these weights, gives.

    So it does when its numbers are of a newer version, or when the weights are not here to measure them again.
    """
    key = cell.measure(name, strength)
    if key in record.config["scored"]:
        return True
    _, settings, known, at = key.split(" ")
    same = [old.split(" ") for old in record.config["scored"] if old.startswith(f"{name} {settings} ")]
    same = [words for words in same if words[-1] == at]
    if not same or known == "?":
        return bool(same)
    parts = identity(json.dumps(cell.metrics[name], sort_keys=True, default=str))
    entries = [e for e in record.scores if e.get("group") == name and e["strength"] == strength]
    if any(_version(entry) > _number(parts[0]) for entry in entries):
        return True
    return len(same[-1]) == 3 and all(_agrees(entry, parts) for entry in entries)


def drop(record: Record, name: str, strength: float) -> list[str]:
    """Take a metric's numbers at one strength, and what was noted of it, out of a record; returns the numbers' ids."""
    gone = [e for e in record.scores if e.get("group") == name and e["strength"] == strength]
    record.scores = [entry for entry in record.scores if entry not in gone]
    keys = [key for key in record.config["scored"] if key.startswith(f"{name} ") and key.endswith(f" {strength:g}")]
    record.config["scored"] = [key for key in record.config["scored"] if key not in keys]
    if keys:
        about = (f"metric {name}: ", f"metric {name} left out: ")
        record.notes = [note for note in record.notes if not note.startswith(about)]
    return [entry["metric"] for entry in gone]


def _version(entry: Mapping[str, Any]) -> int:
    """Of a fingerprint's "fid 2"; 0 where it does not say."""
    return _number(str(entry.get("fingerprint", {}).get("metric", "")))


def _number(words: str) -> int:
    last = words.rpartition(" ")[2]
    return int(last) if last.isdigit() else 0


def _agrees(entry: Mapping[str, Any], parts: tuple[str, ...]) -> bool:
    weights = entry.get("fingerprint", {}).get("weights", "")
    return _version(entry) == _number(parts[0]) and any(weights in part for part in parts)
