"""diffusers' Euler solver for flow models, with the two attributes that its solvers for DDPM have."""

from __future__ import annotations

from typing import ClassVar

from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor


class FlowEuler(FlowMatchEulerDiscreteScheduler):
    """z_{s'} = z_s + (s' - s) v. It starts from unit Gaussian noise and does not scale the network's input."""

    init_noise_sigma: ClassVar[float] = 1.0

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return sample
