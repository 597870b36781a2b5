"""Pictures and datasets that the metrics' tests are made of."""

import numpy as np

from bench.contracts import Dataset, Example, Pair


def scenes(n: int, seed: int, size: int = 64) -> np.ndarray:
    """Smooth random pictures with a few rectangles, uint8 (n, 3, size, size)."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        y, x = np.mgrid[0:size, 0:size] / size
        slope = rng.normal(size=(3, 2, 1, 1)) * 90
        image = 128 + slope[:, 0] * (x - 0.5) + slope[:, 1] * (y - 0.5)
        for _ in range(5):
            top, left = rng.integers(0, size - 8, 2)
            height, width = rng.integers(6, size // 2, 2)
            image[:, top : top + height, left : left + width] = rng.integers(0, 256, (3, 1, 1))
        images.append(image + rng.normal(size=image.shape) * 4)
    return np.stack(images).clip(0, 255).astype(np.uint8)


def dataset(**changes) -> Dataset:
    """One pair in a sepia-like style, eight controls, a reference set of 24, nothing related to the prompts."""
    plain = scenes(1, 100)
    pair = Pair(Example(plain[0], "a photo of a teapot", "teapot"), Example(sepia(plain[0]), "a teapot", "teapot"))
    values = {
        "name": "sepia",
        "version": 1,
        "licence": "CC0-1.0",
        "source": "drawn here",
        "style_words": "in sepia style",
        "noun": "object",
        "pairs": (pair,),
        "references": (),
        "auxiliary": (),
        "prompts": ("a red house", "a dog"),
        "seeds": (0, 1),
        "controls": tuple(scenes(8, 101)),
        "reference_set": lambda: np.stack([sepia(image) for image in scenes(24, 102)]),
        "oracle": sepia,
        "content_hash": "0",
    }
    return Dataset(**(values | changes))


def sepia(image: np.ndarray) -> np.ndarray:
    """uint8 (3, P, P) -> uint8 (3, P, P): grey in warm light, less contrast."""
    grey = image.mean(axis=0) * 0.7 + 40
    return np.stack([grey, grey * 0.85, grey * 0.6]).clip(0, 255).astype(np.uint8)
