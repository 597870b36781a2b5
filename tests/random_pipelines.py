"""Stable Diffusion and SDXL pipelines of diffusers with random weights: tiny ones, and ones of the published size."""

from contextlib import contextmanager

import torch

PIXELS, LENGTH, WIDTH = 32, 20, 32  # of the tiny ones
NOISE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}

# --- tiny -------------------------------------------------------------------------------------------------------------


def tokenizer():
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=LENGTH)


def text_encoder(kind, width=WIDTH):
    from transformers import CLIPTextConfig

    config = CLIPTextConfig(
        vocab_size=514, hidden_size=width, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=LENGTH, bos_token_id=512, eos_token_id=513, pad_token_id=513, projection_dim=24,
    )  # fmt: skip
    return kind(config)


def autoencoder(**options):
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(8, 16, 16), down_block_types=("DownEncoderBlock2D",) * 3, sample_size=PIXELS,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, norm_num_groups=4, **options,
    )  # fmt: skip


def unet(**options):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(2)
    return UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **options,
    )  # fmt: skip


def stable_diffusion(prediction="epsilon"):
    from diffusers import PNDMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=autoencoder(), unet=unet(cross_attention_dim=WIDTH), tokenizer=tokenizer(),
        text_encoder=text_encoder(CLIPTextModel), safety_checker=None, feature_extractor=None,
        scheduler=PNDMScheduler(skip_prk_steps=True, prediction_type=prediction, **NOISE),
        requires_safety_checker=False,
    )  # fmt: skip


def sdxl():
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    network = unet(
        cross_attention_dim=WIDTH + 40, use_linear_projection=True, transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=24 + 6 * 8,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13025), unet=network, tokenizer=tokenizer(), tokenizer_2=tokenizer(),
        text_encoder=text_encoder(CLIPTextModel), text_encoder_2=text_encoder(CLIPTextModelWithProjection, 40),
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", **NOISE), add_watermarker=False,
    )  # fmt: skip


# --- of the published size --------------------------------------------------------------------------------------------

SD15_UNET = {"cross_attention_dim": 768, "attention_head_dim": 8}
SDXL_UNET = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
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


def on_cpu(scheduler, **options):
    """Schedulers make numpy arrays, also where the networks are built on a GPU."""
    with torch.device("cpu"):
        return scheduler(**NOISE, **options)


def full_tokenizer():
    made = tokenizer()
    made.model_max_length = 77
    return made


def full_text_encoder(kind, options, width):
    from transformers import CLIPTextConfig

    ids = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    return kind(CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, projection_dim=width, **ids, **options))


def full_stable_diffusion():
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    return StableDiffusionPipeline(
        vae=AutoencoderKL(**VAE), unet=UNet2DConditionModel(**SD15_UNET), tokenizer=full_tokenizer(),
        text_encoder=full_text_encoder(CLIPTextModel, CLIP_L, 768),
        scheduler=on_cpu(PNDMScheduler, skip_prk_steps=True),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def full_sdxl():
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    return StableDiffusionXLPipeline(
        vae=AutoencoderKL(scaling_factor=0.13025, **VAE), unet=UNet2DConditionModel(**SDXL_UNET),
        tokenizer=full_tokenizer(),
        text_encoder=full_text_encoder(CLIPTextModel, CLIP_L, 768), tokenizer_2=full_tokenizer(), add_watermarker=False,
        text_encoder_2=full_text_encoder(CLIPTextModelWithProjection, CLIP_G, 1280),
        scheduler=on_cpu(EulerDiscreteScheduler, timestep_spacing="leading"),
    )  # fmt: skip
