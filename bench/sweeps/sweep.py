"""A sweep on disk: which cells were requested and, at any moment, what became of each. Nothing here runs anything.

<results>/.sweeps/<name>/
  sweep.json   the code, the settings, and the cells: each combination once, with its seeds
  redo.json    records to be made anew: run id -> what tells the record that is to be replaced
  refused/     a file for each cell that ended without a record, with the reason
  workers/     <name>.json, what a worker does, and <name>.lease, its sign of life
  log/         what workers said

A status is a record in the store, never what a queue says about a job.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import reading
from bench.cell import Cell
from bench.choices import Mode
from bench.contracts import BenchError
from bench.files import atomic_write
from bench.settings import digest
from bench.steps.identify import complete
from bench.store import leases, stored_classes
from bench.store.provenance import patch
from bench.store.record import Record, Store, check_run_id
from bench.sweeps.file_contents import SHAPE, WORKER
from bench.sweeps.settings import Settings
from bench.sweeps.sources import code, described

log = logging.getLogger(__name__)
SWEEPS = ".sweeps"
STATES = ("done", "failed", "skipped", "running", "open")
LEASES = (".lease", leases.OLDER)
OWN = ("seed", "results", "mode", "pack")  # of a cell: what is not kept with its combination


@dataclass(frozen=True)
class Entry:
    """A cell of a sweep: its combination's place in `Sweep.bases`, and its seed."""

    run_id: str
    base: int
    seed: int


@dataclass(frozen=True)
class State:
    status: str  # one of STATES
    reason: str | None = None


class Sweep:
    """The folder of one sweep, opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = folder.parent.parent
        self.store = Store(self.results)
        try:
            known = reading.mapping(folder / "sweep.json", **SHAPE)
            self.settings = Settings(**known["settings"])
            self.entries = [Entry(run_id, base, seed) for base, seed, run_id in known["cells"]]
            self._check(known["bases"])
        except (OSError, BenchError, TypeError, ValueError) as error:
            raise BenchError(f"{folder} holds no sweep that can be read ({error}).") from None
        self.code: dict[str, Any] = known["code"]
        self.estimate: dict[str, Any] | None = known["estimate"]
        self.started: float = known["started"]  # seconds since 1970
        self.mode: Mode = known["mode"]
        self.bases: list[dict[str, Any]] = known["bases"]
        self._known: dict[str, tuple[str, State]] = {}
        self._bases: dict[int, Cell] = {}

    def _check(self, bases: list[Any]) -> None:
        for base in bases:
            reading.check(base, {"strengths": list, **dict.fromkeys(("method", "dataset", "backbone"), dict)})
        for entry in self.entries:
            check_run_id(entry.run_id)
            if not (type(entry.base) is type(entry.seed) is int and 0 <= entry.base < len(bases)):
                raise BenchError(f"cell {entry.run_id} has no settings")

    # --- the cells

    def cell(self, entry: Entry) -> Cell:
        """What was requested; a record that is to be made anew is requested in the sweep's mode."""
        mode = self.mode if entry.run_id in self.redo() else "cached"
        return self.base(entry.base).with_seed(entry.seed, mode)

    def base(self, index: int) -> Cell:
        """A combination, with the seed of its first cell."""
        if index not in self._bases:
            first = next(entry for entry in self.entries if entry.base == index)
            stored_classes.check(base := self.bases[index], self.folder / "sweep.json")
            settings = base | {"strengths": tuple(base["strengths"]), "group": base.get("group") or self.folder.name}
            try:
                made = Cell(**settings, seed=first.seed, results=self.results)
                _ = made.identity
            except (TypeError, ValueError, KeyError, AttributeError) as error:
                raise BenchError(f"{self.folder} holds settings that make no cell ({error!r:.200}).") from error
            self._bases[index] = made
        return self._bases[index]

    def redo(self) -> dict[str, str]:
        try:
            return {
                run: token for run, token in reading.mapping(self.folder / "redo.json").items() if type(token) is str
            }
        except FileNotFoundError:
            return {}
        except BenchError as error:
            log.warning("%s was left out: %s.", self.folder / "redo.json", error)
            return {}

    # --- what became of them

    def states(self) -> dict[str, State]:
        """Run id -> state, now."""
        redo, leased = self.redo(), _leased(self.store.root / ".work")
        return {entry.run_id: self._state(entry.run_id, redo, leased) for entry in self.entries}

    def state(self, run_id: str) -> State:
        return self._state(run_id, self.redo(), {run_id})

    def _state(self, run_id: str, redo: Mapping[str, str], leased: set[str]) -> State:
        token = self.token(run_id)
        if token is not None and token != redo.get(run_id):
            return self._recorded(run_id, token)
        if (self.folder / "refused" / run_id).exists():
            return State("failed", self._refusal(run_id))
        alive = run_id in leased and leases.holder(self.store.lease_file(run_id)) is not None
        return State("running" if alive else "open")

    def _refusal(self, run_id: str) -> str:
        try:
            return reading.content(self.folder / "refused" / run_id).decode(errors="replace")
        except (OSError, BenchError) as error:
            return f"The reason cannot be read ({error})."

    def _recorded(self, run_id: str, token: str) -> State:
        if self._known.get(run_id, ("",))[0] != token:
            record = self.store.read(run_id)
            if record is None:
                return State("open")
            self._known[run_id] = (token, State(record.status, record.reason))
        return self._known[run_id][1]

    def token(self, run_id: str) -> str | None:
        """What tells a record from the one that replaces it; None where there is none."""
        try:
            found = (self.store.root / run_id / "record.json").stat()
        except FileNotFoundError:
            return None
        return f"{found.st_ino} {found.st_mtime_ns}"

    def open(self) -> list[Entry]:
        """Cells that have no status yet, in work or not."""
        states = self.states()
        return [entry for entry in self.entries if states[entry.run_id].status in ("open", "running")]

    def deaths(self, states: Mapping[str, State]) -> Counter[str]:
        """Run id -> workers that died over it; the last one's lease may still lie where a living one would."""
        work = self.store.root / ".work"
        names = _names(work, ".", "")
        buried = [name.partition(f"{ending}.dead-") for name in names for ending in LEASES]
        found = Counter(run_id for run_id, dead, _ in buried if dead)
        leased = _leased(work)
        return found + Counter(run_id for run_id in leased if run_id in states and states[run_id].status == "open")

    # --- what workers leave

    def refuse(self, run_id: str, reason: str) -> None:
        """A cell ends without a record, for example because its finished record could not be extended."""
        (self.folder / "refused").mkdir(exist_ok=True)
        atomic_write(self.folder / "refused" / run_id, reason.encode())

    def replaced(self, run_id: str) -> None:
        """The cell was run and its record is as it was: it counts as made anew."""
        if self.token(run_id) is not None and self.token(run_id) == self.redo().get(run_id):
            os.utime(self.store.root / run_id / "record.json")

    def workers(self) -> list[dict[str, Any]]:
        """What each worker last told, and under "alive" whether it still lives."""
        found = []
        for path in sorted((self.folder / "workers").glob("*.json")):
            owner = leases.holder(path.with_suffix(".lease"))
            try:
                found.append({**reading.mapping(path, **WORKER), "alive": owner is not None})
            except (OSError, BenchError) as error:
                log.warning("%s was left out: %s.", path, error)
        return found

    def check_code(self) -> None:
        """Raises BenchError when this process runs other code than the sweep began with."""
        here = code()
        if here["sources"] != self.code["sources"] and not self.settings.mix_code:
            raise BenchError(
                f"Sweep {self.folder.name} was started with {described(self.code)}; here is {described(here)}. Go back "
                "to that code, start the sweep in another folder (results=...), or type mix_code=true."
            )


def _leased(folder: Path) -> set[str]:
    """Run ids that a lease lies for, of whatever version."""
    return set().union(*(_names(folder, ".", ending) for ending in LEASES))


def _names(folder: Path, start: str, end: str) -> set[str]:
    """Names in a folder, without their start and end; nothing where there is no folder."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return set()
    return {n[len(start) : len(n) - len(end)] for n in names if n.startswith(start) and n.endswith(end)}


@dataclass
class Statuses:
    """The cells of a sweep by what is to be done, before anything runs."""

    new: list[Cell] = field(default_factory=list)
    again: list[Cell] = field(default_factory=list)  # a record is there, but more or another one is wanted
    done: list[Cell] = field(default_factory=list)
    failed: list[tuple[Cell, str]] = field(default_factory=list)  # with the reason; they stay so
    skipped: list[tuple[Cell, str]] = field(default_factory=list)

    @property
    def todo(self) -> list[Cell]:
        return self.new + self.again


def judge(cells: Sequence[Cell]) -> Statuses:
    """Which cells are settled already and which are to be run."""
    statuses = Statuses()
    for cell in cells:
        record = Store(cell.results).read(cell.run_id)
        if record is None:
            statuses.new.append(cell)
        elif not complete(record, cell):
            statuses.again.append(cell)
        elif record.status == "done":
            statuses.done.append(cell)
        else:
            kind = statuses.failed if record.status == "failed" else statuses.skipped
            kind.append((cell, record.reason or ""))
    return statuses


def merged(cells: Sequence[Cell]) -> list[Cell]:
    """Each run id once, with all strengths and metrics that are asked of it."""
    found: dict[str, Cell] = {}
    for cell in cells:
        old = found.setdefault(cell.run_id, cell)
        strengths = tuple(dict.fromkeys([*old.strengths, *cell.strengths]))
        if strengths != old.strengths or old.metrics != cell.metrics:
            found[cell.run_id] = replace(old, strengths=strengths, metrics={**old.metrics, **cell.metrics})
    return list(found.values())


def submit(
    cells: Sequence[Cell], settings: Settings, statuses: Statuses, estimate: Mapping[str, Any] | None = None
) -> Sweep:
    """Write down a sweep, or open the one of the same cells again, with what is to be done anew."""
    folder = cells[0].results / SWEEPS / _name(cells)
    stored_classes.trust(_numbered(cells)[0])  # this process's own command names them, no file
    stored_classes.trust_names(settings.runner)
    before = Sweep(folder) if (folder / "sweep.json").exists() else None
    if before is not None and len(statuses.todo) < len(cells):  # else nothing of other code would remain
        if not statuses.todo:
            return before
        before.settings = settings
        before.check_code()
    for name in ("workers", "log", "refused"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "code.patch", patch())
    atomic_write(folder / "sweep.json", json.dumps(_spec(cells, settings, before, estimate)).encode())
    sweep = Sweep(folder)
    _ask_again(sweep, statuses)
    return sweep


def _spec(
    cells: Sequence[Cell], settings: Settings, before: Sweep | None, estimate: Mapping[str, Any] | None
) -> dict[str, Any]:
    bases, numbered = _numbered(cells)
    return {
        "format": 1,
        "started": before.started if before else datetime.now(UTC).timestamp(),
        "code": code(),
        "mode": cells[0].mode,
        "settings": asdict(settings),
        "estimate": (before and before.estimate) or estimate,
        "bases": bases,
        "cells": numbered,
    }


def _ask_again(sweep: Sweep, statuses: Statuses) -> None:
    """Remember which records are to be replaced, and forget refusals."""
    redo = sweep.redo() | {cell.run_id: sweep.token(cell.run_id) or "" for cell in statuses.again}
    atomic_write(sweep.folder / "redo.json", json.dumps(redo).encode())
    for cell in statuses.todo:
        (sweep.folder / "refused" / cell.run_id).unlink(missing_ok=True)
        if not leases.holder(sweep.store.lease_file(cell.run_id)):
            leases.forget_deaths(sweep.store.lease_file(cell.run_id))


def _numbered(cells: Sequence[Cell]) -> tuple[list[dict[str, Any]], list[tuple[int, int, str]]]:
    """Each combination once, and (its place, seed, run id) of each cell."""
    places: dict[str, int] = {}
    bases: list[dict[str, Any]] = []
    numbered = []
    for cell in cells:
        settings = {f.name: getattr(cell, f.name) for f in fields(Cell) if f.name not in OWN}
        key = digest(settings, 32)
        if key not in places:
            places[key] = len(bases)
            bases.append(settings)
        numbered.append((places[key], cell.seed, cell.run_id))
    return bases, numbered


def _name(cells: Sequence[Cell]) -> str:
    """The same for the same cells, whoever asks and how often."""
    requested = sorted((cell.run_id, sorted(cell.strengths), sorted(cell.metrics)) for cell in cells)
    word = re.sub(r"[^A-Za-z0-9._-]+", "-", cells[0].group or "sweep").strip("-.")[:60] or "sweep"
    return f"{word}-{digest(requested, 8)}"


def sweeps(results: Path) -> Iterator[Path]:
    """Folders of all sweeps, the newest last."""
    found = results.glob(f"{SWEEPS}/*/sweep.json")
    yield from (path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime))


def seconds(record: Record) -> float:
    """What a cell took in all its phases."""
    return sum(value for key, value in record.cost.items() if key in PHASES and value)


PHASES = ("load_s", "baseline_s", "prior_s", "train_s", "sample_s", "score_s")
