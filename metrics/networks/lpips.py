"""LPIPS v0.1 (Zhang et al. 2018, arXiv 1801.03924) on AlexNet or VGG16, with the published heads.

Shapes: B images, C channels, P pixels per side.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from bench.contracts import BenchError
from metrics.networks.network import (
    Network,
    PerceptualNetwork,
    best_device,
    load_strictly,
    read_state,
    resize_clean,
    weights_path,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

# The last ReLU of each stage whose maps are compared.
TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # lpips.ScalingLayer


@dataclass(frozen=True, kw_only=True)
class LpipsNet(PerceptualNetwork):
    """Heads from the lpips package, trunk from torchvision's file or one that holds its `features.*` alone.

    Values grow with the resolution, so every image is brought to `size` by `resize_clean` first.
    """

    weights: str = "lpips_alex_trunk"
    name: str = "lpips-alex-256"
    size: int = 256
    trunk: str = "alex"  # alex | vgg
    packages: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "lpips")

    def __post_init__(self) -> None:
        if self.trunk not in TAPS:
            raise BenchError(f"LPIPS on {self.trunk!r} was requested; known trunks are {', '.join(TAPS)}.")

    def files(self) -> tuple[Path, ...]:
        return (weights_path(self.weights), _lpips_heads(self.trunk))

    @property
    def recipe(self) -> str:
        return f"LPIPS v0.1 {self.trunk}, float bicubic antialias clamp {self.size}, [-1, 1]"

    def maps(self, images: Tensor) -> list[Tensor]:
        trunk, _ = _load_lpips(self)
        x = resize_clean(images, self.size) / 127.5 - 1
        if not (x.min() >= -1 and x.max() <= 1):
            raise ValueError(f"LPIPS reads [-1, 1], got [{x.min():.3f}, {x.max():.3f}]")
        x = (x - x.new_tensor(SHIFT)[:, None, None]) / x.new_tensor(SCALE)[:, None, None]
        found = []
        for number, layer in enumerate(trunk):
            x = layer(x)
            if number in TAPS[self.trunk]:
                found.append(unit_length(x))
        return found

    def heads(self) -> list[Tensor]:
        return _load_lpips(self)[1]


def unit_length(maps: Tensor) -> Tensor:
    """Channels of (B, C, h, w) scaled to length one, as lpips.normalize_tensor does it."""
    return maps / (maps.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def _lpips_heads(trunk: str) -> Path:
    """The linear heads inside the lpips package, found without importing it."""
    from importlib.util import find_spec

    spec = find_spec("lpips")
    if spec is None or spec.origin is None:
        raise BenchError("LPIPS was requested, but the package lpips is not installed; type: uv pip install lpips.")
    return Path(spec.origin).parent / "weights" / "v0.1" / f"{trunk}.pth"


def torchvision_trunk(network: Network, file: Path, trunk: str) -> nn.Sequential:
    """The convolution layers of torchvision's AlexNet or VGG16 up to the last tap, frozen, on the network's device."""
    import torch
    from torchvision import models

    with torch.device("meta"):
        whole = models.alexnet(weights=None) if trunk == "alex" else models.vgg16(weights=None)
        layers = whole.features[: TAPS[trunk][-1] + 1]
    state = read_state(network, file)
    features = {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}
    load_strictly(layers, features, network)
    return layers.eval().requires_grad_(False).to(best_device(network.device))


@functools.cache
def _load_lpips(network: LpipsNet) -> tuple[nn.Sequential, list[Tensor]]:
    trunk_file, heads_file = network.files()
    lin = read_state(network, heads_file)
    trunk, device = torchvision_trunk(network, trunk_file, network.trunk), best_device(network.device)
    heads = [lin[f"lin{layer}.model.1.weight"].flatten().to(device) for layer in range(len(TAPS[network.trunk]))]
    return trunk, heads
