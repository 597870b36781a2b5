"""Photographs through FLUX.2's latents, with its small autoencoder; skipped where those weights are not."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_flux2_autoencoder import SmallAutoencoder

from bench.backbones.autoencoder import Flux2Autoencoder

MIRROR = Path(os.environ.get("BENCH_MIRROR", "nowhere"))
pytestmark = pytest.mark.skipif(
    not (MIRROR / "weights" / "taef2_encoder.pth").is_file(), reason="no weights/taef2_encoder.pth in BENCH_MIRROR"
)
PIXELS = 256


@pytest.fixture(scope="module")
def photographs():
    """uint8 (4, 3, 256, 256), the upper left squares of four photographs."""
    files = sorted((MIRROR / "dreambooth").rglob("*.jpg"))[::4][:4]
    if len(files) < 4:
        pytest.skip("fewer than 13 photographs in dreambooth/ of BENCH_MIRROR")
    made = []
    for file in files:
        with Image.open(file) as image:
            side = min(image.size)
            square = image.convert("RGB").crop((0, 0, side, side)).resize((PIXELS, PIXELS), Image.Resampling.LANCZOS)
        made.append(torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1))
    return torch.stack(made)


@pytest.fixture(scope="module")
def vae(photographs):
    """The autoencoder of the backbone on the small network, whose norm has the statistics of these photographs."""
    network = SmallAutoencoder(MIRROR / "weights")
    raw = network.encode(photographs / 127.5 - 1).latent_dist.mean
    patches = raw.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 1, 4, 5, 2, 3).flatten(1, 3)  # (4, 32 x 2 x 2, 16, 16)
    network.bn.running_mean.copy_(patches.mean((0, 2, 3)))
    network.bn.running_var.copy_(patches.var((0, 2, 3), unbiased=False))
    made = Flux2Autoencoder.__new__(Flux2Autoencoder)
    made.network, made.factor, made.channels = network, 8, 32
    made.shift, made.scale = made._normalisation(network.config)
    return made


def test_latents_of_photographs_are_normalised_channel_by_channel(vae, photographs):
    z, std = vae.encode(photographs)
    assert z.shape == (4, 128, 16, 16) and not std.any()
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(128), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(128), atol=0.02, rtol=0)


def test_photographs_survive_latents_and_other_ones_do_not(vae, photographs):
    """28 dB is what the small network has on photographs of 256 pixels; shuffled patches lose the picture."""
    z, _ = vae.encode(photographs)
    errors = [(vae.decode(latents).float() - photographs).square().mean() for latents in (z, z.roll(1, 1))]
    good, bad = (10 * torch.log10(255**2 / error) for error in errors)
    assert good > 25 and bad < 20
