"""The same tables, figures and page for W&B, offline unless WANDB_MODE says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench import formats
from bench.report.page import Gathered
from bench.track import Tracker, Wandb


def publish(gathered: Gathered, page: Path, figures: Sequence[Path], tracker: Tracker | None = None) -> None:
    """One run of its own, called report-<time>: tables `summary` and `long`, each figure's PNG, the page as a file."""
    tracker = tracker or Wandb(folder=str(gathered.wishes.root))
    name = f"report-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    tracker.start(name, {"where": list(gathered.wishes.conditions)}, tags=["report"])
    tracker.table("summary", formats.wide(gathered.sheet))
    tracker.table("long", formats.long(gathered.sheet))
    for path in figures:
        if path.suffix == ".png":
            tracker.images(path.stem, path)
    tracker.artifact(name, page, "report")
    tracker.finish("done")
