"""A worker leases cells of a sweep, runs them with the backbone kept loaded: python -m bench.sweeps.worker FOLDER

It starts nothing that cannot end before its time limit. Requested to leave (SIGTERM, SIGUSR2), its cells write their
checkpoints and are given back; another worker goes on from there. A cell that killed several workers is given up.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.cell import Cell
from bench.contracts import BenchError
from bench.environment import one_sentence
from bench.files import atomic_write
from bench.paths import leave_working_directory
from bench.settings import digest, finite
from bench.steps.work import Work
from bench.store import leases, stored_classes
from bench.store.provenance import provenance
from bench.store.record import Record
from bench.sweeps.packs import shapes
from bench.sweeps.sweep import Entry, Sweep, seconds

LOST_GPU = re.compile(r"CUDA error|CUBLAS_STATUS|CUDNN_STATUS|device-side assert")  # the process cannot go on
STOPPED = "Stopped; what was begun is kept, and the same command goes on from there."
SLACK = 1.3  # a cell may take so many times what was expected


class Leave:
    """Whether this process was asked to leave, and by which signal."""

    def __init__(self) -> None:
        self.by: int | None = None

    def catch(self, *numbers: int) -> Leave:
        for number in numbers:
            signal.signal(number, self._asked)
        return self

    def _asked(self, number: int, frame: Any) -> None:
        self.by = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # the second one ends it at once

    def __bool__(self) -> bool:
        return self.by is not None


@contextmanager
def asked_to_leave(*numbers: int) -> Iterator[Leave]:
    """Signals ask the worker in this process to leave; afterwards they mean what they did before."""
    before: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}
    try:
        yield Leave().catch(*numbers)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Worker:
    """One process's work on a sweep. `limit_s` is the time it has, counted from now."""

    def __init__(self, sweep: Sweep, leave: Leave | None = None, limit_s: float | None = None) -> None:
        self.sweep, self.leave = sweep, Leave() if leave is None else leave
        self.limit_s, self.began = limit_s, time.monotonic()
        self.leases: dict[str, leases.Lease] = {}
        self.entries: dict[str, Entry] = {}
        self.alone: set[str] = set()  # cells that were in a pack that broke
        self.took: dict[int, list[float]] = {}  # combination -> seconds of its cells
        self.groups: dict[int, str] = {}  # combination -> what tells who may share a pack
        self.begun = 0  # cells handed to the runner in this call
        self.full = self.broken = False
        self.backbone = ""
        self.reported: dict[str, Any] = {"done": 0, "failed": 0, "loads": 0, "cells": [], "why": ""}
        self.reported["gpu"] = os.environ.get("CUDA_VISIBLE_DEVICES")
        self.reported |= (owner := leases.myself())
        self.file = sweep.folder / "workers" / f"{owner['host']}-{owner['pid']}-{int(owner['started'])}.json"
        stored_classes.check_name(sweep.settings.runner, sweep.folder / "sweep.json")
        module, _, name = sweep.settings.runner.rpartition(".")
        self.runner: Callable[..., Any] = getattr(importlib.import_module(module), name)

    # --- the loop

    def work(self) -> str:
        """Run what is open until nothing is left or the worker must leave. Returns why it ended."""
        self.sweep.check_code()
        life = self._sign_in()
        try:
            why = self._until_done()
        except BaseException as error:
            why = f"{type(error).__name__}: {error}"
            raise
        finally:
            self._report(why=why, cells=[])
            life.release()
        return why

    def _until_done(self) -> str:
        idle_since = time.monotonic()
        while not self.leave and not self.full and not self.broken:
            chosen = self._choose()
            if chosen:
                self._run(chosen)
                idle_since = time.monotonic()
            elif not self.sweep.open():
                return "every cell has ended"
            elif time.monotonic() - idle_since > self.sweep.settings.idle_s:
                return "others have the rest"
            else:
                time.sleep(self.sweep.settings.poll_s)
        return "asked to leave" if self.leave else "no cell ends in the time left" if self.full else "the GPU was lost"

    def _choose(self) -> list[Entry]:
        """Free cells that may share a pack: those of the loaded backbone first; alone what is under suspicion."""
        states = self.sweep.states()
        deaths = self.sweep.deaths(states)
        free = [entry for entry in self.sweep.entries if states[entry.run_id].status == "open"]
        deadly = [entry for entry in free if deaths[entry.run_id] >= self.sweep.settings.attempts]
        for entry in deadly:
            self._give_up(entry)
        suspects = [e for e in free if (deaths[e.run_id] or e.run_id in self.alone) and e not in deadly]
        groups: dict[str, list[Entry]] = {}
        for entry in free:
            if entry not in suspects and entry not in deadly:
                groups.setdefault(self._group(entry), []).append(entry)
        ordered = sorted(groups.values(), key=lambda group: self._backbone(group[0]) != self.backbone)
        return ordered[0] if ordered else suspects[:1]

    def _run(self, entries: Sequence[Entry]) -> None:
        """One call of the runner. What it leaves is given back; what it leaves without a reason is blamed."""
        size = 1 if len(entries) == 1 else self.sweep.settings.pack
        self.begun = 0
        try:
            self.runner(Stream(self, entries), size=size, finished=self._ended, stop=self._must_stop)
            if self.leases and not self._must_stop():
                raise BenchError("It ended without a record.")
        except (Exception, SystemExit) as error:
            self._blame(error)
        finally:
            for run_id in list(self.leases):
                self.leases.pop(run_id).release()

    def lease_each(self, entries: Sequence[Entry]) -> Iterator[Cell]:
        """Lease cells as slots become free, but no more than this worker's share of what is open."""
        for entry in entries:
            if self._must_stop() or len(self.leases) >= self.share(entries):
                return
            if not self._ends_in_time(entry):
                self.full = not self.leases
                return
            if (cell := self._lease(entry)) is not None:
                self.begun += 1
                yield cell

    def share(self, entries: Sequence[Entry]) -> int:
        return math.ceil(len(entries) / (self.sweep.settings.workers or 1))

    def _lease(self, entry: Entry) -> Cell | None:
        """The cell, this process's own from now on; None when another was quicker or it has its status."""
        try:
            lease = self.sweep.store.reserve(entry.run_id, self.sweep.settings.lease_s)
        except leases.Taken:
            return None
        if self.sweep.state(entry.run_id).status not in ("open", "running"):
            lease.release()
            return None
        self.leases[entry.run_id], self.entries[entry.run_id] = lease, entry
        if self._backbone(entry) != self.backbone:
            self.backbone = self._backbone(entry)
            self.reported["loads"] += 1
        self._report(cells=list(self.leases))
        return self.sweep.cell(entry)

    # --- statuses

    def _ended(self, record: Record) -> None:
        run_id = record.run_id
        self.sweep.replaced(run_id)
        self.took.setdefault(self.entries[run_id].base, []).append(seconds(record))
        self.leases.pop(run_id).release()
        self.broken = self.broken or bool(record.reason and LOST_GPU.search(record.reason))
        kind = "failed" if record.status == "failed" else "done"
        self._report(**{kind: self.reported[kind] + 1}, cells=list(self.leases))
        print(f"{record.status}: {run_id}" + (f": {record.reason}" if record.reason else ""), flush=True)

    def _blame(self, error: BaseException) -> None:
        """An error that reached the worker: a cell that was alone is refused, those of a pack are tried alone."""
        left = [run_id for run_id, lease in self.leases.items() if self._is_ours(run_id, lease)]
        if not self.begun:
            raise error
        if isinstance(error, leases.Taken) or self.begun > 1:
            self.alone.update(left)
            return
        text = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
        for run_id in left:
            self.sweep.refuse(run_id, text)
            self._report(failed=self.reported["failed"] + 1)
            print(f"failed: {run_id}: {text}", flush=True)

    def _is_ours(self, run_id: str, lease: leases.Lease) -> bool:
        """Without a status, and in nobody else's hands."""
        status = self.sweep.state(run_id).status
        return status == "open" or (status == "running" and lease.mine())

    def _give_up(self, entry: Entry) -> None:
        """A record "failed" for a cell that killed its workers."""
        if (cell := self._lease(entry)) is None:
            return
        store = self.sweep.store
        died = leases.deaths(store.lease_file(entry.run_id))
        reason = f"It was given up: {len(died)} workers died over it, the last was {leases.described(died[-1])}."
        record = Record(entry.run_id, "failed", reason, Work(cell, store.work(entry.run_id)).config())
        identity = cell.identity
        hashes = identity["dataset"]["content"], identity["backbone"]["weights"]
        record.provenance = provenance(*hashes, datetime.now(UTC))
        store.publish(record)
        self._ended(record)

    # --- time

    def _must_stop(self) -> bool:
        return bool(self.leave) or any(lease.lost for lease in self.leases.values())

    def _ends_in_time(self, entry: Entry) -> bool:
        """Whether a cell can end before the limit. One that no worker has time for is begun by a fresh one."""
        if self.limit_s is None:
            return True
        passed = time.monotonic() - self.began
        return SLACK * self._expected(entry) < self.limit_s - passed or passed < 0.1 * self.limit_s

    def _expected(self, entry: Entry) -> float:
        """Seconds of a cell: as those of its combination took here, else as planned, else unknown (0)."""
        known = self.took.get(entry.base)
        if known:
            return max(known)
        planned = (self.sweep.estimate or {}).get("each") or {}
        return planned.get(entry.run_id) or 0.0

    # --- what others see

    def _sign_in(self) -> leases.Lease:
        life = leases.take(self.file.with_suffix(".lease"), "A worker", self.sweep.settings.lease_s)
        self._report()
        return life

    def _report(self, **news: Any) -> None:
        self.reported.update(news)
        atomic_write(self.file, json.dumps(self.reported).encode())

    def _group(self, entry: Entry) -> str:
        if entry.base not in self.groups:
            self.groups[entry.base] = shapes(self.sweep.base(entry.base))
        return self.groups[entry.base]

    def _backbone(self, entry: Entry) -> str:
        return digest(self.sweep.bases[entry.base]["backbone"])


@dataclass
class Stream:
    """Cells that are leased one by one as they are taken; its length is the most that are held at a time."""

    worker: Worker
    entries: Sequence[Entry]

    def __len__(self) -> int:
        return self.worker.share(self.entries)

    def __iter__(self) -> Iterator[Cell]:
        return self.worker.lease_each(self.entries)


def main(arguments: Sequence[str] | None = None) -> None:
    leave_working_directory()
    parse = argparse.ArgumentParser(
        prog="python -m bench.sweeps.worker", description="Work on a sweep until it is done."
    )
    parse.add_argument("folder", type=Path, help="<results>/.sweeps/<name>")
    parse.add_argument("--limit-s", type=finite, help="seconds that this worker has")
    options = parse.parse_args(arguments)
    leave = Leave().catch(signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
    why = Worker(Sweep(options.folder), leave, options.limit_s).work()
    print(f"worker {os.getpid()} ends: {why}", flush=True)


if __name__ == "__main__":
    with one_sentence("bench.worker"):
        main()
