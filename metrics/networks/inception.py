"""The Inception network of FID and KID."""

from __future__ import annotations

import functools
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from metrics.networks.network import ImageNetwork, best_device, load_strictly, read_state, resize_clean, weights_path

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Inception(ImageNetwork):
    """The Inception of FID, pool3, with clean preprocessing: squashed to 299 by `resize_clean`, then (x - 128) / 128.

    The weights are torch-fidelity's conversion of the 2015 TensorFlow network; torchvision's Inception is another one.
    """

    weights: str = "inception_fid"
    name: str = "inception-2015-clean"
    packages: ClassVar[tuple[str, ...]] = ("torch", "torch-fidelity")

    def files(self) -> tuple[Path, ...]:
        return (weights_path(self.weights),)

    @property
    def recipe(self) -> str:
        return "inception-2015-12-05 pool3, float bicubic antialias clamp 299"

    def forward(self, images: Tensor) -> Tensor:
        return self.pool3((resize_clean(images, 299) - 128) / 128)

    def pool3(self, x: Tensor) -> Tensor:
        """What the layers read, (B, 3, 299, 299) in about [-1, 1] -> (B, 2048)."""
        return _load_inception(self)(x).flatten(1)


def inception_layers() -> nn.Sequential:
    """The layers up to pool3 under the names of torch-fidelity's weights, (B, 3, 299, 299) -> (B, 2048, 1, 1)."""
    from torch import nn
    from torch_fidelity import feature_extractor_inceptionv3 as fid

    conv = fid.BasicConv2d
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        Conv2d_1a_3x3=conv(3, 32, kernel_size=3, stride=2),
        Conv2d_2a_3x3=conv(32, 32, kernel_size=3),
        Conv2d_2b_3x3=conv(32, 64, kernel_size=3, padding=1),
        MaxPool_1=nn.MaxPool2d(3, 2),
        Conv2d_3b_1x1=conv(64, 80, kernel_size=1),
        Conv2d_4a_3x3=conv(80, 192, kernel_size=3),
        MaxPool_2=nn.MaxPool2d(3, 2),
        Mixed_5b=fid.InceptionA(192, pool_features=32),
        Mixed_5c=fid.InceptionA(256, pool_features=64),
        Mixed_5d=fid.InceptionA(288, pool_features=64),
        Mixed_6a=fid.InceptionB(288),
        Mixed_6b=fid.InceptionC(768, channels_7x7=128),
        Mixed_6c=fid.InceptionC(768, channels_7x7=160),
        Mixed_6d=fid.InceptionC(768, channels_7x7=160),
        Mixed_6e=fid.InceptionC(768, channels_7x7=192),
        Mixed_7a=fid.InceptionD(768),
        Mixed_7b=fid.InceptionE_1(1280),
        Mixed_7c=fid.InceptionE_2(2048),
        AvgPool=nn.AdaptiveAvgPool2d(1),
    )
    return nn.Sequential(layers)


@functools.cache
def _load_inception(network: Inception) -> nn.Sequential:
    import torch

    state = read_state(network, network.files()[0])
    with torch.device("meta"):
        layers = inception_layers()
    kept = {key: value for key, value in state.items() if not key.startswith("fc.")}
    load_strictly(layers, kept, network)
    return layers.eval().requires_grad_(False).to(best_device(network.device))
