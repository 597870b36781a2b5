"""Stage `unet`: the denoiser and its text encoder, trained jointly on cached latents.

The target is v = a_t eps - s_t z (Salimans & Ho 2022, arXiv 2202.00512): errors at high noise, where layout, palette
and the caption's words are decided, count as much as those at low noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from bench.mini.recipe.tokenizer import LENGTH
from bench.mini.recipe.training import Fit, Run, averaged, fast_precision, rows_at, warm_hold_cool
from bench.mini.recipe.vae import CHANNELS, LOGVAR

SIDE = 16
TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS = 192, 3, 4
# beta_end above the usual 0.012: the widest channels would else shine through the noise at the last step
SCHEDULE = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.02, "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}  # fmt: skip
EMPTY_SHARE = 0.1  # captions replaced by the empty prompt
TIMES = (0.2, 1.0)  # mean and spread of logit(t / 1000)
ANYWHERE = 0.25  # share of timesteps drawn uniformly
LR, BATCH = 1e-3, 32
GPU_LR, GPU_BATCH = 2e-3, 256


def build() -> UNet2DConditionModel:
    """Attention at both sizes, 16 x 16 with one head and 8 x 8 with four: adapters for attention reach fine strokes."""
    return UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(64, 128),
        layers_per_block=1,
        norm_num_groups=8,  # 32 small groups take a quarter of the time on CPU
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(1, 4),  # diffusers reads this as the number of heads
        resnet_time_scale_shift="scale_shift",
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
    config._attn_implementation = "eager"  # on CPU its backward takes a tenth of the fused kernel's time
    return CLIPTextModel(config)


def tower(checkpoint: Path, vocabulary: int) -> CLIPTextModel:
    """The averaged, frozen text encoder of a denoiser's checkpoint."""
    return averaged(checkpoint, "text", build_text(vocabulary)).requires_grad_(False)


class Noise(nn.Module):
    """The schedule: noisy latents and targets at timesteps (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", DDPMScheduler(**SCHEDULE).alphas_cumprod)  # alpha-bar (1000,)

    def mix(self, z: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """z_t and v, both like z (B, C, H, W)."""
        kept = self.kept[t][:, None, None, None]
        a, s = kept.sqrt(), (1 - kept).sqrt()
        return a * z + s * eps, a * eps - s * z


def times(batch: int, draw: torch.Generator, mean: float = TIMES[0], spread: float = TIMES[1]) -> Tensor:
    """(batch,) in (0, 1), a quarter uniform, the others logit-normal; one draw in each of `batch` equal shares."""
    share = (torch.arange(batch) + torch.rand(batch, generator=draw)) / batch
    share = share[torch.randperm(batch, generator=draw)].clamp(1e-4, 1 - 1e-4)
    anywhere = round(ANYWHERE * batch)
    normal = torch.special.ndtri(share)
    return torch.where(torch.arange(batch) < anywhere, share, torch.sigmoid(mean + spread * normal))


def timesteps(batch: int, draw: torch.Generator) -> Tensor:
    """(batch,) whole timesteps of the schedule, drawn by `times`."""
    return (times(batch, draw) * 1000).long().clamp(0, 999)


def empty_prompt(vocabulary: int) -> Tensor:
    """Token ids (32,) of ""."""
    empty = torch.full((LENGTH,), vocabulary - 1)
    empty[0] = vocabulary - 2
    return empty


def parts(vocabulary: int, seed: int) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    unet, text = build(), build_text(vocabulary)
    unet.set_attn_processor(AttnProcessor())  # on CPU several times faster backward than the fused kernel
    return {"unet": unet.to(memory_format=torch.channels_last), "text": text}


def channel_weights(latents: Tensor) -> Tensor:
    """(20, 1, 1), mean 1: wide channels hold shapes and colours, narrow ones grain."""
    spread = latents[:3000].float().std((0, 2, 3))
    return (spread / spread.mean())[:, None, None]


@dataclass(frozen=True)
class Batches:
    """Latents and captions of a step, a function of (seed, step) alone.

    latents: means (N, 20, 16, 16); tokens (N, captions, 32).
    """

    latents: Tensor
    tokens: Tensor
    vocabulary: int
    seed: int
    size: int

    def at(self, step: int) -> tuple[Tensor, Tensor, torch.Generator]:
        """Drawn latents (B, 20, 16, 16), token ids (B, 32), and the generator for noise and timesteps."""
        draw = torch.Generator().manual_seed(self.seed + step)
        rows = torch.from_numpy(rows_at(self.seed, step, len(self.tokens), self.size))
        ids = self.tokens[rows, torch.randint(0, self.tokens.shape[1], (self.size,), generator=draw)]
        ids = torch.where(torch.rand(self.size, 1, generator=draw) < EMPTY_SHARE, empty_prompt(self.vocabulary), ids)
        z = self.latents[rows].float()
        return z + np.exp(LOGVAR / 2) * torch.randn(z.shape, generator=draw), ids, draw


def train(
    latents: Tensor, tokens: Tensor, vocabulary: int, run: Run, state: Path | None, compiled: bool = False
) -> None:
    """latents: means (N, 20, 16, 16); tokens (N, captions, 32). The result is the checkpoint's averages.

    `state`: a checkpoint to start from where the run's folder has none. `compiled`: 1.2 times as fast after a minute.
    """
    device, gpu = run.device, torch.device(run.device).type != "cpu"
    batch = GPU_BATCH if gpu else BATCH
    modules = {name: part.to(device) for name, part in parts(vocabulary, run.seed).items()}
    unet, text, noise = modules["unet"], modules["text"], Noise().to(device)
    drawn = Batches(latents, tokens, vocabulary, run.seed, batch)
    fit = Fit("unet", run.folder, modules, run.steps, lr=GPU_LR if gpu else LR, schedule=warm_hold_cool,
              most_averaged=0.9995, until=run.until, state=state)  # fmt: skip
    predict, encode = (torch.compile(unet), torch.compile(text)) if compiled else (unet, text)
    share = channel_weights(latents).to(device)

    def loss_at(step: int) -> Tensor:
        z, ids, draw = drawn.at(step)
        eps, t = torch.randn(z.shape, generator=draw).to(device), timesteps(batch, draw).to(device)
        z_t, v = noise.mix(z.to(device), eps, t)
        with fast_precision(device):
            hidden = encode(ids.to(device))[0]
            predicted = predict(z_t.contiguous(memory_format=torch.channels_last), t, hidden, return_dict=False)[0]
        return (share * (predicted.float() - v) ** 2).mean()

    fit.run(loss_at)


def token_table(tokenizer, captions: list[list[str]]) -> Tensor:
    """Token ids (N, captions per picture, 32)."""
    flat = [c for group in captions for c in group]
    unique = {c: k for k, c in enumerate(dict.fromkeys(flat))}
    texts = list(unique)
    chunks = [
        tokenizer(
            texts[k : k + 10000], padding="max_length", truncation=True, max_length=LENGTH, return_tensors="np"
        ).input_ids
        for k in range(0, len(texts), 10000)
    ]
    rows = torch.tensor([unique[c] for c in flat])
    return torch.from_numpy(np.concatenate(chunks))[rows].reshape(len(captions), -1, LENGTH)
