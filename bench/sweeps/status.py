"""A sweep as a live table, wherever it runs: python -m bench.status [name] [--results results] [--once]"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.contracts import BenchError
from bench.progress import clock
from bench.store.leases import now
from bench.sweeps.plan import how_good
from bench.sweeps.sweep import STATES, State, Sweep, sweeps

if TYPE_CHECKING:
    from rich.console import Group

WINDOW = 30  # of the latest statuses, for the rate


@dataclass(frozen=True)
class Snapshot:
    """What can be seen of a sweep at one moment."""

    name: str
    states: dict[str, State]
    per_hour: float | None  # statuses, lately
    left_s: float | None
    workers: list[dict[str, Any]]
    deaths: Counter[str]
    forecast: str | None

    def count(self, status: str) -> int:
        return sum(state.status == status for state in self.states.values())


def snapshot(sweep: Sweep) -> Snapshot:
    states = sweep.states()
    open_cells = sum(state.status in ("open", "running") for state in states.values())
    per_hour = rate(_end_times(sweep, states), now(sweep.folder) if open_cells else None)
    left = 3600 * open_cells / per_hour if per_hour and open_cells else None
    return Snapshot(sweep.folder.name, states, per_hour, left, sweep.workers(), sweep.deaths(states), how_good(sweep))


def rate(times: Sequence[float], until: float | None = None) -> float | None:
    """Statuses per hour over the latest ones, until now while the sweep goes on; None for fewer than two."""
    latest = sorted(times)[-WINDOW:]
    if len(latest) < 2:
        return None
    passed = max(latest[-1], until or 0.0) - latest[0]
    return 3600 * (len(latest) - 1) / passed if passed > 0 else None


def _end_times(sweep: Sweep, states: dict[str, State]) -> list[float]:
    """When the cells that this sweep itself ran got their statuses."""
    found = []
    for run_id, state in states.items():
        if state.status in ("done", "failed", "skipped") and (token := sweep.token(run_id)) is not None:
            at = int(token.split()[1]) / 1e9
            if at >= sweep.started:
                found.append(at)
    return found


def render(seen: Snapshot) -> Group:
    """Counts, workers, failures."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = [Text(f"Sweep {seen.name}: {headline(seen)}", style="bold")]
    if seen.workers:
        table = Table("worker", "host", "job", "state", "done", "failed", "loads", "cells")
        for worker in sorted(seen.workers, key=lambda worker: not worker["alive"]):
            table.add_row(*_row(worker))
        parts.append(table)
    parts += [Text(line) for line in problems(seen)]
    if seen.forecast:
        parts.append(Text(seen.forecast))
    return Group(*parts)


def headline(seen: Snapshot) -> str:
    """ "12 of 30 settled: 11 done, 1 failed, 2 running, 16 open; 40 cells/h, 0:27:00 left" """
    counts = [f"{n} {status}" for status in STATES if (n := seen.count(status))]
    settled = sum(seen.count(status) for status in ("done", "failed", "skipped"))
    text = f"{settled} of {len(seen.states)} settled: {', '.join(counts)}"
    if seen.per_hour is not None:
        text += f"; {seen.per_hour:.3g} cells/h"
    return text + (f", {clock(seen.left_s)} left" if seen.left_s is not None else "")


def problems(seen: Snapshot) -> list[str]:
    """Failures and impossible cells by reason, and cells over which workers died."""
    lines = []
    for status in ("failed", "skipped"):
        reasons = Counter(state.reason for state in seen.states.values() if state.status == status)
        for reason, n in reasons.most_common():
            first = next(r for r, s in seen.states.items() if s.status == status and s.reason == reason)
            lines.append(f"{status}: {first}{f' and {n - 1} more' if n > 1 else ''}: {reason}")
    return lines + [f"{n} workers died over {run_id}" for run_id, n in seen.deaths.items() if run_id in seen.states]


def _row(worker: dict[str, Any]) -> list[str]:
    state = "works" if worker["alive"] else f"ended: {worker['why']}" if worker["why"] else "gone"
    cells = ", ".join(worker["cells"][:2]) + (
        f" and {len(worker['cells']) - 2} more" if len(worker["cells"]) > 2 else ""
    )
    numbers = (str(worker[key]) for key in ("done", "failed", "loads"))
    return [str(worker["pid"]), worker.get("node") or worker["host"], worker.get("job") or "", state, *numbers, cells]


def find(results: Path, name: str | None) -> Sweep:
    """The sweep of that name, or the newest one. Raises BenchError."""
    known = list(sweeps(results))
    chosen = [folder for folder in known if name is None or folder.name == name]
    if not chosen:
        names = ", ".join(folder.name for folder in known) or "none"
        raise BenchError(f"There is no sweep {name or ''} below {results}; there are: {names}. Type --results FOLDER.")
    return Sweep(chosen[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    parse = argparse.ArgumentParser(prog="python -m bench.status", description="Show how a sweep stands.")
    parse.add_argument("name", nargs="?", help="its folder below <results>/.sweeps; default: the newest")
    parse.add_argument("--results", type=Path, default=Path("results"), help="folder of the records")
    parse.add_argument("--once", action="store_true", help="show it once instead of following it")
    parse.add_argument("--every", type=float, default=2.0, metavar="S", help="seconds between two looks")
    options = parse.parse_args(arguments)
    follow(find(options.results, options.name), options.every, options.once or not sys.stdout.isatty())


def follow(sweep: Sweep, every: float, once: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    seen = snapshot(sweep)
    if once:
        console.print(render(seen))
        return
    with Live(render(seen), console=console, auto_refresh=False) as live:
        while seen.count("open") + seen.count("running"):
            time.sleep(every)
            seen = snapshot(sweep)
            live.update(render(seen), refresh=True)
