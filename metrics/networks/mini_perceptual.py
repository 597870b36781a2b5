"""The perceptual trunk that ships with the backbone `mini`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.data.files import whole
from metrics.networks.network import PerceptualNetwork, best_device, misfit, resize_clean, weights_path

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MiniPerceptual(PerceptualNetwork):
    """The LPIPS-like trunk that ships with `mini`: unrelated scenes lie about 1 apart; no LPIPS number."""

    weights: str = "bench/mini/weights/perceptual"  # a folder: config.json and model.safetensors
    name: str = "mini-perceptual"
    size: int = 64

    def files(self) -> tuple[Path, ...]:
        return (whole(weights_path(self.weights) / "model.safetensors", "make it again (see its recipe)."),)

    @property
    def recipe(self) -> str:
        return f"mini perceptual trunk 1, float bicubic antialias clamp {self.size}, [-1, 1]"

    def maps(self, images: Tensor) -> list[Tensor]:
        return _load_mini(self).features(resize_clean(images, self.size) / 127.5 - 1)

    def heads(self) -> list[Tensor]:
        return [weight.clamp(min=0) for weight in _load_mini(self).weights]


@functools.cache
def _load_mini(network: MiniPerceptual) -> Any:
    import torch
    from safetensors import SafetensorError

    from bench.mini.perceptual import PerceptualTrunk

    try:
        with torch.random.fork_rng(devices=[]):
            trunk = PerceptualTrunk.load(weights_path(network.weights))
    except (RuntimeError, SafetensorError, OSError, ValueError, KeyError) as error:
        raise misfit(network, error) from error
    return trunk.to(best_device(network.device))
