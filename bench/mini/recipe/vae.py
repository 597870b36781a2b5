"""Stage `vae`: an AutoencoderKL, 64 x 64 x 3 <-> 16 x 16 x 20, whose encoder is exact and whose decoder is trained.

The encoder holds the principal components of 4 x 4 patches, z_k = v_k . (x - mean) / sqrt(s_k) up to one common
factor, so a channel's spread is the square root of the component's own. Latents exist at once and never change while
the decoder learns on every kind of picture. Written into diffusers' layers: residual branches are zero, strided
convolutions move pixels to channels, and since silu(a) - silu(-a) = a the last activation is undone; large constant
channels keep its group normalisation from rescaling a picture.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from bench.mini.recipe.training import Fit, Run, fast_precision, rows_at

CHANNELS, PATCH, GROUPS = 20, 4, 8
WIDTH = 96  # of the encoder's and decoder's smallest maps
PER_GROUP = -(-CHANNELS // GROUPS)  # latents written into one group of channels, each as a pair of opposite sign
STEADY = 30.0  # size of the constant channels
LOGVAR = -6.0  # of every latent: a standard deviation of 0.05
EDGE_WEIGHT = 0.5


def build() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 48, WIDTH),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=GROUPS,
        sample_size=64,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def to_float(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 (N, H, W, 3) -> float (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


# ------------------------------------------------------------------------------------------------------- encoder


def patches(x: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 48, H/4, W/4); channels: colour, then the two bits of each position (two strided moves)."""
    return F.pixel_unshuffle(F.pixel_unshuffle(x, 2), 2)


def principal(*parts: np.ndarray, count: int = 3000) -> tuple[Tensor, Tensor]:
    """Projection (20, 48) and patch mean (48,) from equal numbers of pictures (N, 64, 64, 3); mean 0, variance 1."""
    x = torch.cat([patches(to_float(part[:count])).transpose(0, 1).flatten(1) for part in parts], 1)
    mean = x.mean(1)
    values, vectors = torch.linalg.eigh(torch.cov(x))
    spread, vectors = values.flip(0)[:CHANNELS].sqrt(), vectors.flip(1)[:, :CHANNELS]
    return (vectors / spread.sqrt()).T / spread.mean().sqrt(), mean


def latents(images: np.ndarray, basis: Tensor, mean: Tensor, batch: int = 1000) -> Tensor:
    """Latent means (N, 20, 16, 16) float16, the same as `vae.encode` gives."""
    parts = (patches(to_float(images[k : k + batch])) - mean[:, None, None] for k in range(0, len(images), batch))
    return torch.cat([torch.einsum("kc,nchw->nkhw", basis, part).half() for part in parts])


@torch.no_grad()
def write_encoder(vae: AutoencoderKL, basis: Tensor, mean: Tensor) -> None:
    """Set the encoder's weights so that its mean is basis @ (patch - mean) and its log-variance constant."""
    encoder = vae.encoder
    for p in (*encoder.parameters(), *vae.quant_conv.parameters()):
        p.zero_()
    for module in encoder.modules():
        if isinstance(module, nn.GroupNorm):
            module.weight.fill_(1)
    for c in range(3):
        encoder.conv_in.weight[c, c, 1, 1] = 1
    encoder.down_blocks[1].resnets[0].conv_shortcut.weight[:12, :12, 0, 0] = torch.eye(12)
    for block, channels in ((0, 3), (1, 12)):  # 2 x 2 pixels to channels
        move = encoder.down_blocks[block].downsamplers[0].conv.weight
        for c in range(channels):
            for k in range(4):
                move[4 * c + k, c, k // 2, k % 2] = 1
    last, size, used = encoder.down_blocks[2].resnets[0].conv_shortcut, WIDTH // GROUPS, 2 * PER_GROUP
    signs = torch.tensor([1.0, -1.0] * ((size - used) // 2))
    gain = STEADY * (len(signs) / size) ** 0.5
    for group in range(GROUPS):
        last.bias[group * size + used : (group + 1) * size] = STEADY * signs
    for k, row in enumerate(basis):
        at = k // PER_GROUP * size + k % PER_GROUP * 2
        last.weight[at, :, 0, 0], last.weight[at + 1, :, 0, 0] = row, -row
        last.bias[at], last.bias[at + 1] = -row @ mean, row @ mean
        encoder.conv_out.weight[k, at, 1, 1], encoder.conv_out.weight[k, at + 1, 1, 1] = gain, -gain
    encoder.conv_out.bias[CHANNELS:] = LOGVAR
    vae.quant_conv.weight[:, :, 0, 0] = torch.eye(2 * CHANNELS)


# ------------------------------------------------------------------------------------------------------- decoder


def _quiet_branches(vae: AutoencoderKL) -> None:
    """Start every residual branch of the decoder at zero."""
    for module in vae.decoder.modules():
        if hasattr(module, "conv2"):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)


def _gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def _pictures(base: np.ndarray, odd: np.ndarray, seed: int, step: int, batch: int) -> np.ndarray:
    """Half pretraining pictures, half odd ones (batch, 64, 64, 3), mirrored every other step."""
    half = batch // 2
    rows, strange = rows_at(seed, step, len(base), half), rows_at(seed + 1, step, len(odd), batch - half)
    both = np.concatenate([base[np.sort(rows)], odd[np.sort(strange)]])
    return both[:, :, ::-1] if step % 2 else both


def _windows(x: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """One random window per picture (B, side, side, 3)."""
    tops, lefts = rng.integers(0, x.shape[1] - side + 1, (2, len(x)))
    return np.stack([p[a : a + side, b : b + side] for p, a, b in zip(x, tops, lefts, strict=True)])


def loss(x: Tensor, y: Tensor) -> Tensor:
    """L1 + squared error + L1 of the gradients, for pictures (B, 3, H, W) in [-1, 1]."""
    edges = sum((a - b).abs().mean() for a, b in zip(_gradients(x), _gradients(y), strict=True))
    return (x - y).abs().mean() + 4 * ((x - y) ** 2).mean() + EDGE_WEIGHT * edges


def train(base: np.ndarray, odd: np.ndarray, basis: Tensor, mean: Tensor, run: Run, batch: int = 16) -> AutoencoderKL:
    """Windows of 32 pixels first (four times as many steps for the time), whole pictures in the last twentieth."""
    torch.manual_seed(run.seed)
    vae = build()
    _quiet_branches(vae)
    write_encoder(vae, basis, mean)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    vae = vae.to(run.device)
    fit = Fit("vae", run.folder, {"vae": vae}, run.steps, lr=2e-3, until=run.until)

    def loss_at(step: int) -> Tensor:
        side = 32 if step < 0.95 * run.steps else 64
        pictures = _windows(_pictures(base, odd, run.seed, step, batch), side, np.random.default_rng((run.seed, step)))
        z = latents(pictures, basis, mean).float()
        z = z + np.exp(LOGVAR / 2) * torch.randn(z.shape, generator=torch.Generator().manual_seed(run.seed + step))
        with fast_precision(run.device):
            y = vae.decode(z.to(run.device)).sample
        return loss(to_float(pictures, run.device), y.float())

    fit.run(loss_at)
    return fit.finished()["vae"]


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: np.ndarray, batch: int = 64) -> float:
    """Mean over pictures (N, 64, 64, 3) of the reconstruction's peak signal-to-noise ratio, dB, rounded to bytes."""
    scores = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        y = vae.decode(vae.encode(to_float(part)).latent_dist.mean).sample.clamp(-1, 1)
        back = ((y + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
        scores.append(10 * np.log10(255**2 / ((part.astype(np.float32) - back) ** 2).mean((1, 2, 3))))
    return float(np.concatenate(scores).mean())
