"""A real image through a method: back to an intermediate timestep by DDIM inversion, forth with the method's guidance.

A deterministic DDIM step (Song et al. 2020, arXiv 2010.02502) is linear in the latent and in the prediction,
z' = a z + b e(z, t). Inversion solves it for z by z <- (z' - b e(z, t)) / a, beginning at z = z'. Once is plain DDIM
inversion; each further time is a refinement step of ReNoise (Garibi et al. 2024, arXiv 2403.14602), here without its
averaging and its noise correction. Pair Customization does real images so, from timestep 600.
Shapes: N latents, C latent channels, H W latent size, P pixels per side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.adapters.bank import Bank
from bench.contracts import Ask, BenchError, Text
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


@torch.no_grad()
def invert(bank: Bank, z: Tensor, text: Text, scheduler: Any, steps: Tensor, refine: int) -> Tensor:
    """The latents (N, C, H, W) from which the untouched backbone's DDIM `steps`, high to low, come to z."""
    for t in steps.flip(0):
        z = _undone(bank, z, t, text, scheduler, refine)
    return z


def _undone(bank: Bank, after: Tensor, t: Tensor, text: Text, scheduler: Any, refine: int) -> Tensor:
    """The latents before the scheduler's step at t, whose own linear form gives a and b e."""
    zero, rows = torch.zeros_like(after), t.expand(len(after)).to(after.device)
    a = scheduler.step(zero, t, torch.ones_like(after)).prev_sample
    before = after
    for _ in range(1 + refine):
        (prediction,) = bank.answer([(0, Ask(before, rows, text))])
        before = (after - scheduler.step(prediction, t, zero).prev_sample) / a
    return before
