"""What flow-matching transformers share: Stable Diffusion 3.5, FLUX.1 and FLUX.2-klein are subclasses.

Shapes: B rows, C latent channels, H W latent size, L text tokens, D text width.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from bench.backbones.flow_schedule import FlowSchedule, noise_level
from bench.backbones.latent_diffusion import LatentDiffusion
from bench.backbones.transformer_sites import transformer_sites
from bench.choices import TimeSampling
from bench.contracts import BenchError, Impossible, Text

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class FlowTransformer(LatentDiffusion):
    """A frozen transformer with joint attention of image and text tokens, trained by flow matching.

    `time_sampling` is how training draws timesteps, `train_shift` the mu of a dynamic shift that training uses, too.
    `text_length` is the number of tokens that the language model reads. With `offload_text_encoders` the text encoders
    are on the device only while they read prompts.
    """

    part: ClassVar[str] = "transformer"
    rollout_scheduler: ClassVar[str] = "euler"
    network_name: ClassVar[str]  # diffusers' class of the network
    published: ClassVar[re.Pattern[str]]  # layers of diffusers' LoRA script
    patch: ClassVar[int] = 2  # latents per side of an image token
    even: ClassVar[bool] = True  # noise levels of its pipeline are evenly spaced from 1 to 1 / steps
    draws_latents: ClassVar[bool] = True  # from the posterior, as its scripts do in training
    schedule: FlowSchedule

    def __init__(
        self,
        path: str,
        resolution: int,
        time_sampling: TimeSampling = "uniform",
        train_shift: float | None = None,
        text_length: int = 512,
        offload_text_encoders: bool = False,
        **options: Any,
    ):
        self.time_sampling, self.train_shift, self.text_length = time_sampling, train_shift, text_length
        self.offload_text_encoders = offload_text_encoders
        super().__init__(path, resolution, **options)

    # --- what subclasses say

    @abstractmethod
    def _read(self, prompts: Sequence[str]) -> Text: ...

    @abstractmethod
    def _forward(self, z: Tensor, t: Tensor, text: Text) -> Tensor:
        """The network's prediction (B, C, H, W)."""

    @abstractmethod
    def _mu(self, steps: int) -> float:
        """The dynamic shift of a pipeline at this resolution."""

    # --- prompts

    def embed(self, prompts: Sequence[str]) -> Text:
        with self._text_encoders_on_device():
            return self._read(prompts)

    @contextmanager
    def _text_encoders_on_device(self) -> Iterator[None]:
        if self.offload_text_encoders:
            super()._move_text_encoders(self.device)
        try:
            yield
        finally:
            if self.offload_text_encoders:
                super()._move_text_encoders("cpu")

    def _move_text_encoders(self, device: torch.device | str) -> None:
        """Those that are to be offloaded stay on the CPU when the backbone is loaded."""
        if not self.offload_text_encoders:
            super()._move_text_encoders(device)

    # --- noise

    def draw_timesteps(self, n: int, rng: torch.Generator) -> Tensor:
        return self.schedule.draw(n, rng)

    def timestep(self, ddpm: float) -> float:
        return noise_level(ddpm) * self.train_timesteps

    def scheduler(self, name: str, steps: int) -> Any:
        return self.schedule.scheduler(name, steps, self._mu(steps), self.even)

    @property
    def image_tokens(self) -> int:
        _, height, width = self.latent_shape
        return height * width // self.patch**2

    def conventions(self) -> Mapping[str, str]:
        latents = "drawn from the posterior" if self.draws_latents else "the mode of the posterior"
        return {**self.schedule.words(), "latents": latents}

    # --- the network

    def predict(self, z: Tensor, t: Tensor, text: Text) -> Tensor:
        """The transformer's prediction (B, C, H, W) for latents at timesteps t (B,), in the precision of z."""
        with self._autocast():
            return self._forward(z.to(self.device, self.dtype), t.to(self.device), text).to(z.dtype)

    def sites(self, where: str) -> dict[str, nn.Module]:
        """Linear layers of the blocks that carry adapters, by name; see `transformer_sites`."""
        return transformer_sites(self.network, where, self.published)

    def cross_attention(self) -> Mapping[str, nn.Module]:
        raise Impossible(
            f"{self.name} has joint attention, where a prompt cannot show an image through cross-attention; "
            "choose another method, or backbone=sd15 or sdxl."
        )

    # --- loading

    def _network_class(self) -> type[Any]:
        import diffusers

        return getattr(diffusers, self.network_name)

    def _noise(self, config: dict[str, Any]) -> FlowSchedule:
        return FlowSchedule(config, self.time_sampling, self.train_shift)

    def _check(self, config: dict[str, Any]) -> None:
        """A folder of another model family is reported before its weights are read."""
        if config.get("_class_name", self.network_name) != self.network_name:
            raise BenchError(
                f"{self.folder} holds a {config['_class_name']}, but {type(self).__name__} needs a "
                f"{self.network_name}; choose the backbone of that model."
            )

    def _check_sizes(self) -> None:
        side = self.vae.factor * self.patch
        if self.resolution < side or self.resolution % side:
            raise BenchError(
                f"The resolution {self.resolution} was requested; {self.name} needs a multiple of {side}, "
                f"e.g. backbone.resolution={max(1, round(self.resolution / side)) * side}."
            )

    def _pipeline_options(self) -> dict[str, Any]:
        return {}


def packed(z: Tensor) -> Tensor:
    """(B, C, H, W) -> tokens (B, H W / 4, 4 C) of 2 x 2 latents, channels outermost in a token."""
    n, c, h, w = z.shape
    patches = z.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(n, h * w // 4, 4 * c)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `packed` for latents of height x width."""
    n, _, c = tokens.shape
    patches = tokens.reshape(n, height // 2, width // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(n, c // 4, height, width)


def linear_shift(tokens: int, config: Mapping[str, Any], most: float) -> float:
    """mu of a dynamic shift, linear in the number of image tokens; `most` is the default of the pipeline."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base = config.get("base_shift", 0.5)
    slope = (config.get("max_shift", most) - base) / (high - low)
    return base + slope * (tokens - low)
