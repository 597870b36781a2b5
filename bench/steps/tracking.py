"""What the tracker is given of a cell besides its losses: images, adapters, and the record as config and summary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bench.cell import default_strength
from bench.steps.sample import images
from bench.steps.work import Work
from bench.store.record import Record

SHOWN = 8  # single images of each strength, one of each prompt
DRAWS = "style"  # the adapter that is made for others to load; see `Method.adapters`
RUN = "tracker_run"  # key of a record's provenance: the tracker's id of its run


def show_images(work: Work) -> None:
    """The grid, and single images with their prompt, seed and strength."""
    tracker = work.tracker
    if tracker.silent:
        return
    tracker.images("grid", work.folder / "grid.png")
    places = [shot.index for shot in work.shots]
    rows = [row for row, place in enumerate(places) if place not in places[:row]][:SHOWN]
    for strength in work.cell.strengths:
        captions = [f"{work.shots[row].prompt} (seed {work.shots[row].seed}, strength {strength:g})" for row in rows]
        tracker.pictures(f"images/strength={strength:g}", images(work, strength)[rows], captions)


def keep_adapters(work: Work) -> None:
    """The adapter that draws; with the tracker's `all_adapters` every one, and also where none has that name."""
    files = sorted((work.folder / "adapters").glob("*.safetensors"))
    draws = [file for file in files if file.stem == DRAWS]
    for file in files if work.tracker.all_adapters or not draws else draws:
        work.tracker.artifact(f"{work.cell.run_id}-{file.stem}", file, "adapter")


def show_record(work: Work, made: Record) -> None:
    """Its end in the run's config, its numbers in the run's summary, and in a table unless the run had one before."""
    from bench.analysis import frames

    tracker = work.tracker
    if tracker.silent:
        return
    made.provenance[RUN] = tracker.id
    tracker.describe(described(work, made))
    if work.record is None:  # a table is a step of the history, which ended with the training
        tracker.table("metrics", frames.long([made]))
    tracker.summary(summary(made, default_strength(work.cell.method)))


def described(work: Work, made: Record) -> dict[str, Any]:
    """What runs are filtered by and is no setting of a part: status, reason, commit, strengths, prompts."""
    prompts = list(work.dataset.prompts) if "dataset" in vars(work) else []  # a cell may end before it is read
    about = {key: made.provenance.get(key) for key in ("commit", "dirty")}
    strengths = sorted({*work.cell.strengths, *(score["strength"] for score in made.scores)})
    return {"status": made.status, "reason": made.reason, "strengths": strengths, "prompts": prompts, **about}


def summary(made: Record, default: float) -> dict[str, float]:
    """Each score as a scalar: `kid` at the default strength, or the first where that was not drawn, whose value is
    `strength`; `strength=2/kid` at the others. Costs are `cost/train_s`. What is not finite is left out."""
    strengths = list(dict.fromkeys(score["strength"] for score in made.scores))
    main = default if default in strengths else next(iter(strengths), default)
    found = {"strength": main} if strengths else {}
    for score in made.scores:
        prefix = "" if score["strength"] == main else f"strength={score['strength']:g}/"
        found[f"{prefix}{score['metric']}"] = score["value"]
    return _finite(found | {f"cost/{name}": value for name, value in made.cost.items()})


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
    return {key: value for key, value in numbers.items() if math.isfinite(value)}
