"""Names that older versions used in records, settings and commands, and what they are called today."""

from __future__ import annotations

from typing import Any

COLUMNS = {"own": "default_strength", "curve": "sweep"}  # of the table, and of its layouts
METRICS = {"oracle_closed_": "gap_closed_"}  # beginnings of ids


def today(name: str) -> str:
    """What a column, a layout or a metric is called today."""
    for old, new in METRICS.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return COLUMNS.get(name, name)


def renewed(record: dict[str, Any]) -> dict[str, Any]:
    """The content of a record.json under today's names."""
    config = record["config"]
    if "asked" in config:
        config["requested"] = config.pop("asked")
    method = (config.get("requested") or {}).get("method") or {}
    if "curve" in method:
        method["strength_sweep"] = method.pop("curve")
    for score in record["scores"]:
        if isinstance(score.get("metric"), str):
            score["metric"] = today(score["metric"])
    return record
