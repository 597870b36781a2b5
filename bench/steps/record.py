"""Record: what became of a cell, written into its folder and published."""

from __future__ import annotations

import traceback
from typing import Any

from bench import environment, fairness
from bench.cell import Cell
from bench.contracts import BenchError, Impossible
from bench.errors import Unavailable
from bench.files import atomic_write
from bench.steps import tracking
from bench.steps.baseline import baseline
from bench.steps.costs import costs
from bench.steps.sample import images
from bench.steps.work import Work
from bench.store import contents
from bench.store.provenance import provenance
from bench.store.record import Record


def record(work: Work, scores: list[dict[str, Any]]) -> Record:
    """Publish the record of a cell that has ended, well or not. Raises Unavailable where the environment ended it."""
    cell = work.cell
    made = Record(cell.run_id, "done", notes=work.notes, scores=scores)
    work.attempt(lambda: show(work))
    _check_environment(work)
    made.status, made.reason = _status(work)
    made.config, made.cost = work.config() | {contents.KEY: contents.contents(work.folder)}, costs(work)
    note_departures(made, cell)
    identity = cell.identity
    made.provenance = provenance(identity["dataset"]["content"], identity["backbone"]["weights"], work.started)
    tracking.show_record(work, made)
    with environment.using(work.folder):
        work.publish(made)
    return made


def _check_environment(work: Work) -> None:
    if work.error is None:
        return
    if (found := environment.failure(work.error)) is not None:
        raise found from work.error
    if not work.folder.is_dir():
        raise Unavailable(
            f"{work.folder} is gone; check that its file system is there, then type the same command again."
        )


def _status(work: Work) -> tuple[str, str | None]:
    """Status and reason; the traceback of a bug, ours or a library's, is kept, and the sweep goes on."""
    error = work.error
    if error is None:
        return "done", None
    if isinstance(error, BenchError):
        return "skipped" if isinstance(error, Impossible) else "failed", str(error)
    atomic_write(work.folder / "error.txt", "".join(traceback.format_exception(error)).encode())
    return "failed", f"{type(error).__name__}: {error}"


def note_departures(made: Record, cell: Cell) -> bool:
    """Note how a cell departs from the contract that it is requested under now. Returns whether the notes changed."""
    if made.status != "done":
        return False
    before, found = made.notes, fairness.contract(cell).deviations(cell, made.cost)
    made.notes = [note for note in before if not note.startswith(fairness.PREFIX)]
    made.notes += [fairness.PREFIX + deviation for deviation in found]
    return made.notes != before


def show(work: Work) -> None:
    """A grid of images, and what the tracker wants to see."""
    from bench.sampling.grid import grid

    shown = [shot.index for shot in work.shots]
    first = [i for i, index in enumerate(shown) if index not in shown[:i]][:8]  # one image of each prompt
    rows = [("backbone", baseline(work)[first])]
    rows += [(f"{work.method.strength_knob} {s:g}", images(work, s)[first]) for s in work.cell.strengths]
    if work.dataset.oracle is not None:
        import numpy as np

        rows.append(("style itself", np.stack([work.dataset.oracle(image) for image in baseline(work)[first]])))
    path = work.folder / "grid.png"
    grid(rows, [work.shots[i].prompt for i in first], path)
    tracking.show_images(work)
    tracking.keep_adapters(work)
