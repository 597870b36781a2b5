"""Draws images: the guided rows of many prompts, and of many cells, in one forward pass per denoising step.

Shapes: N images, C latent channels, H W latent size, P pixels per side.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.adapters.bank import Bank
from bench.backbones.embedding import embedded
from bench.choices import Scheduler
from bench.contracts import Ask, Backbone, BenchError, Dataset, Method, Reference, Text, plain_guidance
from bench.sampling.ddim_inversion import check_latents
from bench.sampling.references import reference_latents, with_reference
from bench.seeding import EVALUATION_SEED_OFFSET, generator

Guide = Generator[Ask, Any, Tensor]
IMAGES_KEPT = 512  # latents at the start of the methods; 256 KiB each on SDXL


@dataclass(frozen=True)
class Sampler:
    """How images are drawn; the same for all methods of an experiment."""

    scheduler: Scheduler = "ddim"
    steps: int = 25
    cfg: float = 5.0  # classifier-free guidance scale
    batch: int = 16  # images per chunk
    start_t: float | None = None  # overrides every method's late start

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise BenchError(
                f"A sampler of {self.steps} steps and {self.batch} images at once was requested; type at least 1."
            )


@dataclass(frozen=True)
class Shot:
    """One image to draw. Its noise depends on the prompt's place and the evaluation seed alone."""

    index: int  # place of the prompt in the dataset
    prompt: str
    seed: int

    def noise(self, shape: tuple[int, int, int]) -> Tensor:
        rng = generator("sample", EVALUATION_SEED_OFFSET + self.seed, self.index)
        return torch.randn(shape, generator=rng, dtype=torch.float32)


@dataclass(frozen=True)
class Request:
    """Images of one cell at one strength."""

    cell: int
    method: Method
    dataset: Dataset
    shots: Sequence[Shot]
    strength: float


class Untouched(Method):
    """The backbone as it is: the baseline of every comparison."""

    strength_knob = "none"

    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        return {"content": prompt, "negative": ""}

    def guide(self, z, t, texts, cfg, strength):
        return (yield from plain_guidance(z, t, texts, cfg))


class Plain(Method):
    """A method as it guides and at its strength, but with every text but the negative one as it is requested."""

    strength_knob = "the method's own"

    def __init__(self, method: Method):
        self.method, self.start_t, self.strength = method, method.start_t, method.strength

    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        own = self.method.prompts(prompt, dataset)
        return {role: text if role == "negative" else prompt for role, text in own.items()}

    def shown(self, dataset: Dataset) -> Mapping[str, Mapping[str, Tensor]]:
        return self.method.shown(dataset)

    def reference(self, dataset: Dataset) -> Reference | None:
        return self.method.reference(dataset)

    def guide(self, z, t, texts, cfg, strength):
        return (yield from self.method.guide(z, t, texts, cfg, strength))


def shots(dataset: Dataset) -> list[Shot]:
    """All evaluation images of a dataset: every prompt with every evaluation seed, or with its own seeds."""
    return [Shot(i, prompt, seed) for i, prompt in enumerate(dataset.prompts) for seed in dataset.seeds_of(i)]


def sample(bank: Bank, requests: Sequence[Request], sampler: Sampler) -> Iterator[list[np.ndarray]]:
    """Yield, chunk by chunk, one uint8 (n, 3, P, P) array per request. All requests have the same number of shots.

    With several requests a chunk holds the same places of each, and all their rows share one forward pass.
    """
    size = max(1, sampler.batch // len(requests))
    for first in range(0, len(requests[0].shots), size):
        parts = [(request, request.shots[first : first + size]) for request in requests]
        yield _chunk(bank, parts, sampler)


@torch.no_grad()
def _chunk(bank: Bank, parts: Sequence[tuple[Request, Sequence[Shot]]], sampler: Sampler) -> list[np.ndarray]:
    z, scheduler, steps = _begun(bank, parts, sampler)
    z = denoise(bank, parts, sampler, scheduler, z, steps)
    return [image.cpu().numpy() for image in _decode(bank.backbone, z).split([len(chosen) for _, chosen in parts])]


def _begun(
    bank: Bank, parts: Sequence[tuple[Request, Sequence[Shot]]], sampler: Sampler
) -> tuple[Tensor, Any, Sequence[Any]]:
    """Latents where the first of the methods starts, the scheduler that has come there, and the timesteps left.

    Before their start all methods draw what the backbone draws, so the last latents are kept with the backbone for
    the cells and strengths that follow in this process.
    """
    backbone = bank.backbone
    scheduler = backbone.scheduler(sampler.scheduler, sampler.steps)
    start = max(_start(backbone, request.method, sampler) for request, _ in parts)
    plain = sum(float(t) > start for t in scheduler.timesteps)
    rows = [(shot, req.method.prompts(shot.prompt, req.dataset)) for req, chosen in parts for shot in chosen]
    key = (sampler, plain, *((shot, prompts["content"], prompts["negative"]) for shot, prompts in rows))
    kept: dict[Any, tuple[Tensor, Any]] = vars(backbone).setdefault("_begun", {})
    if key not in kept:
        noise = torch.stack([shot.noise(backbone.latent_shape) for shot, _ in rows])
        z = noise.to(backbone.device) * scheduler.init_noise_sigma
        z = z.double() if backbone.dtype == torch.float64 else z
        z = denoise(bank, parts, sampler, scheduler, z, scheduler.timesteps[:plain])
        if not plain:
            return z, scheduler, scheduler.timesteps
        kept[key] = z, scheduler
        if len(kept) * len(rows) > IMAGES_KEPT:
            del kept[next(iter(kept))]
    z, scheduler = kept[key]
    return z, deepcopy(scheduler), scheduler.timesteps[plain:]  # some schedulers remember earlier steps


def denoise(
    bank: Bank, parts: Sequence[tuple[Request, Sequence[Shot]]], sampler: Sampler, scheduler: Any, z: Tensor, steps: Any
) -> Tensor:
    """Latents (N, C, H, W), the rows of all parts in order, through some or all timesteps of the scheduler."""
    texts = [_texts(bank.backbone, request, chosen) for request, chosen in parts]
    counts = [len(chosen) for _, chosen in parts]
    shown = [reference_latents(bank, request.method, request.dataset, sampler.steps) for request, _ in parts]
    for k, t in enumerate(steps):
        scaled = scheduler.scale_model_input(z, t)
        guides = [
            (request.cell, _guide(bank.backbone, request, part, t, with_reference(text, latents, t), sampler))
            for (request, _), part, text, latents in zip(parts, scaled.split(counts), texts, shown, strict=True)
        ]
        z = scheduler.step(torch.cat(resolve(bank, guides)), t, z).prev_sample
        check_latents(z, f"step {k + 1} of {len(steps)}")
    return z


def _decode(backbone, z: Tensor, batch: int = 16) -> Tensor:
    return torch.cat([backbone.decode(part) for part in z.split(batch)])


def _texts(backbone, request: Request, chosen: Sequence[Shot]) -> dict[str, Text]:
    """Texts by role. An empty negative prompt is an absent one, as it is to diffusers; in other roles it is encoded."""
    roles = [request.method.prompts(shot.prompt, request.dataset) for shot in chosen]
    shown = request.method.shown(request.dataset)
    texts = {
        role: embedded(backbone, [prompts[role] or (None if role == "negative" else "") for prompts in roles])
        for role in roles[0]
    }
    return {role: backbone.drawing(text.showing(shown.get(role, {}))) for role, text in texts.items()}


def _guide(
    backbone: Backbone, request: Request, z: Tensor, t: Tensor, texts: Mapping[str, Text], sampler: Sampler
) -> Guide:
    rows = torch.full((len(z),), float(t), device=z.device)
    rows = rows.long() if float(t).is_integer() else rows
    if float(t) > _start(backbone, request.method, sampler):
        return plain_guidance(z, rows, texts, sampler.cfg)
    return request.method.guide(z, rows, texts, sampler.cfg, request.strength)


def _start(backbone: Backbone, method: Method, sampler: Sampler) -> float:
    """Timesteps above it are the backbone's alone."""
    return backbone.timestep(method.start_t if sampler.start_t is None else sampler.start_t)


def resolve(bank: Bank, guides: Sequence[tuple[int, Guide]]) -> list[Tensor]:
    """Run coroutines to their end, answering what all of them ask in one forward pass at a time."""
    results: dict[int, Tensor] = {}
    answers: dict[int, Tensor | None] = {i: None for i in range(len(guides))}
    while answers:
        asks: dict[int, Ask] = {}
        for i, answer in answers.items():
            try:
                asks[i] = guides[i][1].send(answer)
            except StopIteration as stop:
                results[i] = stop.value
        predictions = bank.answer([(guides[i][0], ask) for i, ask in asks.items()]) if asks else []
        answers = dict(zip(asks, predictions, strict=True))
    return [results[i] for i in range(len(guides))]
