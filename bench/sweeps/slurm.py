"""Workers as jobs of a Slurm cluster, submitted by submitit: sbatch and squeue are all it takes, no accounting.

Each worker is a job of its own, so no limit on job arrays matters. Before the time limit, and before a preemption that
gives notice, SIGUSR2 makes the worker write checkpoints, give its cells back and put its job into the queue again; a
preemption without notice sends SIGTERM, and Slurm itself queues the job again.
"""

from __future__ import annotations

import getpass
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.contracts import BenchError
from bench.sweeps.pool import Pool
from bench.sweeps.sweep import Sweep
from bench.sweeps.worker import Leave, Worker

NOTICE_S = 60  # SIGUSR2 comes so long before the limit


class Slurm(Pool):
    """Jobs called after the sweep. `options` are those of conf/hydra/launcher/slurm.yaml."""

    def __init__(
        self,
        sweep: Sweep,
        cwd: Path,
        time_min: int = 240,
        notice_s: int = NOTICE_S,
        sbatch: Mapping[str, Any] | None = None,
        setup: list[str] | None = None,
        srun_args: list[str] | None = None,
    ) -> None:
        self.sweep, self.cwd, self.time_min, self.notice_s = sweep, cwd, time_min, notice_s
        self.sbatch, self.setup, self.srun_args = dict(sbatch or {}), setup or [], srun_args or []
        self.name = f"bench-{sweep.folder.name}"
        self.refused = ""  # what the cluster said to the last worker that it did not take

    def alive(self) -> int | None:
        listed = said("squeue", "-h", "-r", "-u", getpass.getuser(), "-n", self.name, "-o", "%i")
        return None if listed is None else len(listed.split())

    def start(self, count: int) -> int:
        submitit = _submitit()
        executor = submitit.SlurmExecutor(folder=self.sweep.folder / "log" / "slurm", max_num_timeout=1000)
        executor.update_parameters(**self._parameters())
        for started in range(count):
            try:
                executor.submit(work, str(self.sweep.folder.absolute()), str(self.cwd))
            except submitit.core.utils.FailedJobError as error:
                return self._not_more(started, str(error))
        return count

    def to_cancel(self) -> str:
        return f"scancel --user {getpass.getuser()} --name {self.name}"

    def dismiss(self) -> None:
        """Jobs end by themselves."""

    def _not_more(self, started: int, error: str) -> int:
        """A limit on submitted jobs is no error while others run: those that were taken do the work."""
        self.refused = " ".join(error.split())
        if not started and not self.alive():
            raise BenchError(f"Slurm took no worker: {self.refused}")
        return started

    def _parameters(self) -> dict[str, Any]:
        requested = {key: value for key, value in self.sbatch.items() if value is not None}
        more = {"requeue": True} | dict(requested.pop("additional_parameters", {}))
        return {
            "job_name": self.name,
            "time": self.time_min,
            "signal_delay_s": self.notice_s,
            "stderr_to_stdout": True,
            "use_srun": True,  # the signal goes to steps only
            "setup": ["export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK", *self.setup],
            "srun_args": self.srun_args,
            "additional_parameters": more,
            **requested,
        }


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise BenchError(
            "hydra/launcher=slurm needs the package submitit, which is not installed; type: pip install submitit."
        ) from None
    if said("squeue", "--version") is None:
        raise BenchError("hydra/launcher=slurm needs Slurm's commands (sbatch, squeue), which are not here.")
    return submitit


def work(folder: str, cwd: str) -> str:
    """A worker inside a job. submitit's signal handlers are replaced by the worker's own."""
    os.chdir(cwd)
    leave = Leave().catch(signal.SIGTERM, signal.SIGUSR2)
    sweep = Sweep(Path(folder))
    worker = Worker(sweep, leave, seconds_left())
    try:
        why = worker.work()
    except BenchError as error:
        sys.exit(f"bench.worker: {error}")
    print(f"worker ends: {why}", flush=True)
    if sweep.open() and (worker.broken or worker.full or leave.by == signal.SIGUSR2):
        said("scontrol", "requeue", os.environ["SLURM_JOB_ID"])
    return why


def seconds_left() -> float | None:
    """Of this job, without the notice at its end; None when it has no limit."""
    listed = said("squeue", "-h", "-j", os.environ["SLURM_JOB_ID"], "-o", "%L")
    left = parsed((listed or "").strip())
    return None if left is None else max(1.0, left - NOTICE_S)


def parsed(duration: str) -> float | None:
    """Seconds of Slurm's [days-][hours:]minutes:seconds, None for UNLIMITED and the like."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", duration)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def said(*command: str) -> str | None:
    """What a command of Slurm's says, or None when it is not there or has no answer now."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
