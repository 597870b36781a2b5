"""SD 1.5 and SDXL at full size with random weights, through files in hub layout. Needs 12 GB memory, 8 GB disk."""

from contextlib import contextmanager

import pytest
import torch
from test_backbones import NOISE, SD15_UNET, SDXL_UNET, tokenizer

from bench.backbones.sdxl import StableDiffusionXL
from bench.backbones.stable_diffusion import StableDiffusion
from bench.contracts import Text

PIXELS = 256
PROMPTS = ["", "a photo of a dog"]
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}


@contextmanager
def built_in(dtype):
    kept = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(kept)


def words():
    made = tokenizer()
    made.model_max_length = 77
    return made


def text_encoder(kind, options, width):
    from transformers import CLIPTextConfig

    ids = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    return kind(CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, projection_dim=width, **ids, **options))


def stable_diffusion():
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    return StableDiffusionPipeline(
        vae=AutoencoderKL(**VAE), unet=UNet2DConditionModel(**SD15_UNET), tokenizer=words(),
        text_encoder=text_encoder(CLIPTextModel, CLIP_L, 768), scheduler=PNDMScheduler(skip_prk_steps=True, **NOISE),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl():
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    return StableDiffusionXLPipeline(
        vae=AutoencoderKL(scaling_factor=0.13025, **VAE), unet=UNet2DConditionModel(**SDXL_UNET), tokenizer=words(),
        text_encoder=text_encoder(CLIPTextModel, CLIP_L, 768), tokenizer_2=words(), add_watermarker=False,
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, CLIP_G, 1280),
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", **NOISE),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize(
    "build, kind, dtype, width, million",
    [(stable_diffusion, StableDiffusion, "float32", 768, 860), (sdxl, StableDiffusionXL, "bfloat16", 2048, 2567)],
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
