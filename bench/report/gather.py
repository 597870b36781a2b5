"""What the page shows of the records, as plain lists and dictionaries that can be written as JSON."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.analysis import frames, shown_columns, variants
from bench.analysis.table_model import ROW, Column, Row, TableModel
from bench.report.command import command
from bench.store.record import Record, Store

if TYPE_CHECKING:
    import pandas as pd

OWN = ("started", "ended", "dataset_hash", "weights_hash")  # of a provenance, what cells do not share
LOG_LINES = 12  # of a traceback or a training log


def chosen(
    root: Path, conditions: Sequence[str], runs: Collection[str] | None = None
) -> tuple[list[Record], pd.DataFrame]:
    """The records (of some cells, else of all) that meet the conditions, and their long table."""
    store = Store(root)
    some = (store.read(run_id) for run_id in sorted(runs or ()))
    records = list(store.records()) if runs is None else [record for record in some if record is not None]
    lines = frames.where(frames.frame(records), conditions)
    wanted = set(lines.run_id)
    return [record for record in records if record.run_id in wanted], lines


def cells(
    records: Sequence[Record], root: Path, datasets: Mapping[str, str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One dictionary per record; provenances are shared, so each stands once and cells hold its place.

    `datasets` are the datasets' labels by run id.
    """
    places: dict[str, int] = {}
    shared: list[dict[str, Any]] = []
    made = [_cell(record, root, places, shared) for record in records]
    return [cell | {"dataset": datasets[cell["id"]]} for cell in made], shared


def _cell(record: Record, root: Path, places: dict[str, int], shared: list[dict[str, Any]]) -> dict[str, Any]:
    times = {key: record.provenance.get(key) for key in OWN}
    common = {key: value for key, value in record.provenance.items() if key not in OWN}
    place = places.setdefault(json.dumps(common, sort_keys=True, default=str), len(shared))
    if place == len(shared):
        shared.append(common)
    return {
        "id": record.run_id,
        **{key: variants.name_of(record.config.get(key)) for key in ("method", "backbone", "seed")},
        "settings": frames.settings_hash(record.config),
        "status": record.status,
        "reason": record.reason,
        "strengths": sorted({s["strength"] for s in record.scores if s.get("strength") is not None}),
        "cost": {key: value for key, value in record.cost.items() if value is not None},
        "notes": record.notes,
        "times": times,
        "provenance": place,
        "command": command(record),
        "losses": _losses(root / record.run_id / "log.csv"),
    }


def _losses(path: Path, points: int = 60) -> list[float]:
    """Means of the last loss of each step over at most `points` stretches of training."""
    import numpy as np

    try:
        with path.open(newline="") as file:
            texts = [line["losses"].split()[-1] for line in csv.DictReader(file) if line.get("losses")]
        values = np.array([float(text) for text in texts])
    except (OSError, ValueError, KeyError, csv.Error):
        return []
    return [float(f"{part.mean():.3g}") for part in np.array_split(values, min(points, len(values))) if len(part)]


def failures(records: Sequence[Record], root: Path, everything: bool) -> list[dict[str, Any]]:
    """Cells without numbers, each with the end of its log: failed and skipped, and, unless the records are a choice,
    unreadable and unfinished ones, of which nothing is known but their folder.
    """
    bad = [
        {"id": r.run_id, "status": r.status, "reason": r.reason, "log": _tail(root / r.run_id), "command": command(r)}
        for r in records
        if r.status != "done"
    ]
    if not everything:
        return bad
    found = sorted(path.parent for path in root.glob("[!.]*/record.json"))
    unread = [folder for folder in found if Store(root).read(folder.name) is None]
    bad += [_nameless(folder, "unreadable", "its record.json cannot be read; run the cell again") for folder in unread]
    begun = sorted(path for path in root.glob(".work/[!.]*") if path.is_dir())
    reason = "no record yet: it is running, or was killed and goes on when its command is given again"
    return bad + [_nameless(folder, "unfinished", reason) for folder in begun]


def _nameless(folder: Path, status: str, reason: str) -> dict[str, Any]:
    return {"id": folder.name, "status": status, "reason": reason, "log": _tail(folder), "command": None}


def _tail(folder: Path) -> str:
    """The end of the traceback, else of the training log."""
    for name in ("error.txt", "log.csv"):
        try:
            lines = (folder / name).read_text(errors="replace").splitlines()
        except OSError:
            continue
        cut = f"... {len(lines) - LOG_LINES} lines above\n" if len(lines) > LOG_LINES else ""
        return f"{name}\n{cut}" + "\n".join(line[:400] for line in lines[-LOG_LINES:])
    return ""


def columns(model: TableModel) -> list[dict[str, Any]]:
    """Every column that holds a number: its name, network, direction, footnotes, and whether it is shown at first."""
    first = {column.full for column in model.columns if column.name in shown_columns.headline()}
    if not any(column.full in first and column.name not in frames.COST for column in model.columns):
        first = {column.full for column in model.columns}
    return [_column(column, column.full in first) for column in model.columns]


def _column(column: Column, first: bool) -> dict[str, Any]:
    about = {"key": column.full, "name": column.name, "network": column.network or "", "higher": column.up}
    return about | {"marks": column.marks, "first": first, "cost": column.name in frames.COST}


def rows(model: TableModel, main: Container[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """The rows of a table, each number as [mean, low, high]; `main` holds the rows that the gallery's rule shows."""
    return [_row(row, model, main) for row in model.rows]


def _key(values: Iterable[Any]) -> tuple[Any, ...]:
    """Values that can be compared: a missing one is None."""
    return tuple(None if value != value else value for value in values)


def _row(row: Row, model: TableModel, main: Container[tuple[Any, ...]]) -> dict[str, Any]:
    key = dict(zip(ROW, _key(row.key[name] for name in ROW), strict=True))
    pairs = list(zip(model.columns, row.values, strict=True))
    return {
        **key,
        "n": row.runs,
        "status": (row.values[0].text if row.values else "") or "done",
        "reason": row.reason,
        "marks": row.marks,
        "main": tuple(key.values()) in main,
        "best": [column.full for column, value in pairs if value.bold],
        "v": {c.full: [short(v.mean), short(v.low), short(v.high)] for c, v in pairs if v.mean == v.mean},
    }


def short(number: Any) -> float | None:
    """Five figures; None where there is no number."""
    return float(f"{number:.5g}") if isinstance(number, (int, float)) and number == number else None


def fingerprints(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Metric and what its numbers depend on, each pair once; the number of images and references are counts."""
    found: dict[tuple[Any, str], None] = {}
    for score in (score for record in records for score in record.scores):
        text = json.dumps(score.get("fingerprint") or {}, sort_keys=True, default=str)
        found[score.get("group") or score.get("metric"), text] = None
    return [(str(name), text[1:-1].replace('"', "")) for name, text in sorted(found, key=str)]


def package_differences(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Our metric, its network, the package that computed it too, values compared, and the largest difference.

    A fingerprint says which package (`engine`) computed a value, and of which metric of ours (`same_as`).
    """
    found: dict[tuple[str, str, str], list[float]] = {}
    for record in records:
        ours = {(s["strength"], s["metric"], s.get("network")): s["value"] for s in record.scores if "strength" in s}
        for score in record.scores:
            about = score.get("fingerprint") or {}
            same = about["same_as"].get(score["metric"]) if isinstance(about.get("same_as"), dict) else None
            value = ours.get((score.get("strength"), same, score.get("network")))
            if value is not None and math.isfinite(gap := abs(score["value"] - value)):
                found.setdefault((str(same), str(score.get("network")), str(about.get("engine"))), []).append(gap)
    return [(*key, str(len(gaps)), f"{max(gaps):.2g}") for key, gaps in sorted(found.items())]
