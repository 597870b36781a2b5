"""Runs composed cells as a sweep: skips what is finished, writes the sweep down, has it worked on, reports."""

from __future__ import annotations

import shlex
import signal
import sys
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.cell import Cell
from bench.paths import results_folder
from bench.settings import build
from bench.steps.identify import identify
from bench.store.stored_status import line
from bench.sweeps import local, plan, plan_memory, pool
from bench.sweeps.local import Local
from bench.sweeps.obstacles import obstacles
from bench.sweeps.settings import Settings
from bench.sweeps.sweep import State, Sweep, judge, merged, submit
from bench.sweeps.worker import STOPPED, Worker, asked_to_leave

failed: list[str] = []  # run ids without a good end in any batch of this process
ROWS = 20  # of the table that ends a sweep
JOBS = 4  # of a cluster, when nothing is said


@dataclass(frozen=True)
class Declared:
    """The experiment whose claims a sweep ends with, and the overrides of all its cells."""

    experiment: str
    words: Sequence[str] = ()


def launch(
    cells: Sequence[Cell],
    settings: Settings,
    kind: str,
    options: Mapping[str, Any],
    declared: Declared | None = None,
) -> dict[str, State]:
    """Run a sweep by one of "packed", "local", "slurm"; run id -> what became of it."""
    cells = merged(cells)
    workers = settings.workers or {"packed": 1, "slurm": JOBS}.get(kind) or max(1, len(local.gpus()))
    settings = replace(settings, workers=workers)
    if settings.plan:
        show_plan(cells, settings, workers)
        return {}
    statuses = judge(cells)
    for cell in statuses.done:
        identify(cell)  # notes how it departs from the rules that it is requested under now
    sweep = submit(cells, settings, statuses, plan.kept(plan.forecast(statuses.todo, cells[0].results)))
    print(f"Sweep {sweep.folder.name}: {plan.counts(statuses)}", flush=True)
    if sweep.open():
        _work(sweep, kind, options, workers)
    states = _report(sweep, {cell.run_id for cell, _ in statuses.failed + statuses.skipped})
    if not sweep.open() and any(states[cell.run_id].status == "done" for cell in statuses.todo):
        _summarise(sweep, cells[0], declared)
    if not sweep.open():
        _show_table(sweep)
        if declared:
            _show_claims(sweep, declared)
    return states


def show_plan(cells: Sequence[Cell], settings: Settings, workers: int) -> None:
    """Print what would be done, what stops it and what it would cost."""
    statuses = judge(cells)
    found = obstacles(statuses.todo)
    runnable = [cell for cell in statuses.todo if cell.run_id not in found.stopped]
    made = plan.forecast(runnable, cells[0].results)
    if settings.plan == "probe" and made.unknown:
        plan.probe(made.unknown)
        made = plan.forecast(runnable, cells[0].results)
    print(plan.text(cells, statuses, found, made, settings, workers))
    for sentence in plan_memory.sentences(statuses.todo, settings.pack if isinstance(settings.pack, int) else 1):
        print(sentence)


def _work(sweep: Sweep, kind: str, options: Mapping[str, Any], workers: int) -> None:
    if kind == "packed":
        with asked_to_leave(signal.SIGINT, signal.SIGTERM) as leave:
            why = Worker(sweep, leave).work()
        if leave:
            sys.exit(STOPPED)
        if sweep.open():
            print(f"This process ends ({why}); {_look(sweep)}")
        return
    chosen = _pick(kind, sweep, dict(options))
    if not sweep.settings.wait:
        _start(sweep, chosen, workers)
        return
    try:
        pool.watch(sweep, chosen, workers, _Line(sweep).show)
    except KeyboardInterrupt:
        print(f"\nThe workers go on; {_look(sweep)} To end them: {chosen.to_cancel()}", flush=True)
        sys.exit(130)


def _pick(kind: str, sweep: Sweep, options: dict[str, object]) -> pool.Pool:
    """The pool of a launcher."""
    if kind == "local":
        return Local(sweep)
    from bench.sweeps.slurm import Slurm

    return Slurm(sweep, Path.cwd(), **options)  # type: ignore[arg-type]


def _start(sweep: Sweep, chosen: pool.Pool, workers: int) -> None:
    """Workers up to the wanted number, without waiting for them."""
    short = min(workers, len(sweep.open())) - (chosen.alive() or 0)
    started = chosen.start(short) if short > 0 else 0
    print(f"{started} workers started; {_look(sweep)} To end them: {chosen.to_cancel()}", flush=True)


def _look(sweep: Sweep) -> str:
    return f"python -m bench.status --results {sweep.results} {sweep.folder.name} shows the sweep."


def _show_table(sweep: Sweep) -> None:
    """The rows of the sweep's finished cells, the first 20 of them, and the commands for more."""
    from bench.analysis import frames, plain_text

    table = frames.load(sweep.results)
    table = table[table.run_id.isin([entry.run_id for entry in sweep.entries]) & (table.status == "done")]
    if table.empty:
        return
    rows = frames.wide(table)
    print(plain_text.render(rows.head(ROWS)))
    if len(rows) > ROWS:
        print(f"The first {ROWS} of {len(rows)} rows.")
    where = "" if sweep.results == results_folder() else f" --results {shlex.quote(str(sweep.results))}"
    print(f"Means over seeds with intervals: python -m bench.table{where}")
    print(f"Every row: python -m bench.table{where} --by runs --metrics all")
    print(f"A page: python -m bench.report{where}   Images: python -m bench.grid{where} --out grid.png")


def _show_claims(sweep: Sweep, declared: Declared) -> None:
    from bench.analysis import claim_answers, claim_text

    print(f"\nClaims of experiment={declared.experiment}:\n")
    print(claim_text.text(claim_answers.answered(declared.experiment, sweep.results, declared.words)))


def _summarise(sweep: Sweep, cell: Cell, declared: Declared | None = None) -> None:
    """A finished sweep's tables and figures for its tracker. What goes wrong is said, and the sweep is done anyway."""
    try:
        tracker = build({"folder": str(sweep.results), **cell.tracker})
        if not tracker.silent:
            from bench.report.publish import of_sweep

            runs = [entry.run_id for entry in sweep.entries]
            about = (declared.experiment, declared.words) if declared else ()
            of_sweep(sweep.folder.name, sweep.results, runs, tracker, cell.group or sweep.folder.name, *about)
    except Exception as error:
        print(f"The tracker got no summary ({type(error).__name__}: {' '.join(str(error).split())}).")


class _Line:
    """One line whenever the counts change."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep, self.said = sweep, ""

    def show(self) -> None:
        line = counted(self.sweep.states())
        if line != self.said:
            print(line, flush=True)
            self.said = line


def counted(states: Mapping[str, State]) -> str:
    """ "3 done, 1 failed, 2 running, 4 open" """
    found = Counter(state.status for state in states.values())
    return ", ".join(f"{n} {status}" for status, n in sorted(found.items()))


def _report(sweep: Sweep, stored: Container[str] = ()) -> dict[str, State]:
    """The counts, all failures with their reasons, and how good the forecast was."""
    states = sweep.states()
    bad = {run_id: state for run_id, state in states.items() if state.status == "failed"}
    failed.extend(bad)
    for run_id, state in states.items():
        if state.status in ("failed", "skipped"):
            record = sweep.store.read(run_id) if run_id in stored else None
            print(f"{state.status}: {run_id}: {state.reason}" if record is None else line(record, stored=True))
    print(f"Sweep {sweep.folder.name}: {counted(states)}")
    if bad:
        print("Failed cells stay so until mode=retry; those without a record are tried again by the same command.")
    if (judged := plan.how_good(sweep)) is not None:
        print(judged)
    return states
