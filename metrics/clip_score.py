"""CLIP score: 100 x mean cosine of image and prompt, unclipped, kept per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from bench.contracts import Evaluation, Metric, Quantity, Score
from metrics.features import feature_store
from metrics.fingerprint import fingerprint
from metrics.networks import OpenClip, unit

HESSEL_PREFIX = "A photo depicts "


def cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Row by row, (..., D), (..., D) -> (...), float64."""
    x, y = unit(x), unit(y)
    return (x * y).sum(axis=-1)


class ClipScore(Metric):
    """`clip_t` on the content prompt (the headline), `clip_t_full` on the prompt with the style words.

    Per image they are 100 x the raw cosine, neither clipped nor rescaled, so other scales can be had from them.
    `hessel` adds 2.5 x mean max(cosine, 0) with the prefix "A photo depicts" (Hessel et al. 2021): it was calibrated
    on ViT-B/32 and means nothing on another network.
    """

    higher_is_better: ClassVar = {"clip_t": True, "clip_t_full": True, "clipscore_hessel": True}
    quantities: ClassVar = {
        "clip_t": Quantity(
            "CLIP score on the content prompt",
            "mean cos(f(y), T(q))",
            "-100 to 100",
            "Hessel et al. 2021, without its rescaling",
            "100 x cosine",
            heading="CLIP-T",
        ),
        "clip_t_full": Quantity(
            "CLIP score on the full prompt",
            "mean cos(f(y), T(q with style words))",
            "-100 to 100",
            "Hessel et al. 2021, without its rescaling",
            "100 x cosine",
            heading="CLIP-T, full prompt",
        ),
        "clipscore_hessel": Quantity(
            "CLIPScore as published",
            "2.5 mean max(cos(f(y), T('A photo depicts ' + q)), 0)",
            "0 to 2.5",
            "Hessel et al. 2021, ViT-B/32 only",
            "2.5 x cosine",
            heading="CLIPScore",
        ),
    }

    def __init__(self, network: OpenClip, hessel: bool = False):
        self.network, self.hessel = network, hessel

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        store = feature_store(evaluation.cache)
        images = store.features(evaluation.images, self.network)

        def against(prompts: Sequence[str]) -> np.ndarray:
            return cosine(images, store.texts(prompts, self.network))

        per_image = {
            "clip_t": 100 * against(evaluation.prompts),
            "clip_t_full": 100 * against(evaluation.full_prompts),
        }
        if self.hessel:
            captions = [HESSEL_PREFIX + prompt for prompt in evaluation.prompts]
            per_image["clipscore_hessel"] = 2.5 * against(captions).clip(min=0)
        truncated = self.network.truncated([*evaluation.prompts, *evaluation.full_prompts])
        cut = f"{truncated} of {2 * len(images)} captions are longer than {self.network.name} reads, so cut."
        return Score(
            {name: float(values.mean()) for name, values in per_image.items()},
            per_image,
            fingerprint(f"clip_score {self.version}", len(images), self.network, truncated_captions=truncated),
            [cut] if truncated else [],
        )
