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
from bench.mini.recipe.training import Fit, fast_precision, rows_at, warm_hold_cool
from bench.mini.recipe.vae import CHANNELS, LOGVAR

SIDE = 16
# beta_end above the usual 0.012: the widest channels would else shine through the noise at the last step
SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
EMPTY_SHARE = 0.1  # captions replaced by the empty prompt
SHAPES = (300, 800)  # timesteps in which objects take their shapes
STEADY = 8.0  # size of the constants before the last group normalisation; noise has size 1
WEIGHT_TURN = 20.0  # the loss weight grows as 1 / alpha-bar up to here, then as its root


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
        resnet_time_scale_shift="scale_shift",  # lets a timestep turn a branch down, see `start_at_identity`
    )


@torch.no_grad()
def start_at_identity(unet: UNet2DConditionModel, kept: Tensor) -> None:
    """Weights with which eps = z_t + what the last block's branch adds; the branch is scaled by sqrt(alpha-bar).

    At high noise eps is z_t to a few percent, and the little that is not carries layout, palette and the caption's
    words; a network that must learn the copy first spends its budget on that. As silu(a) - silu(-a) = a, channels in
    pairs of opposite sign carry z_t past the last activation. The last group normalisation would divide each picture
    by the size of its own noise, an error that the first sampling steps multiply by 40; large constants in its groups
    (which its bias takes away again) keep it from that. kept: alpha-bar (T,).
    """
    last, width = unet.up_blocks[-1].resnets[-1], unet.config.block_out_channels[0]
    start = last.conv_shortcut.in_channels - width  # the first convolution's output comes in last
    steady = STEADY * torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(width // 4)
    for part in (last.conv_shortcut, unet.conv_out):
        part.weight.zero_()
        part.bias.zero_()
    unet.conv_in.weight[:CHANNELS], unet.conv_in.bias[:CHANNELS] = 0, 0
    last.conv_shortcut.bias.copy_(steady)
    unet.conv_norm_out.weight.fill_((1 + STEADY**2) ** 0.5)
    unet.conv_norm_out.bias.copy_(-steady)
    for k in range(CHANNELS):
        unet.conv_in.weight[k, k, 1, 1] = 1
        for row, sign in ((2 * k, 1), (2 * k + 1, -1)):
            last.conv_shortcut.weight[row, start + k, 0, 0] = sign
            unet.conv_out.weight[k, row, 1, 1] = sign
    for module in unet.modules():
        if hasattr(module, "conv2"):
            module.conv2.weight.mul_(0.05 if module is last else 0.2)
            module.conv2.bias.zero_()
    _gate(unet, last, kept.sqrt())


def _gate(unet: UNet2DConditionModel, block: nn.Module, size: Tensor) -> None:
    """Set the block's time projection so that its branch is scaled by size[t] (T,), by least squares."""
    times = nn.functional.silu(unet.time_embedding(unet.time_proj(torch.arange(len(size)))))
    known = torch.cat([times, torch.ones(len(times), 1)], 1).double()
    ridge = 1e-3 * torch.eye(known.shape[1], dtype=torch.float64)
    found = torch.linalg.solve(known.T @ known + ridge, known.T @ (size.double() - 1)).float()
    width = block.out_channels  # rows: scale, then shift
    block.time_emb_proj.weight.zero_()
    block.time_emb_proj.bias.zero_()
    block.time_emb_proj.weight[:width], block.time_emb_proj.bias[:width] = found[:-1], found[-1]


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
    """alpha-bar of the scaled-linear schedule and the weight of an epsilon loss at each timestep, mean 1.

    An error of eps counts 1 / alpha-bar times as an error of v (Salimans & Ho 2022). A plain epsilon loss hardly counts
    errors at high noise, where layout, palette and the caption's words are decided.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", DDPMScheduler(**SCHEDULE).alphas_cumprod)  # (1000,)

    def mix(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        kept = self.kept[t][:, None, None, None]
        return kept.sqrt() * z + (1 - kept).sqrt() * eps

    def weight(self, t: Tensor) -> Tensor:
        weight = torch.minimum(1 / self.kept, (WEIGHT_TURN / self.kept).sqrt())
        return (weight / weight.mean())[t]


def timesteps(batch: int, draw: torch.Generator) -> Tensor:
    """(batch,), a quarter uniform, the others where objects take their shapes; the rest is learnt sooner."""
    anywhere = batch // 4
    uniform = torch.randint(0, 1000, (anywhere,), generator=draw)
    return torch.cat([uniform, torch.randint(*SHAPES, (batch - anywhere,), generator=draw)])


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
    start: Path | None = None,
) -> None:
    """latents: means (N, 16, 16, 16); tokens (N, 5, 32). The result is the checkpoint's averages.

    `start`: a pipeline's folder whose denoiser and text encoder are trained on, instead of new ones.
    """
    torch.manual_seed(seed)
    unet, text, noise = build(), build_text(vocabulary), Noise().to(device)
    unet.set_attn_processor(AttnProcessor())  # on CPU several times faster backward than the fused kernel
    if start is None:
        start_from(text, clip_state)
        start_at_identity(unet, noise.kept.cpu())
    else:
        unet.load_state_dict(UNet2DConditionModel.from_pretrained(start / "unet").state_dict())
        text.load_state_dict(CLIPTextModel.from_pretrained(start / "text_encoder").state_dict())
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
        eps, t = torch.randn(z.shape, generator=draw).to(device), timesteps(batch, draw).to(device)
        z_t = noise.mix(z.to(device), eps, t).contiguous(memory_format=torch.channels_last)
        with fast_precision(device):
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
