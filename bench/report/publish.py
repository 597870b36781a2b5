"""The same tables, figures and page for W&B, offline unless WANDB_MODE says otherwise."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.analysis import claim_text, formats
from bench.report.figures import figures, write
from bench.report.page import Gathered, Wishes, gathered, settings
from bench.track import Tracker, Wandb


def publish(found: Gathered, page: Path, drawn: Sequence[Path], tracker: Tracker | None = None) -> None:
    """One run of its own, called report-<time>: tables, each figure's PNG, the page as a file."""
    tracker = tracker or Wandb(folder=str(found.wishes.root))
    name = f"report-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    tracker.start(name, {"where": list(found.wishes.conditions)}, tags=["report"])
    _show(found, drawn, tracker)
    tracker.artifact(name, page, "report")
    tracker.finish("done")


def of_sweep(
    name: str,
    root: Path,
    runs: Collection[str],
    tracker: Tracker,
    group: str = "",
    experiment: str | None = None,
    words: Sequence[str] = (),
) -> None:
    """One run called summary-<name>, of the job type `summary`: the claims of the experiment (with the overrides of all
    its cells), tables and figures of some cells, without the page."""
    found = gathered(Wishes(root, runs=frozenset(runs), experiment=experiment, words=tuple(words)))
    with tempfile.TemporaryDirectory() as folder:
        drawn = write(figures(found.drawn, settings()), Path(folder))
        tracker.start(f"summary-{name}", {"cells": sorted(runs)}, group, ["summary"], job="summary")
        _show(found, drawn, tracker)
        tracker.finish("done")


def _show(found: Gathered, drawn: Sequence[Path], tracker: Tracker) -> None:
    """The table `claims`, then `summary` and `long`, one for each comparison, and the figures."""
    if found.claims:
        tracker.table("claims", claim_text.frame(found.claims))
    tracker.table("summary", formats.wide(found.model))
    tracker.table("long", formats.long(found.model))
    for title, frame, _ in found.comparisons:
        tracker.table(f"compare {title}", frame)
    for path in drawn:
        if path.suffix == ".png":
            tracker.images(path.stem, path)
