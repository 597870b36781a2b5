"""FID with the preprocessing of older programs, to stand beside numbers that were published with it.

    legacy_tf      bilinear as in TensorFlow 1, not antialiased, (x - 128) / 128: the original FID, torch-fidelity,
                   clean-fid's legacy_tensorflow
    legacy_torch   torch's bilinear, not antialiased, 2 x / 255 - 1: pytorch-fid, clean-fid's legacy_pytorch

Both alias; on noisy images they move pixels by grey levels (Parmar et al. 2022). Compare nothing across recipes.
Shapes: B images, P pixels per side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from bench.contracts import BenchError
from metrics.fid import Frechet, frechet_quantities
from metrics.networks import ImageNetwork, Inception

if TYPE_CHECKING:
    from torch import Tensor

SIZE = (299, 299)


def legacy_tf(images: Tensor) -> Tensor:
    """uint8 (B, 3, P, P) -> what the network reads, float32 (B, 3, 299, 299)."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as bilinear

    return (bilinear(images.float(), size=SIZE, align_corners=False) - 128) / 128


def legacy_torch(images: Tensor) -> Tensor:
    """uint8 (B, 3, P, P) -> what the network reads, float32 (B, 3, 299, 299)."""
    from torch.nn.functional import interpolate

    return 2 * interpolate(images.float() / 255, SIZE, mode="bilinear", align_corners=False) - 1


RECIPES: dict[str, Callable[[Tensor], Tensor]] = {"legacy_tf": legacy_tf, "legacy_torch": legacy_torch}


@dataclass(frozen=True, kw_only=True)
class LegacyInception(ImageNetwork):
    """The Inception of FID behind one of RECIPES."""

    preprocessing: str
    weights: str = "inception_fid"
    packages: ClassVar[tuple[str, ...]] = ("torch", "torch-fidelity")

    def __post_init__(self) -> None:
        if self.preprocessing not in RECIPES:
            raise BenchError(f"No FID recipe is called {self.preprocessing!r}; there are {', '.join(RECIPES)}.")

    @property
    def inception(self) -> Inception:
        return Inception(weights=self.weights, device=self.device)

    def files(self) -> tuple[Path, ...]:
        return self.inception.files()

    @property
    def recipe(self) -> str:
        return f"inception-2015-12-05 pool3, {self.preprocessing} 299"

    def forward(self, images: Tensor) -> Tensor:
        return self.inception.pool3(RECIPES[self.preprocessing](images))


class FidLegacyTf(Frechet):
    """FID as the original TensorFlow program computes it."""

    label = "fid_legacy_tf"
    higher_is_better: ClassVar = {"fid_legacy_tf": False, "fid_legacy_tf_null": False}
    quantities: ClassVar = frechet_quantities(
        "fid_legacy_tf", "FID with the resizing of TensorFlow 1", "Heusel et al. 2017, its program", "FID (TensorFlow)"
    )


class FidLegacyTorch(Frechet):
    """FID as pytorch-fid computes it."""

    label = "fid_legacy_torch"
    higher_is_better: ClassVar = {"fid_legacy_torch": False, "fid_legacy_torch_null": False}
    quantities: ClassVar = frechet_quantities(
        "fid_legacy_torch", "FID with the resizing of pytorch-fid", "Seitzer 2020, pytorch-fid", "FID (pytorch-fid)"
    )
