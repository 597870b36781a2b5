"""Stage `flow`: a transformer that predicts the flow eps - z, on the latents, captions and text tower of `mini`.

The path is z_s = (1 - s) z + s eps (Liu et al. 2022, arXiv 2209.03003); noise levels are logit-normal with a quarter
uniform (Esser et al. 2024, arXiv 2403.03206, section 3.1). The text tower is the denoiser's and is not trained here:
`mini` and `mini_flow` read captions alike, so a method that behaves differently on them does so because of the network.
Checkpoints hold the tower, so a training that goes on keeps the one it began with.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel

from bench.backbones.flux1 import flow
from bench.mini.recipe import unet
from bench.mini.recipe.training import Fit, Run, fast_precision, warm_hold_cool
from bench.mini.recipe.vae import CHANNELS

WIDTH, HEADS = 192, 6
TIMES = (0.0, 1.0)  # mean and spread of logit(s)
LR, BATCH = 1e-3, 32
GPU_LR, GPU_BATCH = 2e-3, 256
GATES, OUTPUTS = (".norm.linear", ".norm1.linear", ".norm1_context.linear"), ("norm_out.linear", "proj_out")


def build() -> FluxTransformer2DModel:
    """FLUX.1's classes on 64 tokens of 2 x 2 latents: one block with two streams, two with one. 2.7 M parameters."""
    return FluxTransformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=unet.TEXT_WIDTH,
        pooled_projection_dim=unet.TEXT_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )


def fresh(seed: int) -> FluxTransformer2DModel:
    """Random weights; every block begins as the identity (adaLN-Zero: Peebles & Xie 2023, arXiv 2212.09748)."""
    torch.manual_seed(seed)
    network = build()
    for name, module in network.named_modules():
        if name in OUTPUTS or name.endswith(GATES):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return network


def train(
    latents: Tensor, tokens: Tensor, text: CLIPTextModel, run: Run, state: Path | None, compiled: bool = False
) -> None:
    """latents: means (N, 20, 16, 16); tokens (N, captions, 32). The result is the checkpoint's averages.

    `state`: a checkpoint to start from where the run's folder has none. Raises OutOfTime after `run.until`.
    """
    device, gpu = run.device, torch.device(run.device).type != "cpu"
    batch = GPU_BATCH if gpu else BATCH
    modules: dict[str, nn.Module] = {"transformer": fresh(run.seed).to(device), "text": text.to(device)}
    fit = Fit("flow", run.folder, modules, run.steps, lr=GPU_LR if gpu else LR, schedule=warm_hold_cool,
              most_averaged=0.9995, until=run.until, state=state)  # fmt: skip
    network = torch.compile(modules["transformer"]) if compiled else modules["transformer"]
    drawn = unet.Batches(latents, tokens, text.config.vocab_size, run.seed, batch)
    share = unet.channel_weights(latents).to(device)

    def loss_at(step: int) -> Tensor:
        z, ids, draw = drawn.at(step)
        eps, s = torch.randn(z.shape, generator=draw).to(device), unet.times(batch, draw, *TIMES).to(device)
        z, level = z.to(device), s[:, None, None, None]
        with fast_precision(device), sdpa_kernel(SDPBackend.MATH):  # on CPU the fused kernel's backward is slower
            with torch.no_grad():
                read = text(ids.to(device))
            found = flow(network, (1 - level) * z + level * eps, s, read.last_hidden_state, read.pooler_output)
        return (share * (found.float() - (eps - z)) ** 2).mean()

    fit.run(loss_at)
