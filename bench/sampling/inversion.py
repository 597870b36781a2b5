"""A real image through a method: back to an intermediate timestep by DDIM inversion, forth with the method's guidance.

Pair Customization does real images so, from timestep 600. The inversion is that of `bench.sampling.ddim_inversion`.
Shapes: N latents, C latent channels, H W latent size, P pixels per side.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bench.adapters.bank import Bank
from bench.contracts import BenchError
from bench.sampling.ddim_inversion import invert
from bench.sampling.sampler import Request, Sampler, denoise


@torch.no_grad()
def stylise(bank: Bank, request: Request, image: np.ndarray, sampler: Sampler, refine: int = 1) -> np.ndarray:
    """An image uint8 (3, P, P) as the method makes it, uint8 (3, P, P); see `there_and_back`."""
    z, _ = bank.backbone.encode(torch.from_numpy(image)[None])
    return bank.backbone.decode(there_and_back(bank, request, z, sampler, refine))[0].cpu().numpy()


@torch.no_grad()
def there_and_back(bank: Bank, request: Request, z: Tensor, sampler: Sampler, refine: int = 1) -> Tensor:
    """Latents (N, C, H, W) inverted up to `sampler.start_t` and drawn again from there; the request has N shots.

    Inversion follows the content prompt alone (guidance 1). With `sampler.cfg` 1 the way back is the same wherever the
    method adds nothing, so strength 0 of a guidance method gives the latents back.
    """
    scheduler = bank.backbone.scheduler("ddim", sampler.steps)
    depth = bank.backbone.train_timesteps if sampler.start_t is None else sampler.start_t
    steps = scheduler.timesteps[scheduler.timesteps <= depth]
    if not len(steps) or refine < 0:
        raise BenchError(
            f"Inversion to timestep {depth:g} with {refine} refinements was requested; the first of {sampler.steps} "
            f"steps is at timestep {int(scheduler.timesteps[-1])}; give e.g. --start-t 600 --refine 1."
        )
    prompts = [request.method.prompts(shot.prompt, request.dataset)["content"] for shot in request.shots]
    noisy = invert(bank, z, bank.backbone.embed(prompts), scheduler, steps, refine)
    return denoise(bank, [(request, request.shots)], sampler, scheduler, noisy, steps)
