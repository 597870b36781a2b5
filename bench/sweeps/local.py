"""Workers as processes of this machine, one per GPU where there are GPUs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from typing import Any

from bench.store import leases
from bench.sweeps.pool import Pool
from bench.sweeps.sweep import Sweep


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

    def dismiss(self) -> None:
        """Reap this process's own children as they end."""
        for child in self.children:
            try:
                child.wait(timeout=20)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGTERM)

    def _living(self) -> list[dict[str, Any]]:
        return [one for one in self.sweep.workers() if one["alive"] and one["machine"] == leases.machine()]

    def _strangers(self) -> list[int]:
        """Process ids of living workers here that another submitter started."""
        mine = {child.pid for child in self.children}
        return [worker["pid"] for worker in self._living() if worker["pid"] not in mine]

    def _worker(self, gpu: str | None) -> subprocess.Popen[bytes]:
        """A process of its own session: Ctrl-C on the submitter does not reach it."""
        env = dict(os.environ) | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
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
