"""The small autoencoder of FLUX.2's latents (TAEF2 of madebyollin, MIT) in the place of the large one.

It is read from `weights/taef2_{encoder,decoder}.pth` of the mirror. Layers are named by their places in those files.
"""

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

PLAIN, POOLED = False, True


class Block(nn.Module):
    """relu(x + conv(x)); a pooled one first adds a wide layer with group norm."""

    def __init__(self, pooled):
        super().__init__()
        convs = [nn.Conv2d(64, 64, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])
        wide = [nn.Conv2d(64, 256, 1, bias=False), nn.GroupNorm(4, 256), nn.ReLU(), nn.Conv2d(256, 64, 1, bias=False)]
        self.pool = nn.Sequential(*wide) if pooled else None

    def forward(self, x):
        x = x if self.pool is None else x + self.pool(x)
        return torch.relu(x + self.conv(x))


class Bound(nn.Module):
    def forward(self, x):
        return 3 * torch.tanh(x / 3)


def down():
    return [nn.Conv2d(64, 64, 3, padding=1, stride=2, bias=False)]


def up():
    return [nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1, bias=False)]


def blocks(pooled):
    return [Block(pooled) for _ in range(3)]


def read(folder):
    """Encoder (N, 3, P, P) in [0, 1] -> (N, 32, P / 8, P / 8), and its decoder."""
    first, last = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 3, 3, padding=1)
    middle = [*down(), *blocks(PLAIN), *down(), *blocks(PLAIN), *down(), *blocks(POOLED)]
    encoder = nn.Sequential(first, Block(PLAIN), *middle, nn.Conv2d(64, 32, 3, padding=1))
    stages = [*blocks(POOLED), *up(), *blocks(PLAIN), *up(), *blocks(PLAIN), *up(), Block(PLAIN)]
    decoder = nn.Sequential(Bound(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), *stages, last)
    for part, name in ((encoder, "encoder"), (decoder, "decoder")):
        part.load_state_dict(torch.load(Path(folder) / f"taef2_{name}.pth", map_location="cpu", weights_only=True))
        part.requires_grad_(False)
    return encoder, decoder


class SmallAutoencoder(nn.Module):
    """Behind the face of diffusers' AutoencoderKLFlux2; its latents have no spread, and `bn` is set from outside."""

    def __init__(self, folder):
        super().__init__()
        self.encoder, self.decoder = read(folder)
        self.bn = nn.BatchNorm2d(128, affine=False)
        self.config = SimpleNamespace(batch_norm_eps=1e-4, latent_channels=32, block_out_channels=(1, 1, 1, 1))
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def encode(self, x):
        mean = self.encoder(x / 2 + 0.5)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=torch.zeros_like(mean)))

    def decode(self, latents):
        return SimpleNamespace(sample=self.decoder(latents).clamp(0, 1) * 2 - 1)
