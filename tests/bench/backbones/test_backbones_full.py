"""SD 1.5 and SDXL at full size with random weights, through files in hub layout. Needs 12 GB memory, 8 GB disk."""

import pytest
import torch
from random_pipelines import built_in, full_sdxl, full_stable_diffusion

from bench.backbones.sdxl import StableDiffusionXL
from bench.backbones.stable_diffusion import StableDiffusion
from bench.contracts import Text

PIXELS = 256
PROMPTS = ["", "a photo of a dog"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize(
    "build, kind, dtype, width, million",
    [
        (full_stable_diffusion, StableDiffusion, "float32", 768, 860),
        (full_sdxl, StableDiffusionXL, "bfloat16", 2048, 2567),
    ],
    ids=["sd15", "sdxl"],
)
@torch.no_grad()
def test_full_size_models_load_from_half_stored_files_and_predict(build, kind, dtype, width, million, tmp_path):
    torch.manual_seed(0)
    with built_in(torch.float16):
        pipeline = build()
    pipeline.save_pretrained(tmp_path, variant="fp16")
    unet = pipeline.unet
    del pipeline
    backbone = kind(str(tmp_path), PIXELS, dtype=dtype, device="cpu", name="full")
    assert round(sum(weight.numel() for weight in backbone.network.parameters()) / 1e6) == million
    text = backbone.embed(PROMPTS)
    assert text.states.shape == (2, 77, width)
    z = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    found = backbone.predict(z, torch.tensor([10, 900]), text)
    expected = reference(unet.to(backbone.dtype), z, text)
    assert found.std() > 0
    assert (found - expected).std() < (0.05 if dtype == "bfloat16" else 1e-4) * expected.std()
    assert backbone.decode(found[:1]).shape == (1, 3, PIXELS, PIXELS)


def reference(unet, z, text: Text):
    """The UNet that was built, called by hand."""
    extras = {name: value.to(unet.dtype) for name, value in text.extras.items()}
    out = unet(z.to(unet.dtype), torch.tensor([10, 900]), text.states, added_cond_kwargs=extras)
    return out.sample.to(z.dtype)
