"""What `python -m bench.doctor` runs on the feature networks: identities, and golden numbers that others published.

Shapes: N images, P pixels per side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.contracts import BenchError
from bench.data.weights import weights_file
from bench.doctor import Check
from metrics.fid import frechet_distance
from metrics.networks import ImageNetwork, OpenClip, PerceptualNetwork, unit
from metrics.perceptual import embed

BATCH_TOLERANCE = 1e-3  # relative; batches of another size add in another order


def pictures(n: int, seed: int = 0, size: int = 224) -> np.ndarray:
    """Smooth colour fields with a few rectangles, uint8 (n, 3, size, size)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    slope = rng.normal(size=(2, n, 3, 1, 1)) * 90
    images = 128 + slope[0] * (x - 0.5) + slope[1] * (y - 0.5)
    for image in images:
        for top, left in rng.integers(0, size // 2, (4, 2)):
            image[:, top : top + size // 3, left : left + size // 4] = rng.integers(0, 256, (3, 1, 1))
    return images.clip(0, 255).astype(np.uint8)


class IdenticalImages(Check):
    """d(x, x) = 0 exactly, and d(x, y) > 0."""

    def __init__(self, network: PerceptualNetwork):
        self.network, self.what = network, f"LPIPS(x, x) = 0 on {network.name}"

    def missing(self) -> str | None:
        return self.network.missing()

    def run(self) -> tuple[bool, str]:
        images = pictures(3)

        def distances(other: np.ndarray) -> np.ndarray:
            pairs = zip(embed(self.network, "phi", images), embed(self.network, "phi", other), strict=True)
            layers = [
                (p - q).double().square().sum(1).cpu().numpy() for x, y in pairs for p, q in zip(x, y, strict=True)
            ]
            return np.sum(layers, axis=0)

        same, others = distances(images), distances(np.roll(images, 1, axis=0))
        about = f"largest d(x, x) {same.max():g}, smallest d(x, y) {others.min():.3g}; expected 0, and more than 0"
        return bool(same.max() == 0 and others.min() > 0), about


class IdenticalSets(Check):
    """FD(x, x) = 0 <= FD(x, y), and features do not depend on what else is in the batch."""

    def __init__(self, network: ImageNetwork):
        self.network, self.what = network, f"FD(x, x) = 0, batches of 1 and 6 agree on {network.name}"

    def missing(self) -> str | None:
        return self.network.missing()

    def run(self) -> tuple[bool, str]:
        x, y = (np.asarray(self.network(pictures(6, seed)), dtype=np.float64) for seed in (0, 1))
        alone = np.concatenate([self.network(image[None]) for image in pictures(6)])
        same, other, variance = frechet_distance(x, x), frechet_distance(x, y), x.var(axis=0).sum()
        apart = float(np.abs(alone - x).max() / np.abs(x).max())
        right = abs(same) <= 1e-6 * variance < other and apart < BATCH_TOLERANCE
        return bool(right), f"FD(x, x) {same:.2g}, FD(x, y) {other:.3g}; batches differ by {apart:.1g} of the largest"


class ClipReadme(Check):
    """Probabilities of texts for a picture, softmax(100 cosine)."""

    def __init__(
        self, network: OpenClip, picture: str, texts: Sequence[str], probabilities: Sequence[float], **published
    ):
        self.network, self.picture, self.texts = network, picture, texts
        self.expected, self.published = np.array(probabilities), published
        self.what = f"golden: {' / '.join(texts)} on {network.name}"

    def missing(self) -> str | None:
        try:
            weights_file(self.picture)
        except BenchError as error:
            return self.network.missing() or str(error)
        return self.network.missing()

    def run(self) -> tuple[bool, str]:
        from PIL import Image

        with Image.open(weights_file(self.picture)) as file:
            image = np.asarray(file.convert("RGB")).transpose(2, 0, 1)
        logits = 100 * unit(self.network(image[None])) @ unit(self.network.embed_text(self.texts)).T
        found = np.exp(logits[0] - logits.max())
        return golden(found / found.sum(), self.expected, **self.published)


class ClipOnNoise(Check):
    """100 x cosine of a text and of noise that torch's generator draws: no file is needed."""

    def __init__(self, network: OpenClip, seed: int, text: str, score: float, **published):
        self.network, self.seed, self.text = network, seed, text
        self.expected, self.published = np.array([score]), published
        self.what = f"golden: CLIP score of noise on {network.name}"

    def missing(self) -> str | None:
        return self.network.missing()

    def run(self) -> tuple[bool, str]:
        import torch

        noise = torch.randint(255, (3, 224, 224), generator=torch.Generator().manual_seed(self.seed))
        image = noise.numpy().astype(np.uint8)
        found = 100 * (unit(self.network(image[None])) * unit(self.network.embed_text([self.text]))).sum(axis=1)
        return golden(found, self.expected, **self.published)


def golden(found: np.ndarray, expected: np.ndarray, tolerance: float, source: str) -> tuple[bool, str]:
    """Whether two arrays agree within an absolute tolerance, and both of them with the source."""
    apart = float(np.abs(found - expected).max())
    numbers = [", ".join(f"{value:.5g}" for value in values) for values in (found, expected)]
    return apart <= tolerance, f"{numbers[0]}; published {numbers[1]}, within {tolerance:g} ({source})"
