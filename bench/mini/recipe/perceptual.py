"""Stage `perceptual`: train the trunk to name what a picture shows, then fit channel weights that rank distortions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional as F

from bench.mini.perceptual import PerceptualTrunk
from bench.mini.recipe.training import Fit, fast_precision, rows_at
from bench.mini.recipe.vae import to_float
from bench.mini.recipe.world import World

READ = ("object", "colour", "background", "style")


class Reader(nn.Module):
    """Names object, colour, background and style from the pooled activations of all stages."""

    def __init__(self, trunk: PerceptualTrunk, classes: dict[str, int]):
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict(
            {k: nn.Linear(sum(trunk.widths) + 16 * trunk.widths[-1], n) for k, n in classes.items()}
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.trunk.activations(x)
        pooled = torch.cat([*(m.mean((2, 3)) for m in maps), F.adaptive_avg_pool2d(maps[-1], 4).flatten(1)], 1)
        return {k: head(pooled) for k, head in self.heads.items()}


def train_trunk(world: World, folder: Path, steps: int, seed: int, device: str, batch: int = 96) -> PerceptualTrunk:
    torch.manual_seed(seed)
    reader = Reader(PerceptualTrunk(), {k: int(world.labels[k].max()) + 1 for k in READ}).to(device)
    fit = Fit("trunk", folder, {"reader": reader}, steps, lr=2e-3)

    def loss_at(step: int) -> Tensor:
        rows = np.sort(rows_at(seed, step, len(world.images), batch))
        with fast_precision(device):
            said = reader(to_float(world.images[rows], device))
        truth = {k: torch.from_numpy(world.labels[k][rows].astype(np.int64)).to(device) for k in READ}
        return sum(F.cross_entropy(said[k].float(), truth[k]) for k in READ)

    fit.run(loss_at)
    return fit.finished()["reader"].trunk


def distorted(x: np.ndarray, other: np.ndarray, kind: int, amount: float, rng: np.random.Generator) -> np.ndarray:
    """x (64, 64, 3) float in [0, 255], changed by an amount in [0, 1] of one kind."""
    match kind:
        case 0:
            return gaussian_filter(x, (3 * amount, 3 * amount, 0))
        case 1:
            return x + rng.normal(0, 70 * amount, x.shape)
        case 2:
            return np.roll(x, round(10 * amount), axis=int(rng.integers(2)))
        case 3:
            return (x - 128) * (1 - 0.9 * amount) + 128
        case 4:
            return x + 90 * amount * rng.uniform(-1, 1, 3)
        case _:
            return x * (1 - amount) + other * amount


def triplets(world: World, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture, a slightly and a clearly more distorted one, each (count, 64, 64, 3) uint8."""
    a, near, far = [], [], []
    for row, second in rng.integers(0, len(world.images), (count, 2)):
        x, other = world.images[row].astype(np.float32), world.images[second].astype(np.float32)
        low = rng.uniform(0.05, 0.6)
        high = low + rng.uniform(0.15, 0.4)
        kinds = rng.integers(0, 6, 2) if rng.random() < 0.2 and high - low > 0.3 else [rng.integers(0, 6)] * 2
        a.append(x)
        near.append(distorted(x, other, int(kinds[0]), low, rng))
        far.append(distorted(x, other, int(kinds[1]), high, rng))
    return tuple(np.clip(np.stack(p), 0, 255).astype(np.uint8) for p in (a, near, far))  # type: ignore[return-value]


def calibrate(trunk: PerceptualTrunk, world: World, steps: int, seed: int, device: str, batch: int = 64) -> None:
    """Fit the channel weights so that the more distorted picture is farther; unrelated photos end up 1 apart."""
    trunk.requires_grad_(False)
    for w in trunk.weights:
        w.requires_grad_(True)
    optimizer = torch.optim.Adam(trunk.weights, lr=3e-3)
    for step in range(steps):
        a, near, far = (to_float(p, device) for p in triplets(world, np.random.default_rng((seed, step, 3)), batch))
        margin = (trunk(a, far) + 1e-4).log() - (trunk(a, near) + 1e-4).log()
        optimizer.zero_grad(set_to_none=True)
        F.softplus(-4 * margin).mean().backward()
        optimizer.step()
        with torch.no_grad():
            for w in trunk.weights:
                w.clamp_(min=1e-4)
    photos = to_float(world.images[np.flatnonzero(world.labels["style"] == 0)[:256]], device)
    with torch.no_grad():
        apart = trunk(photos[:128], photos[128:]).mean()
        for w in trunk.weights:
            w.div_(apart)
    trunk.requires_grad_(False)
