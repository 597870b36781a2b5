"""DISTS (Ding et al. 2020, arXiv 2004.07728, eq. 7): structure and texture similarity of VGG16's maps and of the image.

D(x, y) = 1 - sum_ij (alpha_ij l(x_ij, y_ij) + beta_ij s(x_ij, y_ij)), with l on the means of channel j of stage i, s on
their covariance. 0 for equal images; about 0.1 is close, 0.4 far. Shapes: N or B images, C channels, P pixels per side.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bench.contracts import Evaluation, Metric, Quantity, Score
from metrics.features import feature_store
from metrics.fingerprint import fingerprint
from metrics.networks import Network, best_device, exact, read_state, resize_clean, weights_path
from metrics.networks.lpips import TAPS, torchvision_trunk
from metrics.perceptual import of_pairs

if TYPE_CHECKING:
    from torch import Tensor, nn

HEADS = Path(__file__).with_name("dists_heads.safetensors")  # the authors' alpha and beta, MIT licence
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHANNELS = (3, 64, 128, 256, 512, 512)  # of the image and the five stages
SMALL = 1e-6
BATCH = 8


@dataclass(frozen=True, kw_only=True)
class DistsNet(Network):
    """VGG16 with the authors' L2 pooling; every image is brought to `size` by `resize_clean` first."""

    weights: str = "lpips_vgg_trunk"
    name: str = "dists-vgg-256"
    size: int = 256
    packages: ClassVar[tuple[str, ...]] = ("torch", "torchvision")

    def files(self) -> tuple[Path, ...]:
        return (weights_path(self.weights), HEADS)

    @property
    def recipe(self) -> str:
        return f"DISTS vgg16 L2 pooling, float bicubic antialias clamp {self.size}"

    def maps(self, images: Tensor) -> list[Tensor]:
        """(B, 3, P, P) in 0..255 -> the image in [0, 1] and the maps of five stages."""
        x = resize_clean(images, self.size) / 255
        found = [x]
        x = (x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(STD)[:, None, None]
        for number, layer in enumerate(_load(self)[0]):
            x = l2_pool(x) if type(layer).__name__ == "MaxPool2d" else layer(x)
            if number in TAPS["vgg"]:
                found.append(x)
        return found

    def pairs(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Distances of uint8 (n, 3, P, P), float64 (n,)."""
        import torch

        device, parts = best_device(self.device), []
        with exact():
            for start in range(0, len(a), BATCH):
                both = (torch.from_numpy(np.ascontiguousarray(x[start : start + BATCH])) for x in (a, b))
                x, y = (self.maps(part.to(device).float()) for part in both)
                parts.append(compare(x, y, *_load(self)[1]).cpu().numpy())
        return np.concatenate(parts)


def l2_pool(x: Tensor) -> Tensor:
    """The root of a smoothed square at half the size (Henaff & Simoncelli 2016), 3 x 3 Hann window."""
    import torch
    from torch.nn import functional as F

    window = torch.tensor([0.5, 1.0, 0.5], device=x.device)
    window = (window[:, None] * window / 4).expand(x.shape[1], 1, 3, 3)
    return (F.conv2d(x**2, window, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


def compare(x: list[Tensor], y: list[Tensor], alpha: list[Tensor], beta: list[Tensor]) -> Tensor:
    """Maps (B, C, h, w) of both sides and the weights (C,) of each -> distances (B,), float64."""
    total = 0.0
    for a, b, means, structure in zip(x, y, alpha, beta, strict=True):
        a, b = a.double().flatten(2), b.double().flatten(2)
        ma, mb = a.mean(2), b.mean(2)
        va, vb, covariance = a.var(2, correction=0), b.var(2, correction=0), (a * b).mean(2) - ma * mb
        luminance = (2 * ma * mb + SMALL) / (ma**2 + mb**2 + SMALL)
        total = total + luminance @ means + (2 * covariance + SMALL) / (va + vb + SMALL) @ structure
    return 1 - total


@functools.cache
def _load(network: DistsNet) -> tuple[nn.Sequential, tuple[list[Tensor], list[Tensor]]]:
    trunk_file, heads_file = network.files()
    heads = read_state(network, heads_file)
    alpha, beta = (heads[key].double().to(best_device(network.device)) for key in ("alpha", "beta"))
    whole = alpha.sum() + beta.sum()
    weights = tuple(list((each / whole).split(CHANNELS)) for each in (alpha, beta))
    return torchvision_trunk(network, trunk_file, "vgg"), (weights[0], weights[1])


class DistsContent(Metric):
    """DISTS to the untouched backbone's image of the same prompt and seed; lower keeps more content."""

    higher_is_better: ClassVar = {"dists_content": False}
    quantities: ClassVar = {
        "dists_content": Quantity(
            "Change of content, DISTS",
            "mean DISTS(y, y0)",
            "0 to about 1; 0.1 is close, 0.4 is far",
            "Ding et al. 2020",
            "DISTS",
            "low, but 0 means that nothing was learned",
            heading="DISTS to baseline",
        ),
    }

    def __init__(self, network: DistsNet):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        store = feature_store(evaluation.cache)
        found = of_pairs(store, self.network, self.network.pairs, evaluation.images, evaluation.baseline)
        how = fingerprint(f"dists_content {self.version}", len(found), self.network, None)
        return Score({"dists_content": float(found.mean())}, {"dists_content": found}, how)
