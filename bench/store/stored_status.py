"""What became of a cell, as a line for the user; a status that an earlier run stored says so, and what repeats it."""

from __future__ import annotations

from bench.store.record import Record

AGAIN = {"failed": "mode=retry", "skipped": "mode=force"}  # what runs such a cell again


def line(record: Record, stored: bool) -> str:
    """ "failed: <run id>: <reason>", with the time and the setting that repeats it where it was stored before."""
    text = f"{record.status}: {record.run_id}: {record.reason}"
    return f"{text} ({_when(record)}; type {AGAIN[record.status]} to run the cell again)" if stored else text


def is_stored(record: Record, before: Record | None) -> bool:
    """Whether a record is the one that was there before."""
    return before is not None and before.provenance == record.provenance and before.status == record.status


def _when(record: Record) -> str:
    ended = str(record.provenance.get("ended") or "")[:16].replace("T", " ")
    return f"this is stored since {ended} UTC" if ended else "this is stored from an earlier run"
