"""DINO, DINOv2 and DINOv3: the class token of a vision transformer, hosted on timm.

Preprocessing is the projects' evaluation transform: bicubic to 8/7 of the size, the centre (DINOv3: the whole image),
ImageNet's mean and standard deviation. Position grids of another size (DINOv2 was trained at 518 pixels) are resampled
by timm at load, which differs a little from torch.hub's way; so timm is part of the id. Shapes: B images, D features.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from metrics.networks import ImageNetwork, best_device, load_strictly, misfit, read_state, resize_clean, weights_path

if TYPE_CHECKING:
    from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


@dataclass(frozen=True, kw_only=True)
class Vit(ImageNetwork):
    """`architecture` is timm's name for the network, `weights` a registered id or a file (Meta's or timm's)."""

    architecture: str
    weights: str
    size: int = 224
    crop: bool = True
    packages: ClassVar[tuple[str, ...]] = ("torch", "timm")

    def files(self) -> tuple[Path, ...]:
        return (weights_path(self.weights),)

    @property
    def recipe(self) -> str:
        centre = f", centre {self.size}" if self.crop else ""
        size = f"float bicubic antialias clamp {self.resized}{centre}"
        return f"timm {self.architecture} class token, {size}"

    @property
    def resized(self) -> int:
        return self.size * 8 // 7 if self.crop else self.size

    def forward(self, images: Tensor) -> Tensor:
        edge = (self.resized - self.size) // 2
        cut = slice(edge, edge + self.size)
        x = resize_clean(images, self.resized)[..., cut, cut] / 255
        return _load(self)((x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(STD)[:, None, None])


@functools.cache
def _load(network: Vit) -> nn.Module:
    import timm
    import torch

    with torch.random.fork_rng(devices=[]):  # building a module draws initial values
        size = {"num_classes": 0, "img_size": network.size, "global_pool": "token"}
        model: Any = timm.create_model(network.architecture, pretrained=False, **size)
    state = read_state(network, network.files()[0])
    try:
        state = sys.modules[type(model).__module__].checkpoint_filter_fn(state, model)
    except (RuntimeError, KeyError, AttributeError, ValueError) as error:
        raise misfit(network, error) from error
    load_strictly(model, state, network)
    return model.eval().requires_grad_(False).to(best_device(network.device))
