"""What a method draws from while it trains: latents of the dataset's images and embedded prompts, computed once.

Shapes: n images of a role, B rows of a draw, C latent channels, H W latent size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.backbones.embedding import embedded
from bench.contracts import Backbone, BenchError, Dataset, Example, Recipe, Text, TrainingData


class Latents(TrainingData):
    """Draws of latents from cached posteriors.

    `resample`: draw a fresh latent from the posterior at each step (as the reference scripts do); otherwise the
    posterior mean is used, the same at each step. Random crops cannot be cached and are encoded when drawn.
    `noise_offset` and `min_snr` are options of `TrainerSettings`.
    """

    def __init__(
        self,
        dataset: Dataset,
        backbone: Backbone,
        recipe: Recipe,
        prior: Sequence[Example] = (),
        resample: bool = True,
        noise_offset: float = 0.0,
        min_snr: float | None = None,
    ):
        self.dataset, self.backbone, self.recipe, self.resample = dataset, backbone, recipe, resample
        self.batch_size, self.noise_offset, self.min_snr = recipe.batch_size, noise_offset, min_snr
        self.used: set[str] = set()  # options that a step of the method has used
        self.examples: dict[str, Sequence[Example]] = {
            "content": [pair.content for pair in dataset.pairs],
            "style": [pair.style for pair in dataset.pairs],
            "references": dataset.references,
            "auxiliary": dataset.auxiliary,
            "prior": prior,
        }
        self._posteriors: dict[tuple[str, int, bool], tuple[Tensor, Tensor]] = {}

    def draw(self, roles: Sequence[str], rng: torch.Generator) -> tuple[list[Tensor], list[Example]]:
        count = len(self.examples[roles[0]])
        if not count:
            raise BenchError(f"Dataset {self.dataset.name!r} has no images in the role {roles[0]!r}.")
        index = torch.randint(count, (self.batch_size,), generator=rng).tolist()
        views = [self._view(rng) for _ in index]
        latents = [
            torch.cat([self._latent(role, i, view, rng) for i, view in zip(index, views, strict=True)])
            for role in roles
        ]
        return latents, [self.examples[roles[0]][i] for i in index]

    def text(self, prompts: Sequence[str]) -> Text:
        return embedded(self.backbone, prompts)

    def noise(self, like: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        self.used.add("noise_offset")
        return super().noise(like, rng)

    def loss(self, out: Tensor, target: Tensor, t: Tensor) -> Tensor:
        self.used.add("min_snr")
        if self.min_snr is None:
            return super().loss(out, target, t)
        weights = self.backbone.min_snr_weights(t, self.min_snr).to(out)
        return (weights * F.mse_loss(out, target, reduction="none").flatten(1).mean(1)).mean()

    # --- one latent

    def _view(self, rng: torch.Generator) -> tuple[bool, tuple[float, float, float] | None]:
        """Mirrored or not, and a crop (side, top, left) as fractions; drawn once for all roles of a draw."""
        mirrored = bool(torch.rand((), generator=rng) < self.recipe.flip_probability) if self.recipe.flip else False
        if self.recipe.crop >= 1:
            return mirrored, None
        side, top, left = torch.rand(3, generator=rng).tolist()
        side = self.recipe.crop + side * (1 - self.recipe.crop)
        return mirrored, (side, top * (1 - side), left * (1 - side))

    def _latent(self, role: str, i: int, view: tuple, rng: torch.Generator) -> Tensor:
        mirrored, crop = view
        key = (role, i, mirrored)
        if crop is not None:
            mean, std = self._encode(role, i, mirrored, crop)
        elif key in self._posteriors:
            mean, std = self._posteriors[key]
        else:
            mean, std = self._posteriors[key] = self._encode(role, i, mirrored, None)
        if not self.resample:
            return mean
        return mean + std * torch.randn(mean.shape, generator=rng, dtype=torch.float32).to(mean)

    def _encode(self, role: str, i: int, mirrored: bool, crop: tuple | None) -> tuple[Tensor, Tensor]:
        image = torch.from_numpy(np.ascontiguousarray(self.examples[role][i].image))
        if mirrored:
            image = image.flip(-1)
        return self.backbone.encode((image if crop is None else _crop(image, *crop))[None])


def _crop(image: Tensor, side: float, top: float, left: float) -> Tensor:
    """A square crop of a uint8 (3, P, P) image, resized back to P."""
    size = image.shape[-1]
    length, y, x = (max(1, round(value * size)) if value else 0 for value in (side, top, left))
    patch = image[:, y : y + length, x : x + length].float()[None]
    resized = F.interpolate(patch, size=(size, size), mode="bicubic", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)[0]
