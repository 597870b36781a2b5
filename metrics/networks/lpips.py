"""LPIPS: the trunks of Zhang et al. 2018 with their learned heads."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from bench.contracts import BenchError
from metrics.networks.network import (
    SCALE,
    SHIFT,
    TAPS,
    PerceptualNetwork,
    best_device,
    load_strictly,
    read_state,
    resize_clean,
    weights_path,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class LpipsNet(PerceptualNetwork):
    """LPIPS v0.1 on AlexNet (Zhang et al. 2018): heads from the lpips wheel, trunk from torchvision's file.

    Values grow with the resolution, so every image is brought to `size` by `resize_clean` first.
    """

    weights: str = "lpips_alex_trunk"
    name: str = "lpips-alex-256"
    size: int = 256
    packages: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "lpips")

    def files(self) -> tuple[Path, ...]:
        return (weights_path(self.weights), _lpips_heads())

    @property
    def recipe(self) -> str:
        return f"LPIPS v0.1 alex, float bicubic antialias clamp {self.size}, [-1, 1]"

    def maps(self, images: Tensor) -> list[Tensor]:
        trunk, _ = _load_lpips(self)
        x = resize_clean(images, self.size) / 127.5 - 1
        if not (x.min() >= -1 and x.max() <= 1):
            raise ValueError(f"LPIPS reads [-1, 1], got [{x.min():.3f}, {x.max():.3f}]")
        x = (x - x.new_tensor(SHIFT)[:, None, None]) / x.new_tensor(SCALE)[:, None, None]
        found = []
        for number, layer in enumerate(trunk):
            x = layer(x)
            if number in TAPS:
                found.append(unit_length(x))
        return found

    def heads(self) -> list[Tensor]:
        return _load_lpips(self)[1]


def unit_length(maps: Tensor) -> Tensor:
    """Channels of (B, C, h, w) scaled to length one, as lpips.normalize_tensor does it."""
    return maps / (maps.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def _lpips_heads() -> Path:
    """The linear heads inside the lpips wheel, found without importing it."""
    from importlib.util import find_spec

    spec = find_spec("lpips")
    if spec is None or spec.origin is None:
        raise BenchError("LPIPS was requested, but the package lpips is not installed; type: uv pip install lpips.")
    return Path(spec.origin).parent / "weights" / "v0.1" / "alex.pth"


@functools.cache
def _load_lpips(network: LpipsNet) -> tuple[nn.Sequential, list[Tensor]]:
    import torch
    from torchvision.models import alexnet

    trunk_file, heads_file = network.files()
    with torch.device("meta"):
        trunk = alexnet(weights=None).features[: TAPS[-1] + 1]
    state = read_state(network, trunk_file)
    features = {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}
    load_strictly(trunk, features, network)
    lin = read_state(network, heads_file)
    device = best_device(network.device)
    heads = [lin[f"lin{layer}.model.1.weight"].flatten().to(device) for layer in range(len(TAPS))]
    return trunk.eval().requires_grad_(False).to(device), heads
