"""Shapes of published models: what their `config.json` says, for forecasts of memory and for random weights.

Sources: the configuration files of the hub repositories that conf/backbone names. Parameters in millions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

XL_TIME_IDS = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}


@dataclass(frozen=True)
class Architecture:
    network: Mapping[str, Any]  # arguments of diffusers' class, where they are not its defaults
    latents: tuple[int, int]  # channels, pixels per latent
    autoencoder: float  # parameters in millions, kept in float32
    text_encoders: float  # parameters in millions
    tokens: int  # that the network reads for a prompt; 0: `text_length` of the settings


PUBLISHED: dict[str, Architecture] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": Architecture(
        {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}, (4, 8), 84, 123, 77
    ),
    "stabilityai/stable-diffusion-xl-base-1.0": Architecture(
        {
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "projection_class_embeddings_input_dim": 2816,
            "sample_size": 128,
            **XL_TIME_IDS,
        },
        (4, 8),
        84,
        818,
        77,
    ),
    "stabilityai/stable-diffusion-3.5-medium": Architecture(
        {
            "sample_size": 128,
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
        },
        (16, 8),
        84,
        123 + 695 + 4762,
        0,
    ),
    "black-forest-labs/FLUX.1-dev": Architecture({"guidance_embeds": True}, (16, 8), 84, 123 + 4762, 0),
    "black-forest-labs/FLUX.2-klein-base-4B": Architecture(
        {
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
        (128, 16),
        84,
        4022,
        0,
    ),
}


def published(settings: Mapping[str, Any]) -> Architecture | None:
    """The shapes of a backbone's model, or None where they are not known here."""
    return PUBLISHED.get(str(settings["path"]).partition("@")[0])
