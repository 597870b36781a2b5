"""Keeps workers on a sweep until every cell has its verdict: processes on this machine, or jobs of a cluster."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.contracts import BenchError
from bench.store import leases, stored_classes
from bench.sweeps.sweep import Sweep

BARREN = 3  # so many times as many workers as wanted may end without a verdict, then something is wrong


class Pool(ABC):
    """Where workers run."""

    @abstractmethod
    def alive(self) -> int | None:
        """Workers that run or wait for their turn, whoever started them; None when it cannot be told now."""

    @abstractmethod
    def start(self, count: int) -> int:
        """Start so many workers, or as many as are allowed now. Returns how many."""

    @abstractmethod
    def to_cancel(self) -> str:
        """What to type to end all workers of the sweep."""


class Local(Pool):
    """Processes on this machine, one per GPU where there are GPUs."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.gpus = gpus()
        self.children: list[subprocess.Popen[bytes]] = []

    def alive(self) -> int:
        self.children = [child for child in self.children if child.poll() is None]
        return len(self.children) + len(self._strangers())

    def start(self, count: int) -> int:
        used = [worker["gpu"] for worker in self._living()]
        for _ in range(count):
            used.append(min(self.gpus, key=used.count, default=None))
            self.children.append(self._worker(used[-1]))
        return count

    def to_cancel(self) -> str:
        mine = [child.pid for child in self.children if child.poll() is None]
        return "kill " + " ".join(map(str, sorted([*mine, *self._strangers()])))

    def _living(self) -> list[dict[str, Any]]:
        return [one for one in self.sweep.workers() if one["alive"] and one["machine"] == leases.machine()]

    def _strangers(self) -> list[int]:
        """Process ids of living workers here that another submitter started."""
        mine = {child.pid for child in self.children}
        return [worker["pid"] for worker in self._living() if worker["pid"] not in mine]

    def _worker(self, gpu: str | None) -> subprocess.Popen[bytes]:
        """A process of its own session: Ctrl-C on the submitter does not reach it."""
        env = dict(os.environ) | {stored_classes.TRUST: stored_classes.trusted()}
        env |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        number = len(list((self.sweep.folder / "log").glob("local-*.log")))
        with open(self.sweep.folder / "log" / f"local-{os.getpid()}-{number}.log", "ab") as said:
            command = [sys.executable, "-m", "bench.sweeps.worker", str(self.sweep.folder)]
            return subprocess.Popen(
                command, env=env, stdout=said, stderr=said, stdin=subprocess.DEVNULL, start_new_session=True
            )


def gpus() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them; asks no CUDA library."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [str(i) for i, _ in enumerate(line for line in listed.stdout.splitlines() if line.startswith("GPU "))]


def watch(sweep: Sweep, pool: Pool, wanted: int, show: Callable[[], None] = lambda: None) -> None:
    """Refill workers until every cell has its verdict. Raises BenchError when workers only come and go."""
    barren, left = 0, len(sweep.open())
    while left:
        alive = pool.alive()
        short = 0 if alive is None else min(wanted, left) - alive
        if short > 0:
            if barren >= BARREN * wanted:
                raise BenchError(f"Workers end without a verdict on any cell. {last_words(sweep)}")
            barren += pool.start(short)
        show()
        time.sleep(sweep.settings.poll_s)
        before, left = left, len(sweep.open())
        barren = barren if left == before else 0
    _dismiss(pool)


def _dismiss(pool: Pool) -> None:
    """Nothing is left to do: reap this process's own children as they end."""
    for child in pool.children if isinstance(pool, Local) else ():
        try:
            child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGTERM)


def last_words(sweep: Sweep) -> str:
    """Where the newest log lies and how it ends."""
    logs = sorted(sweep.folder.glob("log/**/*.*"), key=lambda path: path.stat().st_mtime)
    logs = [path for path in logs if path.suffix in (".log", ".out", ".err") and path.stat().st_size]
    if not logs:
        return f"They left no word in {sweep.folder / 'log'}."
    said: Sequence[str] = logs[-1].read_text(errors="replace").strip().splitlines()[-3:]
    return f"The last one said, in {logs[-1]}: {' / '.join(said)}"


def pick(kind: str, sweep: Sweep, options: dict[str, object]) -> Pool:
    """The pool of a launcher."""
    if kind == "local":
        return Local(sweep)
    from bench.sweeps.slurm import Slurm

    return Slurm(sweep, Path.cwd(), **options)  # type: ignore[arg-type]
