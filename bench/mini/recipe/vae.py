"""Stage `vae`: a small AutoencoderKL, 64 x 64 x 3 -> 16 x 16 x 8, trained on every kind of picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from bench.mini.recipe.training import Fit, Progress, rows_at
from bench.mini.recipe.world import World

CHANNELS = 8
KL_WEIGHT = 1e-6
EDGE_WEIGHT = 0.5


def build() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 48, 96),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def to_float(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 (N, H, W, 3) -> float (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def _gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def _pictures(world: World, seed: int, step: int, batch: int) -> np.ndarray:
    """Half pretraining pictures, half odd ones (batch, 64, 64, 3), mirrored by chance."""
    half = batch // 2
    rows, odd = rows_at(seed, step, len(world.images), half), rows_at(seed + 1, step, len(world.odd), batch - half)
    both = np.concatenate([world.images[np.sort(rows)], world.odd[np.sort(odd)]])
    return both[:, :, ::-1] if step % 2 else both


def _cropped(x: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """One random window per picture (B, side, side, 3)."""
    tops, lefts = rng.integers(0, x.shape[1] - side + 1, (2, len(x)))
    return np.stack([p[a : a + side, b : b + side] for p, a, b in zip(x, tops, lefts, strict=True)])


def loss(vae: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
    """L1 + squared error + L1 of the gradients + a whisper of KL, for x (B, 3, 64, 64) in [-1, 1]."""
    with torch.autocast(x.device.type, torch.bfloat16):
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.mean + posterior.std * noise).sample
    y, mean, logvar = y.float(), posterior.mean.float(), posterior.logvar.float()
    edges = sum((a - b).abs().mean() for a, b in zip(_gradients(x), _gradients(y), strict=True))
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum((1, 2, 3)).mean()
    return (x - y).abs().mean() + 2 * ((x - y) ** 2).mean() + EDGE_WEIGHT * edges + KL_WEIGHT * kl


def train(world: World, folder: Path, steps: int, seed: int, device: str, batch: int = 16) -> AutoencoderKL:
    """Windows of 32 pixels first (four times as many steps for the time), whole pictures in the last twentieth."""
    torch.manual_seed(seed)
    vae = build().to(device)
    fit = Fit("vae", folder, {"vae": vae}, steps, lr=2e-3)

    def loss_at(step: int) -> Tensor:
        side = 32 if step < 0.95 * steps else 64
        x = _cropped(_pictures(world, seed, step, batch), side, np.random.default_rng((seed, step, 2)))
        noise = torch.randn(batch, CHANNELS, side // 4, side // 4, generator=torch.Generator().manual_seed(seed + step))
        return loss(vae, to_float(x, device), noise.to(device))

    fit.run(loss_at)
    fit.finished()
    vae.register_to_config(scaling_factor=1 / latent_scale(vae, world, device))
    return vae


@torch.no_grad()
def encode(
    vae: AutoencoderKL, images: np.ndarray, device: str, name: str = "encode", batch: int = 64
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the unscaled latents, each (N, 8, 16, 16) float16."""
    progress, means, stds = Progress(name, -(-len(images) // batch)), [], []
    for start in range(0, len(images), batch):
        with torch.autocast(device, torch.bfloat16):
            posterior = vae.encode(to_float(images[start : start + batch], device)).latent_dist
        means.append(posterior.mean.half().cpu())
        stds.append(posterior.std.half().cpu())
        progress.tick()
    return torch.cat(means), torch.cat(stds)


def latent_scale(vae: AutoencoderKL, world: World, device: str, count: int = 1024) -> float:
    """Standard deviation of the latents of the first pictures."""
    mean, std = encode(vae, world.images[:count], device)
    return float((mean.float().var() + (std.float() ** 2).mean()).sqrt())


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: np.ndarray, batch: int = 64) -> float:
    """Mean over pictures (N, 64, 64, 3) of the reconstruction's peak signal-to-noise ratio in dB, rounded to bytes."""
    scores = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        y = vae.decode(vae.encode(to_float(part)).latent_dist.mean).sample.clamp(-1, 1)
        back = ((y + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
        scores.append(10 * np.log10(255**2 / ((part.astype(np.float32) - back) ** 2).mean((1, 2, 3))))
    return float(np.concatenate(scores).mean())
