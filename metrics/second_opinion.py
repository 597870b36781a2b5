"""What `python -m bench.doctor` runs on the packages of `metrics.library_scores`: their numbers beside ours."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.contracts import Dataset, Evaluation, Example, Metric, Pair
from bench.doctor import Check
from metrics.library_scores import Library

N = 8


def sample(cache: Path) -> Evaluation:
    """Drawn scenes with their captions, and as many reference images, so that KID has no subsets to draw."""
    from bench.mini import scenes

    made = [scenes.sample_scene(np.random.default_rng(seed), pairs=0.0) for seed in range(3 * N)]
    images = np.stack([scenes.render(scene).transpose(2, 0, 1) for scene in made])
    captions = [scenes.plain_caption(scene) for scene in made[:N]]
    example = Example(images[0], captions[0], "object")
    dataset = Dataset(
        name="drawn", version=1, licence="CC0-1.0", source="drawn here", style_words=None, noun="object",
        pairs=(Pair(example, example),), references=(), auxiliary=(), prompts=tuple(captions), seeds=(0,), controls=(),
        reference_set=lambda: images[2 * N :], oracle=None, content_hash="0",
    )  # fmt: skip
    return Evaluation(images[:N], images[N : 2 * N], captions, captions, [0] * N, dataset, cache)


class Agrees(Check):
    """Each number of a package is within `tolerance` of ours, relative to ours.

    `ours` are the metrics that give our columns, on the same network.
    """

    def __init__(self, library: Library, ours: Sequence[Metric], tolerance: float):
        self.library, self.ours, self.tolerance = library, ours, tolerance
        self.network = library.network
        columns = " and ".join(library.same_as.values())
        self.what = f"{columns} by {library.package} on {library.network.name}"

    def missing(self) -> str | None:
        return self.library.missing()

    def run(self) -> tuple[bool, str]:
        with tempfile.TemporaryDirectory() as folder:
            case = sample(Path(folder))
            theirs = self.library.score(case).values
            ours = {name: value for metric in self.ours for name, value in metric.score(case).values.items()}
        pairs = [(theirs[name], ours[same]) for name, same in self.library.same_as.items()]
        right = all(abs(their - our) <= self.tolerance * abs(our) for their, our in pairs)
        about = ", ".join(f"{their:.6g} and ours {our:.6g}" for their, our in pairs)
        return right, f"{about}; expected: alike within {self.tolerance:g}"
