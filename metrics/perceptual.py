"""Perceptual distances as Euclidean ones: d(a, b) = |phi(a) - phi(b)|^2, one trunk pass per image.

phi(x) concatenates sqrt(w_l) * unit-normalised map_l / sqrt(h_l w_l) over layers l, which makes d LPIPS exactly.
Shapes: B or N images, R references, P pixels per side, F floats of one layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bench.contracts import Images
from bench.data.images import image_keys, in_batches
from metrics.features import FeatureStore, images_hash, joined
from metrics.networks import Network, PerceptualNetwork, best_device, exact

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


def distances(store: FeatureStore, network: PerceptualNetwork, a: Images, b: Images) -> np.ndarray:
    """LPIPS d(a_i, b_i) of two uint8 sets (N, 3, P, P), float64 (N,); known pairs are not computed again."""
    return of_pairs(store, network, functools.partial(_pair_distances, network), a, b)


def of_pairs(
    store: FeatureStore, network: Network, pairs: Callable[[np.ndarray, np.ndarray], np.ndarray], a: Images, b: Images
) -> np.ndarray:
    """pairs(a_i, b_i) of two uint8 sets (N, 3, P, P) in batches, float64 (N,); known pairs are not computed again."""

    def compute(rows: list[int]) -> np.ndarray:
        batches = zip(in_batches(a, rows), in_batches(b, rows), strict=True)
        return np.concatenate([pairs(x, y) for x, y in batches])[:, None]

    keys = [joined(pair) for pair in zip(image_keys(a), image_keys(b), strict=True)]
    return store.lookup(keys, f"{network.id} distance of pairs", compute)[:, 0].astype(np.float64)


def _pair_distances(network: PerceptualNetwork, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|phi(a_i) - phi(b_i)|^2 of two arrays (n, 3, P, P), (n,)."""
    import torch

    parts = []
    for x, y in zip(embed(network, "phi", a), embed(network, "phi", b), strict=True):
        layers = [(p - q).double().square().sum(1) for p, q in zip(x, y, strict=True)]
        parts.append(torch.stack(layers).sum(0).cpu().numpy())
    return np.concatenate(parts)


def mean_distances(
    store: FeatureStore, network: PerceptualNetwork, images: Images, groups: Sequence[Sequence[int]]
) -> np.ndarray:
    """Mean LPIPS over all pairs within each group of rows (at least two), float64 (G,); known means are kept.

    The mean of |phi(a) - phi(b)|^2 over pairs is 2 / (n - 1) (sum |phi|^2 - |sum phi|^2 / n): one pass per image.
    """

    def compute(which: list[int]) -> np.ndarray:
        return np.array([[_mean_distance(network, images, groups[i])] for i in which])

    keys = image_keys(images)
    names = [joined([keys[row] for row in group]) for group in groups]
    return store.lookup(names, f"{network.id} mean distance of all pairs", compute)[:, 0].astype(np.float64)


def _mean_distance(network: PerceptualNetwork, images: Images, rows: Sequence[int]) -> float:
    squares, sums = _sums(network, images, rows)
    n = len(rows)
    return 2 / (n - 1) * (squares - sum(float(layer.square().sum()) for layer in sums) / n)


def _sums(network: PerceptualNetwork, images: Images, rows: Sequence[int]) -> tuple[float, list[Tensor]]:
    """The sum of |phi|^2 over some images, and that of phi, (F,) per layer."""
    squares, sums = 0.0, []
    for batch in in_batches(images, rows):
        for layers in embed(network, "phi", batch):
            squares += sum(float(layer.double().square().sum()) for layer in layers)
            sums = _added(sums, layers)
    return squares, sums


def mean_distances_without(
    store: FeatureStore, network: PerceptualNetwork, images: Images, groups: np.ndarray
) -> np.ndarray:
    """Mean LPIPS over all pairs without each group of images, float64 (G,); `groups` (N,) are codes 0, 1, ...

    Two passes: the sum of all phi, then of each group. Known numbers are kept.
    """
    keys, rows = image_keys(images), [np.flatnonzero(groups == i) for i in range(groups.max() + 1)]
    names = [joined([*keys, "without", *(keys[row] for row in group)]) for group in rows]

    def compute(which: list[int]) -> np.ndarray:
        squares, total = _sums(network, images, range(len(images)))
        found = []
        for i in which:
            own, sums = _sums(network, images, rows[i])
            left = [whole - part for whole, part in zip(total, sums, strict=True)]
            n = len(images) - len(rows[i])
            found.append([2 / (n - 1) * (squares - own - sum(float(x.square().sum()) for x in left) / n)])
        return np.array(found)

    return store.lookup(names, f"{network.id} mean distance of all pairs", compute)[:, 0].astype(np.float64)


def _added(sums: list[Tensor], layers: list[Tensor]) -> list[Tensor]:
    found = [layer.double().sum(0) for layer in layers]
    return [a + b for a, b in zip(sums, found, strict=True)] if sums else found


def mean_pair_distance(
    store: FeatureStore, network: PerceptualNetwork, images: Images, prompts: Sequence[str]
) -> np.ndarray:
    """For each image the mean LPIPS between different images of its prompt, float64 (N,); NaN for a prompt with one."""
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    groups = [chosen for chosen in rows.values() if len(chosen) > 1]
    found = np.full(len(images), np.nan)
    if groups:
        for chosen, mean in zip(groups, mean_distances(store, network, images, groups), strict=True):
            found[chosen] = mean
    return found
