"""DDIM inversion: the latents from which the untouched backbone's deterministic steps come to an image.

A deterministic DDIM step (Song et al. 2020, arXiv 2010.02502) is linear in the latent and in the prediction,
z' = a z + b e(z, t). Inversion solves it for z by z <- (z' - b e(z, t)) / a, beginning at z = z'. Once is plain DDIM
inversion; each further time is a refinement step of ReNoise (Garibi et al. 2024, arXiv 2403.14602), here without its
averaging and its noise correction.
Shapes: N latents, C latent channels, H W latent size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bench.adapters.bank import Bank
from bench.contracts import Ask, BenchError, Text

LARGEST = 1e6  # of a latent while sampling; those of the usual schedulers stay below 100


@torch.no_grad()
def invert(bank: Bank, z: Tensor, text: Text, scheduler: Any, steps: Tensor, refine: int) -> Tensor:
    """The latents (N, C, H, W) from which the untouched backbone's DDIM `steps`, high to low, come to z."""
    *_, last = [z, *path(bank, z, text, None, scheduler, steps, refine)]
    return last


@torch.no_grad()
def path(
    bank: Bank,
    z: Tensor,
    text: Text,
    negative: Text | None,
    scheduler: Any,
    steps: Tensor,
    refine: int = 0,
    cfg: float = 1.0,
) -> Iterator[Tensor]:
    """The latents (N, C, H, W) before each of the steps, the last step first, under guidance `cfg` from `negative`."""
    for k, t in enumerate(steps.flip(0)):
        z = _undone(bank, z, t, text, negative, scheduler, refine, cfg)
        check_latents(z, f"inversion step {k + 1} of {len(steps)}")
        yield z


def _undone(
    bank: Bank, after: Tensor, t: Tensor, text: Text, negative: Text | None, scheduler: Any, refine: int, cfg: float
) -> Tensor:
    """The latents before the scheduler's step at t, whose own linear form gives a and b e."""
    zero = torch.zeros_like(after)
    a = scheduler.step(zero, t, torch.ones_like(after)).prev_sample
    before = after
    for _ in range(1 + refine):
        prediction = _predicted(bank, before, t, text, negative, cfg)
        before = (after - scheduler.step(prediction, t, zero).prev_sample) / a
    return before


def _predicted(bank: Bank, z: Tensor, t: Tensor, text: Text, negative: Text | None, cfg: float) -> Tensor:
    rows = t.expand(len(z)).to(z.device)
    if negative is None:
        return bank.answer([(0, Ask(z, rows, text))])[0]
    ask = Ask(torch.cat([z, z]), torch.cat([rows, rows]), Text.cat([negative, text]))
    unconditional, conditional = bank.answer([(0, ask)])[0].chunk(2)
    return unconditional + cfg * (conditional - unconditional)


def check_latents(z: Tensor, step: str) -> None:
    """Raises BenchError for latents (N, C, H, W) with NaN or beyond LARGEST, which would become black images."""
    sound = (z.abs() <= LARGEST).flatten(1).all(1)  # false for NaN
    if not sound.all():
        raise BenchError(
            f"{int((~sound).sum())} of {len(z)} latents became NaN or larger than {LARGEST:g} in {step} of sampling; "
            "lower the strength or sampler.cfg, or type backbone.dtype=float32 if it is float16."
        )
