"""Tables of scores with a known truth, as the table and the claims see them.

Shapes: K methods, G trainings, n prompts, 2 evaluation seeds.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench.analysis.pairing import Rows

SHAPES = ("normal", "skewed", "rare", "tied")


@dataclass(frozen=True)
class Scene:
    methods: int = 8
    trainings: int = 3
    prompts: int = 12
    training: float = 0.15  # standard deviation over trainings, in those of an image
    shape: str = "normal"
    ratio: float = 1.0  # of the variances over trainings of every other method; their mean stays
    gap: float = 0.0  # of the first method above all others

    def table(self, rng):
        """Values (K, G, n, 2). A prompt is hard for all methods, and a little harder for some than for others."""
        size = (self.methods, self.trainings, self.prompts, 2)
        scale = np.sqrt(np.where(np.arange(self.methods) % 2, self.ratio, 1.0) * 2 / (1 + self.ratio))
        values = self.training * scale[:, None, None, None] * rng.normal(size=(self.methods, self.trainings, 1, 1))
        hard, taste = rng.normal(size=(1, 1, self.prompts, 1)), rng.normal(size=(self.methods, 1, self.prompts, 1))
        values = values + hard + 0.3 * taste + image_noise(rng, size, self.shape)
        if self.shape == "tied":
            values = np.round(2 * values) / 2  # scores on a grid of half an image sd
        values[0] += self.gap
        return values


def image_noise(rng, size, shape):
    """Mean 0, standard deviation 1: normal; exponential; one image in 20 far above all others."""
    if shape == "skewed":
        return rng.exponential(size=size) - 1
    if shape == "rare":
        return ((rng.random(size) < 0.05) - 0.05) / np.sqrt(0.05 * 0.95)
    return rng.normal(size=size)


def rows(values):
    """Values (K, G, n, 2) as the rows of one block, with the names 0, 1, ..."""
    index = pd.MultiIndex.from_product(list(map(range, values.shape[1:])), names=["seed", "prompt", "image_seed"])
    frame = index.to_frame(index=False)
    return Rows({i: frame.assign(x=part.ravel()) for i, part in enumerate(values)}, "x")
