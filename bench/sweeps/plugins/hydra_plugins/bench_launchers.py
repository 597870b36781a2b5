"""Our launchers and sweeper, as Hydra wants them: plug-ins in the namespace package hydra_plugins.

This folder joins that package by one entry of sys.path (bench.runs), so it needs no installation and other
programs that use Hydra do not see it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from bench import compose
from bench.analysis import claims
from bench.environment import one_sentence
from bench.sweeps import launch
from bench.sweeps.launch import Declared
from bench.sweeps.partial_keys import PartialKeys, as_typed
from bench.sweeps.settings import settings


class Grid(BasicSweeper):
    """All combinations, in one batch."""

    def sweep(self, arguments: list[str]) -> Any:
        """Hydra notes what it was requested in a folder of the results; a plan leaves nothing there."""
        assert self.config is not None
        with one_sentence("bench"), tempfile.TemporaryDirectory() as folder:
            if "plan" in [word.partition("=")[0] for word in arguments]:
                with open_dict(self.config):
                    self.config.hydra.sweep.dir = folder
            return super().sweep(as_typed(arguments))

    def split_arguments(  # type: ignore[override]
        self, overrides: list[Any], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """The combinations; of an experiment that has claims and no grid of its own, the cells of the claims."""
        batches = BasicSweeper.split_arguments(overrides, max_batch_size)
        assert self.config is not None
        declared = self.config.get(compose.CLAIMS)
        if self.params or not declared:
            return batches
        cells = claims.overrides(claims.checked(OmegaConf.to_container(declared, resolve=True)))
        return [[[*words, *cell] for batch in batches for words in batch for cell in cells]]

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
        with one_sentence("bench"):
            keys = PartialKeys(self._compose)
            cells = compose.cells(job_overrides, keys.compose)
            for note in keys.notes():
                print(f"note: {note}")
            states = launch.launch(cells, settings(self.config), self.kind, self.options, self._declared())
        return [
            JobReturn(overrides=list(words), status=JobStatus.COMPLETED, _return_value=states.get(cell.run_id))
            for words, cell in zip(job_overrides, cells, strict=True)
        ]

    def _declared(self) -> Declared | None:
        """The claims of the experiment that was requested, with what was set for all its cells."""
        if not self.config.get(compose.CLAIMS):
            return None
        of_hydra = HydraConfig.get()
        return Declared(str(of_hydra.runtime.choices["experiment"]), claims.shared(of_hydra.overrides.task))

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
