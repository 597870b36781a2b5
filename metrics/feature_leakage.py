"""Leakage seen by other networks, free of alignment: the same difference of differences with cosines for distances.

`dino_leak` and its kin detect moved or rescaled copies, which LPIPS cannot see; `clip_text_leak` detects the training
content's meaning without any picture overlap. Positive means leak. Shapes: N images, K training images, J controls,
D features.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from bench.contracts import Dataset, Evaluation, Impossible, Metric, Quantity, Score
from metrics.features import FeatureStore, feature_store, images_hash
from metrics.fingerprint import fingerprint
from metrics.leakage import Gaps, Sides, controls, defined, leak_scores, mean, mirror, over_training_images
from metrics.networks import ImageNetwork, OpenClip, unit
from metrics.training_images import content, related


def cosine_gaps(store: FeatureStore, network: ImageNetwork, evaluation: Evaluation, sides: Sides) -> tuple[Gaps, Gaps]:
    """1 - cosine to training content and controls as they are, and mirrored; a full copy is mirrored with them."""

    def features(images: np.ndarray) -> np.ndarray:
        return unit(store.features(images, network))

    ym, y0 = features(evaluation.images), features(evaluation.baseline)

    def side(c: np.ndarray, t: np.ndarray, u: np.ndarray) -> Gaps:
        return Gaps(1 - ym @ c.T, 1 - y0 @ c.T, 1 - (t * c).sum(axis=1), 1 - ym @ u.T, 1 - y0 @ u.T, 1 - t @ u.T)

    pictures = (sides.c, sides.t, sides.u)
    return side(*map(features, pictures)), side(*(features(mirror(images)) for images in pictures))


def leak_quantities(id: str, network: str, source: str) -> dict[str, Quantity]:
    """A feature leak, its rate and that of related prompts as docs/metrics.md describes them."""
    name, ours = f"Leakage in {network} features", "this project"
    cosines, chance = " with 1 - cos for d_n", "0.05: the rate without leakage"
    positive = "-4 to 4; positive is leakage"
    return {
        id: Quantity(
            name, f"lpips_leak{cosines}", positive, f"{ours}; {source}", "cosine", "0", f"{network} leak", 0.0
        ),
        f"{id}_rate": Quantity(
            f"{name}, rate", f"lpips_leak_rate{cosines}", "0 to 1", ours, "share", chance, f"{network} leak rate", 0.05
        ),
        f"{id}_related": Quantity(
            f"{name}, prompts of the training class",
            f"lpips_leak_related{cosines}",
            positive,
            ours,
            "cosine",
            "0",
            f"{network} leak, own class",
            0.0,
        ),
    }


class FeatureLeak(Metric):
    """The leak in cosine of a network's features, its rate, and that of prompts of the training picture's class."""

    copying: ClassVar = True

    def __init__(self, network: ImageNetwork):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        """Impossible without training images or with fewer than eight controls."""
        name, dataset, store = next(iter(self.higher_is_better)), evaluation.dataset, feature_store(evaluation.cache)
        known, others = content(dataset), controls(dataset, name)
        same_class = related(evaluation.prompts, known.nouns)
        gaps = cosine_gaps(store, self.network, evaluation, Sides(known.plain, known.style, others))
        values, per_image = leak_scores(*gaps, same_class, name)
        kept, notes = defined({key: value for key, value in values.items() if key in self.higher_is_better})
        n, more = len(per_image[name]), {"style_confounded": known.confounded, "controls_hash": images_hash(others)}
        made = fingerprint(f"{name} {self.version}", n, self.network, known.plain, **more)
        return Score(kept, {name: per_image[name]}, made, notes)


class DinoLeak(FeatureLeak):
    """Leakage in the features of DINO or DINOv2 (Caron et al. 2021, Oquab et al. 2023)."""

    higher_is_better: ClassVar = {"dino_leak": False, "dino_leak_rate": False, "dino_leak_related": False}
    quantities: ClassVar = leak_quantities("dino_leak", "DINO", "Caron et al. 2021, Oquab et al. 2023")


class DreamsimLeak(FeatureLeak):
    """Leakage in the features of DreamSim (Fu et al. 2023)."""

    higher_is_better: ClassVar = {"dreamsim_leak": False, "dreamsim_leak_rate": False, "dreamsim_leak_related": False}
    quantities: ClassVar = leak_quantities("dreamsim_leak", "DreamSim", "Fu et al. 2023")


class ClipImageLeak(FeatureLeak):
    """Leakage in the features of the image tower of a CLIP (Radford et al. 2021)."""

    higher_is_better: ClassVar = {"clip_leak": False, "clip_leak_rate": False, "clip_leak_related": False}
    quantities: ClassVar = leak_quantities("clip_leak", "CLIP", "Radford et al. 2021")


class ClipTextLeak(Metric):
    """Leakage of meaning: images move closer to the captions q_c of training content than to captions of controls."""

    copying: ClassVar = True
    higher_is_better: ClassVar = {"clip_text_leak": False, "clip_text_leak_related": False}
    quantities: ClassVar = {
        "clip_text_leak": Quantity(
            "Leakage of the meaning of the training content",
            "mean [cos(y, T(q_c)) - cos(y0, T(q_c))] - the same for captions of controls",
            "-400 to 400; positive is leakage",
            "this project; Radford et al. 2021",
            "100 x cosine",
            "0",
            heading="CLIP text leak",
            target=0.0,
        ),
        "clip_text_leak_related": Quantity(
            "The same for prompts of the training class",
            "clip_text_leak over prompts that name the noun of c",
            "-400 to 400",
            "this project",
            "100 x cosine",
            "0",
            heading="CLIP text leak, own class",
            target=0.0,
        ),
    }

    def __init__(self, network: OpenClip):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        """Impossible without training images, or when no control has a caption of its own."""
        known, store = content(evaluation.dataset), feature_store(evaluation.cache)
        same_class = related(evaluation.prompts, known.nouns)
        unrelated = control_captions(evaluation.dataset, known.captions)
        moved = np.subtract(*(unit(store.features(x, self.network)) for x in (evaluation.images, evaluation.baseline)))
        q, u = (unit(store.texts(texts, self.network)) for texts in (known.captions, unrelated))
        leak = 100 * (moved @ q.T - (moved @ u.T).mean(axis=1, keepdims=True))  # (N, K)
        per_image = over_training_images(leak, ~same_class)
        values = {"clip_text_leak": mean(per_image)}
        if same_class.any():
            values["clip_text_leak_related"] = mean(over_training_images(leak, same_class))
        kept, notes = defined(values)
        made = fingerprint(
            f"clip_text_leak {self.version}", len(leak), self.network, captions=[*known.captions], controls=unrelated
        )
        return Score(kept, {"clip_text_leak": per_image}, made, notes)


def control_captions(dataset: Dataset, training: tuple[str, ...]) -> list[str]:
    """Different captions of the controls that caption no training image; Impossible when there is none."""
    found = [caption for caption in dict.fromkeys(dataset.control_captions) if caption not in training]
    if not found:
        raise Impossible(f"clip_text_leak needs captions of control images, the dataset {dataset.name} has none.")
    return found
