"""The backbone's own forward diffusion z_t = a_t z + s_t eps, what it predicts, and samplers that undo it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bench.contracts import BenchError

if TYPE_CHECKING:
    from torch import Tensor

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "pndm": "PNDMScheduler",
}


class NoiseSchedule:
    """Built from a `scheduler_config.json` (betas, prediction type, timestep spacing)."""

    def __init__(self, config: Mapping[str, Any]):
        from diffusers import DDPMScheduler

        self.config = dict(config, clip_sample=False)  # latents are not confined to [-1, 1]
        self._diffusion = DDPMScheduler.from_config(self.config)
        self.prediction = self._diffusion.config.prediction_type
        if self.prediction not in ("epsilon", "v_prediction"):
            raise BenchError(
                f"The backbone predicts {self.prediction!r}; only epsilon and v_prediction are understood, "
                "choose another backbone.path."
            )

    @property
    def train_timesteps(self) -> int:
        return self._diffusion.config.num_train_timesteps

    def noisy(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return self._diffusion.add_noise(z, eps, t)

    def target(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """eps, or v = a_t eps - s_t z (Salimans & Ho 2022)."""
        return eps if self.prediction == "epsilon" else self._diffusion.get_velocity(z, eps, t)

    def min_snr_weights(self, t: Tensor, gamma: float) -> Tensor:
        """min(SNR, gamma) / SNR for eps, min(SNR, gamma) / (SNR + 1) for v, (B,); SNR = abar / (1 - abar) at t (B,).

        Hang et al. 2023, arXiv 2303.09556, eq. 7 and section 3.4: min(SNR, gamma) weights the error of the image.
        """
        kept = self._diffusion.alphas_cumprod.to(t.device)[t]
        snr = kept / (1 - kept)
        return snr.clamp(max=gamma) / (snr if self.prediction == "epsilon" else snr + 1)

    def scheduler(self, name: str, steps: int) -> Any:
        """A fresh diffusers scheduler with its timesteps set, on the CPU."""
        import diffusers

        if name not in SCHEDULERS:
            raise BenchError(f"The scheduler {name!r} was requested; known are {', '.join(SCHEDULERS)}.")
        if not 1 <= steps <= self.train_timesteps:
            raise BenchError(f"{steps} sampling steps were requested; give 1 to {self.train_timesteps}.")
        scheduler = getattr(diffusers, SCHEDULERS[name]).from_config(self.config)
        try:
            scheduler.set_timesteps(steps, device="cpu")
        except (ValueError, IndexError) as error:  # Runge-Kutta steps of pndm
            raise BenchError(
                f"{steps} sampling steps were requested, with which the scheduler {name!r} cannot begin ({error}); "
                "give sampler.steps=4 or more, or another sampler.scheduler."
            ) from error
        return scheduler
