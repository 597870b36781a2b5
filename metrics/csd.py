"""CSD, contrastive style descriptors (Somepalli et al. 2024, arXiv 2404.01292): CLIP ViT-L/14 fine-tuned on styles.

The descriptor is the image tower without its projection, times a learned 1024 x 768 matrix, at unit length. The tower
is open_clip's, whose names are those of the published checkpoint. Its authors leave a discrepancy of the released
weights unresolved: use it as a paired difference only (`style_csd`). Shapes: B images, D features.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.adapters.image_encoder import MEAN, STD
from bench.contracts import BenchError
from metrics.networks import ImageNetwork, best_device, load_strictly, read_state, resize_clean, weights_path

if TYPE_CHECKING:
    from torch import Tensor, nn

HEAD = "last_layer_style"  # there is a last_layer_content, too: a leftover of the training


@dataclass(frozen=True, kw_only=True)
class Csd(ImageNetwork):
    """`architecture` is open_clip's name for the tower."""

    weights: str = "csd_vit_l"
    name: str = "csd-vit-l"
    architecture: str = "ViT-L-14-quickgelu"
    packages: ClassVar[tuple[str, ...]] = ("torch", "open_clip_torch")

    def files(self) -> tuple[Path, ...]:
        return (weights_path(self.weights),)

    @property
    def recipe(self) -> str:
        return (
            f"CSD style head on open_clip {self.architecture}, float bicubic antialias clamp, CLIP mean and deviation"
        )

    def forward(self, images: Tensor) -> Tensor:
        from torch.nn.functional import normalize

        tower, head = _load(self)
        x = resize_clean(images, tower.image_size[0]) / 255
        x = (x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(STD)[:, None, None]
        return normalize(tower(x) @ head, dim=1)


@functools.cache
def _load(network: Csd) -> tuple[Any, Tensor]:
    state = _checkpoint(network)
    if HEAD not in state:
        raise BenchError(
            f"The weights of {network.name} do not fit: {network.files()[0]} has no {HEAD}, so it is no CSD; "
            "put the right file there."
        )
    backbone = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    tower, device = _tower(network.architecture), best_device(network.device)
    load_strictly(tower, {key: value.float() for key, value in backbone.items()}, network)
    return tower.eval().requires_grad_(False).to(device), state[HEAD].float().to(device)


def _checkpoint(network: Csd) -> dict[str, Tensor]:
    """Tensors of the published training checkpoint, or of a plain file. It also holds numbers and options as data."""
    import argparse

    import numpy as np

    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    data = [argparse.Namespace, np.dtype, np.dtypes.Float64DType, scalar, (scalar, "numpy.core.multiarray.scalar")]
    state = read_state(network, network.files()[0], data)
    state = state.get("model_state_dict", state)
    return {key.removeprefix("module."): value for key, value in state.items()}


def _tower(architecture: str) -> nn.Module:
    import open_clip
    import torch

    config = open_clip.get_model_config(architecture)
    with torch.device("meta"):
        tower = open_clip.CLIP(**config).visual
    tower.proj = None
    return tower
