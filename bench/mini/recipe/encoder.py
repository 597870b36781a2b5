"""Stage `encoder`: an image encoder for the frozen denoiser, trained by the trainer and the method of the benchmark.

Settings are those of conf/method/ip_adapter_train.yaml (dropout, tokens, losses); steps, batch and rate are set here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import save
from torch import Tensor

from bench.adapters.bank import Bank
from bench.backbones.stable_diffusion import StableDiffusion
from bench.contracts import Backbone, Dataset, Example, Text, TrainingData
from bench.files import atomic_write
from bench.mini.recipe.training import Progress
from bench.mini.recipe.world import World
from bench.paths import CONF
from bench.seeding import generator
from bench.settings import build
from bench.training.trainer import Job, steps_left
from bench.training.trainer import train as trained

SETTINGS = CONF / "method" / "ip_adapter_train.yaml"
FILE = "ip_adapter.safetensors"
LR, BATCH, WARMUP = 5e-4, 32, 100
ENCODED_AT_ONCE = 250


class WorldData(TrainingData):
    """The world's pictures as references: latents computed once, captions embedded as they are drawn."""

    def __init__(self, world: World, latents: Tensor, backbone: Backbone, batch: int):
        self.world, self.latents, self.backbone, self.batch_size = world, latents, backbone, batch
        self.dataset = _dataset()

    def draw(self, roles: Sequence[str], rng: torch.Generator) -> tuple[list[Tensor], list[Example]]:
        """Every role draws the same: pictures of all kinds, each with one of its captions."""
        rows = torch.randint(len(self.latents), (self.batch_size,), generator=rng)
        which = torch.randint(len(self.world.captions[0]), (self.batch_size,), generator=rng).tolist()
        examples = [self._example(row, k) for row, k in zip(rows.tolist(), which, strict=True)]
        return [self.latents[rows].float().to(self.backbone.device)] * len(roles), examples

    def _example(self, row: int, k: int) -> Example:
        image = np.ascontiguousarray(self.world.images[row].transpose(2, 0, 1))
        return Example(image, self.world.captions[row][k], "picture")

    def text(self, prompts: Sequence[str]) -> Text:
        return self.backbone.embed(prompts)


def _dataset() -> Dataset:
    return Dataset(
        name="world", version=1, licence="Apache-2.0", source="bench.mini.recipe.world", style_words=None,
        noun="picture", pairs=(), references=(), auxiliary=(), prompts=(), seeds=(), controls=(), reference_set=None,
        oracle=None, content_hash="",
    )  # fmt: skip


def latents_of(world: World, backbone: Backbone) -> Tensor:
    """Latent means (N, C, H, W) of all pictures in half precision, by the backbone's own autoencoder."""
    count = len(world.images)
    progress = Progress("encoder latents", -(-count // ENCODED_AT_ONCE))
    parts = []
    for start in range(0, count, ENCODED_AT_ONCE):
        images = np.ascontiguousarray(world.images[start : start + ENCODED_AT_ONCE].transpose(0, 3, 1, 2))
        parts.append(backbone.encode(torch.from_numpy(images))[0].half().cpu())
        progress.tick()
    return torch.cat(parts)


def backbone_of(folder: Path, device: str) -> StableDiffusion:
    """The frozen denoiser; on a CPU with attention written out, whose backward pass is quicker there."""
    backbone = StableDiffusion(str(folder), 64, device=device, name="mini")
    if backbone.device.type == "cpu":
        backbone.network.set_attn_processor(AttnProcessor())
    return backbone


def train(
    world: World, backbone: Backbone, clip: Path, work: Path, steps: int, seed: int, batch: int = BATCH
) -> dict[str, Tensor]:
    """The adapter's weights in half precision under the names of the public format. A killed training goes on."""
    settings = yaml.safe_load(SETTINGS.read_text())
    settings = {
        key: value for key, value in settings.items() if key not in ("name", "title", "version", "strength_sweep")
    }
    settings["encoder"]["path"] = str(clip.resolve())
    method = build(settings)
    recipe = replace(method.recipe, steps=steps, lr=LR, batch_size=batch, schedule="cosine", warmup_steps=WARMUP)
    data = WorldData(world, latents_of(world, backbone), backbone, batch)
    bank = Bank(backbone, method.adapters(data.dataset), [generator("adapters", seed)])
    job = Job(0, method, data, recipe, seed, work / "encoder.checkpoint.safetensors")
    progress, smooth = Progress("encoder", steps, steps - steps_left(job)), None
    for step in trained(bank, [job]):
        if step.error:
            raise step.error
        smooth = step.losses[-1] if smooth is None else 0.98 * smooth + 0.02 * step.losses[-1]
        progress.tick(f"loss {smooth:.4f}")
    bank.close()
    return {key: value.half() for key, value in bank.state("image", 0).items()}


def write(state: dict[str, Tensor], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / FILE, save(state))
