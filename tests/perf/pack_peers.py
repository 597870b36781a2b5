"""What the packs are timed against: one cell at a time, as the scripts that people run today do it.

Training: the update of diffusers' examples/dreambooth/train_dreambooth_lora.py: PEFT adapters, images and prompts
encoded in every step, batch 1 with one prior image, AdamW, clipping. Sampling: the authors' pipeline of Pair
Customization (modules/StableDiffusionXLPipelineLoraGuidance.py): two UNet calls for every image and step, the empty and
the content prompt in one batch with the adapter's weight at 0, then the style prompt with it at 1.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from bench.contracts import Backbone

ADAPTER = "style"


def autocast(backbone: Backbone) -> AbstractContextManager:
    half = backbone.dtype.itemsize < 4
    return torch.autocast(backbone.device.type, backbone.dtype) if half else nullcontext()


def with_adapters(backbone: Any, rank: int, where: str) -> Any:
    """A copy of the UNet with PEFT's adapters at the layers that ours have, in float32."""
    from peft import LoraConfig

    unet = copy.deepcopy(backbone.network)
    places = list(backbone.sites(where))
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=places)
    unet.add_adapter(config, adapter_name=ADAPTER)
    for weight in trained(unet):
        weight.data = weight.data.float()
    return unet


def trained(unet: Any) -> list[Tensor]:
    return [weight for weight in unet.parameters() if weight.requires_grad]


def updates(backbone: Any, unet: Any, images: Tensor, prompts: Sequence[str]) -> Iterator[float]:
    """One update of the script at each step: images uint8 (2, 3, P, P) and prompts, the instance's and the class's."""
    rng = torch.Generator(backbone.device).manual_seed(0)
    optimizer = torch.optim.AdamW(trained(unet), lr=1e-4, weight_decay=1e-2)
    while True:
        mean, std = backbone.encode(images)
        z = mean + std * torch.randn(mean.shape, generator=rng, device=mean.device)
        eps = torch.randn(z.shape, generator=rng, device=z.device)
        t = torch.randint(backbone.train_timesteps, (len(z),), generator=rng, device=z.device)
        with torch.no_grad():
            text = backbone.embed(prompts)
        with autocast(backbone):
            out = predict(unet, backbone, backbone.noisy(z, eps, t), t, text)
        instance, prior = (out.float() - backbone.target(z, eps, t).float()).chunk(2)
        loss = mse_loss(instance, torch.zeros_like(instance)) + mse_loss(prior, torch.zeros_like(prior))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained(unet), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def predict(unet: Any, backbone: Any, z: Tensor, t: Tensor, text: Any) -> Tensor:
    return unet(
        z.to(backbone.dtype), t, encoder_hidden_states=text.states, added_cond_kwargs=dict(text.extras) or None,
        return_dict=False,
    )[0]  # fmt: skip


@torch.no_grad()
def guided_image(backbone: Any, unet: Any, content: str, style: str, sampler: Any) -> Tensor:
    """One image (1, 3, P, P), style guidance 3 at every step."""
    plain, styled = backbone.embed(["", content]), backbone.embed([style])
    scheduler = backbone.scheduler(sampler.scheduler, sampler.steps)
    z = torch.randn(1, *backbone.latent_shape).to(backbone.device) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scaled, row = scheduler.scale_model_input(z, t), t[None].to(backbone.device)
        with autocast(backbone):
            unet.set_adapters(ADAPTER, 0.0)
            empty, asked = predict(unet, backbone, scaled.repeat(2, 1, 1, 1), row.repeat(2), plain).chunk(2)
            unet.set_adapters(ADAPTER, 1.0)
            own = predict(unet, backbone, scaled, row, styled)
        guided = empty + sampler.cfg * (asked - empty) + 3.0 * (own - asked)
        z = scheduler.step(guided.float(), t, z).prev_sample
    return backbone.decode(z)
