"""Our launchers and sweeper, as Hydra wants them: plug-ins in the namespace package hydra_plugins.

This folder joins that package by one entry of sys.path (bench.__main__), so it needs no installation and other
programs that use Hydra do not see it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from bench import compose
from bench.contracts import BenchError
from bench.sweeps import launch
from bench.sweeps.settings import settings


class Grid(BasicSweeper):
    """All combinations, in one batch."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Left to the launcher, which composes each combination once instead of each cell twice."""


class _Ours(Launcher):
    """Composes the cells and hands them to `bench.sweeps.launch`."""

    kind = ""

    def __init__(self, **options: Any) -> None:
        self.options = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in options.items()}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        HydraConfig.instance().set_config(self.config)
        try:
            cells = compose.cells(job_overrides, self._compose)
            states = launch.launch(cells, settings(self.config), self.kind, self.options)
        except BenchError as error:
            sys.exit(f"bench: {error}")
        return [
            JobReturn(overrides=list(words), status=JobStatus.COMPLETED, _return_value=states.get(cell.run_id))
            for words, cell in zip(job_overrides, cells, strict=True)
        ]

    def _compose(self, overrides: list[str]) -> DictConfig:
        return self.context.config_loader.load_sweep_config(self.config, overrides)


class Packed(_Ours):
    """In this process."""

    kind = "packed"


class Local(_Ours):
    """Worker processes on this machine."""

    kind = "local"


class Slurm(_Ours):
    """Worker jobs of a Slurm cluster."""

    kind = "slurm"
