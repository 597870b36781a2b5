"""Perceptual distances as Euclidean ones: d(a, b) = |phi(a) - phi(b)|^2, one trunk pass per image.

phi(x) concatenates sqrt(w_l) * unit-normalised map_l / sqrt(h_l w_l) over layers l, which makes d LPIPS exactly.
Shapes: B or N images, R references, P pixels per side, F floats of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from metrics.features import FeatureStore, images_hash, pixel_key
from metrics.networks import PerceptualNetwork, best_device, exact

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 16
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma


# --- views: what of an image is compared -------------------------------------------------------------------------


def standardise(images: Tensor) -> Tensor:
    """Grey with mean 128 and standard deviation 50 per image, three equal channels, clipped to 0..255; flat stays 128.

    Colour and contrast are what a style changes first, and what confounds a plain perceptual distance.
    """
    grey = (images * images.new_tensor(GREY)[:, None, None]).sum(dim=1, keepdim=True)  # (B, 1, P, P)
    centred = grey - grey.mean(dim=(2, 3), keepdim=True)
    deviation = centred.square().mean(dim=(2, 3), keepdim=True).sqrt()
    return (128 + 50 * centred / deviation.clamp(min=1e-3)).clamp(0, 255).expand(-1, 3, -1, -1)


def phi(network: PerceptualNetwork, images: Tensor) -> list[Tensor]:
    """The LPIPS embedding of images (B, 3, P, P) in 0..255: (B, F) per layer."""
    maps = zip(network.maps(images), network.heads(), strict=True)
    return [(found * (weight.sqrt() / found[0, 0].numel() ** 0.5)[:, None, None]).flatten(1) for found, weight in maps]


def phi_standardised(network: PerceptualNetwork, images: Tensor) -> list[Tensor]:
    return phi(network, standardise(images))


def gram(network: PerceptualNetwork, images: Tensor) -> list[Tensor]:
    """Gram matrices (Gatys et al. 2016) of the unit-length maps, (B, C * C) per layer.

    Each has trace one, so layers weigh alike; places are averaged out, which leaves texture.
    """
    grams = []
    for found in network.maps(images):
        rows = found.flatten(2)  # (B, C, h * w)
        grams.append((rows @ rows.transpose(1, 2) / rows.shape[2]).flatten(1) / len(network.heads()) ** 0.5)
    return grams


VIEWS: dict[str, Callable[[PerceptualNetwork, Tensor], list[Tensor]]] = {
    "phi": phi,
    "phi_standardised": phi_standardised,
    "gram": gram,
}


# --- distances ---------------------------------------------------------------------------------------------------


def embed(network: PerceptualNetwork, view: str, images: np.ndarray) -> Iterator[list[Tensor]]:
    """Embeddings of uint8 images (N, 3, P, P), batch by batch: (B, F) float32 per layer."""
    import torch

    device = best_device(network.device)
    for start in range(0, len(images), BATCH):
        batch = torch.from_numpy(np.ascontiguousarray(images[start : start + BATCH])).to(device)
        with exact():
            seen = VIEWS[view](network, batch.float())
        yield seen  # outside: two such generators side by side would otherwise leave inference mode on


@dataclass
class DistancesTo:
    """An extractor whose features are the squared distances |v(x) - v(r)|^2 to fixed reference images r, (N, R).

    Embeddings have up to a million floats, so these few numbers are what is stored. Differences of squares are taken
    in float64.
    """

    network: PerceptualNetwork
    view: str
    references: np.ndarray  # uint8 (R, 3, P, P)
    _embedded: list[Tensor] = field(default_factory=list, init=False, repr=False)

    @property
    def id(self) -> str:
        return f"{self.network.id} {self.view} squared distances to {images_hash(self.references)}"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, 3, P, P) -> float32 (N, R)."""
        import torch

        if not self._embedded:
            batches = embed(self.network, self.view, self.references)
            self._embedded = [torch.cat(layer) for layer in zip(*batches, strict=True)]
        parts = []
        for batch in embed(self.network, self.view, images):
            layers = [_squared(x, r) for x, r in zip(batch, self._embedded, strict=True)]
            parts.append(torch.stack(layers).sum(0).float().cpu().numpy())
        return np.concatenate(parts)


def _squared(x: Tensor, r: Tensor) -> Tensor:
    """|x_b - r_k|^2 in float64: (B, F), (R, F) -> (B, R)."""
    x, r = x.double(), r.double()
    return (x.square().sum(1)[:, None] + r.square().sum(1)[None] - 2 * x @ r.T).clamp(min=0)


def distances(store: FeatureStore, network: PerceptualNetwork, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """LPIPS d(a_i, b_i) of two uint8 sets (N, 3, P, P), float64 (N,); known pairs are not computed again."""

    def compute(rows: list[int]) -> np.ndarray:
        import torch

        parts = []
        for x, y in zip(embed(network, "phi", a[rows]), embed(network, "phi", b[rows]), strict=True):
            layers = [(p - q).double().square().sum(1) for p, q in zip(x, y, strict=True)]
            parts.append(torch.stack(layers).sum(0).cpu().numpy())
        return np.concatenate(parts)[:, None]

    keys = [pixel_key(np.stack([x, y])) for x, y in zip(a, b, strict=True)]
    return store.lookup(keys, f"{network.id} pair distance", compute)[:, 0].astype(np.float64)


def mean_pair_distance(
    store: FeatureStore, network: PerceptualNetwork, images: np.ndarray, prompts: Sequence[str]
) -> np.ndarray:
    """For each image the mean LPIPS between different images of its prompt, float64 (N,); NaN for a prompt with one.

    The mean of |phi(a) - phi(b)|^2 over all pairs is twice the unbiased variance of phi: one trunk pass per image.
    """
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    groups = [np.asarray(images[chosen]) for chosen in rows.values() if len(chosen) > 1]

    def compute(which: list[int]) -> np.ndarray:
        return np.array([[_twice_the_variance(network, groups[i])] for i in which])

    found = np.full(len(images), np.nan)
    if groups:
        keys = [images_hash(group) for group in groups]
        means = iter(store.lookup(keys, f"{network.id} mean pair distance", compute)[:, 0])
        for chosen in rows.values():
            found[chosen] = next(means) if len(chosen) > 1 else np.nan
    return found


def _twice_the_variance(network: PerceptualNetwork, images: np.ndarray) -> float:
    import torch

    layers = (torch.cat(layer) for layer in zip(*embed(network, "phi", images), strict=True))
    return float(sum(2 * layer.var(dim=0).sum(dtype=torch.float64) for layer in layers))
