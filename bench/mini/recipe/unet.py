"""Stage `unet`: the denoiser and its text encoder, trained jointly on cached latents (epsilon prediction)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from bench.mini.recipe.clip import TEXT_HEADS, TEXT_LAYERS, TEXT_WIDTH
from bench.mini.recipe.tokenizer import LENGTH
from bench.mini.recipe.training import Fit, rows_at, warm_hold_cool
from bench.mini.recipe.vae import CHANNELS, LOGVAR

SIDE = 16
# beta_end above the usual 0.012: the widest channels would else shine through the noise at the last step
SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
EMPTY_SHARE = 0.1  # captions replaced by the empty prompt
WEIGHT_CAP = 5.0


def build() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(64, 128),
        layers_per_block=1,
        norm_num_groups=8,  # 32 small groups take a quarter of the time on CPU
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # diffusers reads this as the number of heads
    )


def build_text(vocabulary: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=TEXT_HEADS,
        max_position_embeddings=LENGTH,
        hidden_act="gelu",
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    return CLIPTextModel(config)


def from_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The contrastive text tower's weights under the names of transformers' CLIPTextModel (no `text_model.` prefix)."""
    out = {
        "embeddings.token_embedding.weight": state["token_embedding.weight"],
        "embeddings.position_embedding.weight": state["positional_embedding"],
        "final_layer_norm.weight": state["ln_final.weight"],
        "final_layer_norm.bias": state["ln_final.bias"],
    }
    plain = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for k in range(TEXT_LAYERS):
        old, new = f"transformer.resblocks.{k}", f"encoder.layers.{k}"
        for kind in ("weight", "bias"):
            for a, b in plain.items():
                out[f"{new}.{b}.{kind}"] = state[f"{old}.{a}.{kind}"]
            for name, part in zip("qkv", state[f"{old}.attn.in_proj_{kind}"].chunk(3), strict=True):
                out[f"{new}.self_attn.{name}_proj.{kind}"] = part
    return out


def start_from(text: CLIPTextModel, clip_state: dict[str, Tensor]) -> None:
    known = text.state_dict()
    prefix = "text_model." if any(k.startswith("text_model.") for k in known) else ""
    loaded = {prefix + k: v.float() for k, v in from_open_clip(clip_state).items()}
    result = text.load_state_dict(loaded, strict=False)
    left = [k for k in result.missing_keys if "position_ids" not in k]
    if left or result.unexpected_keys:
        raise KeyError(f"The two text towers differ: missing {left}, unexpected {result.unexpected_keys}.")


class Noise(nn.Module):
    """alpha-bar of the scaled-linear schedule and the weight 1 / sqrt(SNR) of an epsilon loss (Yu et al. 2023), mean 1.

    A plain epsilon loss hardly counts errors at high noise, where layout, palette and the caption's words are decided.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", DDPMScheduler(**SCHEDULE).alphas_cumprod)  # (1000,)

    def mix(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        kept = self.kept[t][:, None, None, None]
        return kept.sqrt() * z + (1 - kept).sqrt() * eps

    def weight(self, t: Tensor) -> Tensor:
        weight = ((1 - self.kept) / self.kept).sqrt().clamp(max=WEIGHT_CAP)
        return (weight / weight.mean())[t]


def train(
    latents: Tensor,
    tokens: Tensor,
    vocabulary: int,
    clip_state: dict[str, Tensor],
    folder: Path,
    steps: int,
    seed: int,
    device: str,
    batch: int = 32,
    lr: float = 1e-3,
) -> None:
    """latents: means (N, 16, 16, 16); tokens (N, 5, 32). The result is the checkpoint's averages."""
    torch.manual_seed(seed)
    unet, text, noise = build(), build_text(vocabulary), Noise().to(device)
    unet.set_attn_processor(AttnProcessor())  # on CPU several times faster backward than the fused kernel
    start_from(text, clip_state)
    unet, text = unet.to(device, memory_format=torch.channels_last), text.to(device)
    fit = Fit("unet", folder, {"unet": unet, "text": text}, steps, lr=lr, schedule=warm_hold_cool)
    spread = latents[:3000].float().std((0, 2, 3)).to(device)  # (16,)
    share = (spread / spread.mean())[:, None, None]  # wide channels hold shapes and colours, narrow ones grain
    empty = torch.full((LENGTH,), vocabulary - 1)
    empty[0] = vocabulary - 2

    def loss_at(step: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed + step)
        rows = torch.from_numpy(rows_at(seed, step, len(tokens), batch))
        ids = tokens[rows, torch.randint(0, tokens.shape[1], (batch,), generator=draw)]
        ids = torch.where(torch.rand(batch, 1, generator=draw) < EMPTY_SHARE, empty, ids)
        z = latents[rows].float()
        z = z + np.exp(LOGVAR / 2) * torch.randn(z.shape, generator=draw)
        eps, t = (
            torch.randn(z.shape, generator=draw).to(device),
            torch.randint(0, 1000, (batch,), generator=draw).to(device),
        )
        z_t = noise.mix(z.to(device), eps, t).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16):
            predicted = unet(z_t, t, text(ids.to(device))[0], return_dict=False)[0]
        return (noise.weight(t) * (share * (predicted.float() - eps) ** 2).mean((1, 2, 3))).mean()

    fit.run(loss_at)


def token_table(tokenizer, captions: list[list[str]]) -> Tensor:
    """Token ids (N, captions per picture, 32)."""
    flat = [c for group in captions for c in group]
    parts = [
        tokenizer(
            flat[k : k + 10000], padding="max_length", truncation=True, max_length=LENGTH, return_tensors="np"
        ).input_ids
        for k in range(0, len(flat), 10000)
    ]
    return torch.from_numpy(np.concatenate(parts)).reshape(len(captions), -1, LENGTH)
