"""The reference picture of a method at the noise of each step, by DDIM inversion (StyleAligned, arXiv 2312.02133).

Shapes: C latent channels, H W latent size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.adapters.bank import Bank
from bench.backbones.embedding import embedded
from bench.contracts import REFERENCE, Dataset, Method, Reference, Text
from bench.sampling.ddim_inversion import path

KEPT = 8  # pictures, each with its latents at all steps
Shown = list[tuple[float, Tensor]]  # timestep, latents (1, C, H, W), from noise to image


@torch.no_grad()
def reference_latents(bank: Bank, method: Method, dataset: Dataset, steps: int) -> Shown:
    """The latents that are shown at each timestep of DDIM in so many steps; none for a method without a reference."""
    reference = method.reference(dataset)
    if reference is None:
        return []
    kept: dict[Any, Shown] = vars(bank.backbone).setdefault("_inverted", {})
    key = (reference.image.tobytes(), reference.prompt, reference.guidance, reference.offset, steps)
    if key not in kept:
        kept[key] = _inverted(bank, reference, steps)
        if len(kept) > KEPT:
            del kept[next(iter(kept))]
    return kept[key]


def _inverted(bank: Bank, reference: Reference, steps: int) -> Shown:
    """At step k the latents of step max(k, offset + 1), at the first one those of `offset`, as the authors do."""
    scheduler = bank.backbone.scheduler("ddim", steps)
    z, _ = bank.backbone.encode(torch.from_numpy(reference.image)[None])
    text, negative = embedded(bank.backbone, [reference.prompt]), embedded(bank.backbone, [None])
    timesteps, cfg = scheduler.timesteps, reference.guidance
    found = list(path(bank, z, text, None if cfg == 1 else negative, scheduler, timesteps, cfg=cfg))[::-1]
    last = len(found) - 1
    late = [min(last, reference.offset if k == 0 else max(k, reference.offset + 1)) for k in range(len(found))]
    return [(float(t), found[i]) for t, i in zip(timesteps, late, strict=True)]


def with_reference(texts: Mapping[str, Text], shown: Shown, t: Tensor) -> Mapping[str, Text]:
    """The texts of a step; that of the reference shows the latents of the nearest timestep."""
    if not shown:
        return texts
    _, latents = min(shown, key=lambda one: abs(one[0] - float(t)))
    return {**texts, REFERENCE: texts[REFERENCE].showing({REFERENCE: latents})}
