"""Rectified flow (Liu et al. 2022, arXiv 2209.03003): z_s = (1 - s) z + s eps, and the network predicts eps - z.

A timestep is t = 1000 s. Training draws it from the table of the model's scheduler, as the scripts of diffusers do:
the place in the table is uniform or logit-normal (Esser et al. 2024, arXiv 2403.03206, section 3.1), and a static shift
of the scheduler is part of the table. B rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bench.choices import TimeSampling
from bench.contracts import BenchError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SOLVERS = ("euler",)
DIFFUSERS = {"uniform": "none", "logit_normal": "logit_normal"}  # names of the densities in diffusers
DDPM = {"beta_start": 0.00085, "beta_end": 0.012, "timesteps": 1000}  # scaled linear, of Stable Diffusion


class FlowSchedule:
    """Built from a `scheduler_config.json` of a FlowMatchEulerDiscreteScheduler.

    `train_shift` is the mu of a dynamic shift that training uses, too; without it training has no dynamic shift.
    """

    def __init__(self, config: Mapping[str, Any], time_sampling: TimeSampling, train_shift: float | None = None):
        if config.get("_class_name", "FlowMatchEulerDiscreteScheduler") != "FlowMatchEulerDiscreteScheduler":
            raise BenchError(
                f"The backbone's scheduler is {config['_class_name']}; a flow model needs "
                "FlowMatchEulerDiscreteScheduler, choose another backbone.path."
            )
        if time_sampling not in DIFFUSERS:
            raise BenchError(f"backbone.time_sampling={time_sampling} was requested; give {' or '.join(DIFFUSERS)}.")
        self.config, self.time_sampling, self.train_shift = dict(config), time_sampling, train_shift
        self.table = self._table()  # (1000,) falling timesteps

    def _table(self) -> Tensor:
        from bench.backbones.flow_solver import FlowEuler

        made = FlowEuler.from_config(self.config)
        if self.train_shift is None:
            return made.timesteps
        steps = self.train_timesteps
        made.set_timesteps(sigmas=(made.timesteps / steps).tolist(), mu=self.train_shift)
        return made.timesteps

    @property
    def train_timesteps(self) -> int:
        return int(self.config.get("num_train_timesteps", 1000))

    @property
    def dynamic(self) -> bool:
        """Whether drawing shifts the timesteps by the number of image tokens."""
        return bool(self.config.get("use_dynamic_shifting"))

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        """(n,) timesteps for training."""
        from diffusers.training_utils import compute_density_for_timestep_sampling

        u = compute_density_for_timestep_sampling(DIFFUSERS[self.time_sampling], n, 0.0, 1.0, generator=rng)
        return self.table[(u * self.train_timesteps).long()]

    def noisy(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """All (B, C, H, W); t (B,)."""
        s = self._share(t, z)
        return (1 - s) * z + s * eps

    def target(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return eps - z

    def _share(self, t: Tensor, like: Tensor) -> Tensor:
        return (t.to(like) / self.train_timesteps).view(-1, *[1] * (like.dim() - 1))

    def scheduler(self, name: str, steps: int, mu: float, even: bool) -> Any:
        """A fresh scheduler with its timesteps set, on the CPU; `mu` is the dynamic shift, if there is one.

        With `even` the noise levels before the shift are evenly spaced from 1 to 1 / steps, as in FLUX's pipelines.
        """
        import numpy as np

        from bench.backbones.flow_solver import FlowEuler

        if name not in SOLVERS:
            raise BenchError(
                f"The scheduler {name!r} was requested; flow models are drawn with sampler.scheduler={SOLVERS[0]}."
            )
        if not 1 <= steps <= self.train_timesteps:
            raise BenchError(f"{steps} sampling steps were requested; give 1 to {self.train_timesteps}.")
        scheduler = FlowEuler.from_config(self.config)
        sigmas = np.linspace(1.0, 1 / steps, steps) if even else None
        scheduler.set_timesteps(steps, device="cpu", sigmas=sigmas, mu=mu if self.dynamic else None)
        return scheduler

    def words(self) -> dict[str, str]:
        """What a reader must know to compare with other work."""
        shift = "dynamic, in sampling alone" if self.dynamic else f"static, {self.config.get('shift', 1.0):g}"
        if self.train_shift is not None:
            shift = f"dynamic, in training with mu {self.train_shift:g}"
        return {"time sampling": self.time_sampling.replace("_", "-"), "shift": shift}


def noise_level(ddpm_timestep: float) -> float:
    """s of the flow with the noise-to-signal ratio of Stable Diffusion at a timestep: 800 is 0.836; 1000 is 1."""
    import torch

    if ddpm_timestep >= DDPM["timesteps"]:
        return 1.0
    ends = (DDPM["beta_start"] ** 0.5, DDPM["beta_end"] ** 0.5)
    betas = torch.linspace(*ends, int(DDPM["timesteps"]), dtype=torch.float64) ** 2
    kept = float((1 - betas).cumprod(0)[int(max(0, ddpm_timestep))])
    ratio = ((1 - kept) / kept) ** 0.5
    return ratio / (1 + ratio)
