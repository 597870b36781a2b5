"""DreamBooth's measures of a learnt subject (Ruiz et al. 2023, section 4.1): DINO, CLIP-I, PRES, DIV; CLIP-T: `clip_t`.

All are raw cosines or LPIPS, unscaled, as that paper prints them (DINO 0.67, CLIP-I 0.80, DIV 0.37). Similarity to the
training images rewards copying them: read it next to `div` and the leak. On a style the ids begin with `style_`.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from bench.contracts import Evaluation, Impossible, Metric, Quantity, Score
from metrics.features import feature_store
from metrics.fingerprint import fingerprint
from metrics.networks import ImageNetwork, PerceptualNetwork, unit
from metrics.perceptual import mean_pair_distance
from metrics.training_images import style


def similarity_quantities(id: str, network: str, source: str, heading: str) -> dict[str, Quantity]:
    """The similarity to a subject, and to the images of a style, as docs/metrics.md describes them."""
    about = ("mean cos(f(y), f(s))", "-1 to 1", source, "cosine")
    return {
        id: Quantity(f"Similarity to the subject, {network}", *about, heading=heading),
        f"style_{id}": Quantity(
            f"Similarity to the style images, {network}",
            *about[:2],
            f"protocol of {source}, with style images for the subject's",
            "cosine",
            heading=f"{heading} to style",
        ),
    }


class ImageSimilarity(Metric):
    """Mean cosine of each generated image to the training images (subject, or stylised halves)."""

    def __init__(self, network: ImageNetwork):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        targets, store = style(evaluation.dataset), feature_store(evaluation.cache)
        y, t = (unit(store.features(images, self.network)) for images in (evaluation.images, targets))
        subject, of_a_style = self.higher_is_better
        name = subject if evaluation.dataset.style_words is None else of_a_style
        cosines = (y @ t.T).mean(axis=1)
        made = fingerprint(f"{subject} {self.version}", len(cosines), self.network, targets)
        return Score({name: float(cosines.mean())}, {name: cosines}, made)


class ClipI(ImageSimilarity):
    """CLIP-I: similarity to the training images in the features of the image tower of a CLIP."""

    higher_is_better: ClassVar = {"clip_i": True, "style_clip_i": True}
    quantities: ClassVar = similarity_quantities("clip_i", "CLIP (CLIP-I)", "Ruiz et al. 2023", "CLIP-I")


class Dino(ImageSimilarity):
    """DINO: similarity to the training images in the class token of ViT-S/16 (Caron et al. 2021), as in DreamBooth."""

    higher_is_better: ClassVar = {"dino": True, "style_dino": True}
    quantities: ClassVar = similarity_quantities("dino", "DINO ViT-S/16", "Ruiz et al. 2023", "DINO")


class Dinov2(ImageSimilarity):
    """Similarity to the training images in the class token of DINOv2 (Oquab et al. 2023)."""

    higher_is_better: ClassVar = {"dinov2": True, "style_dinov2": True}
    quantities: ClassVar = similarity_quantities("dinov2", "DINOv2", "Oquab et al. 2023", "DINOv2")


class Dinov3(ImageSimilarity):
    """Similarity to the training images in the class token of DINOv3 (Simeoni et al. 2025)."""

    higher_is_better: ClassVar = {"dinov3": True, "style_dinov3": True}
    quantities: ClassVar = similarity_quantities("dinov3", "DINOv3", "Simeoni et al. 2025", "DINOv3")


class Siglip2(ImageSimilarity):
    """Similarity to the training images in the features of the image tower of SigLIP 2 (Tschannen et al. 2025)."""

    higher_is_better: ClassVar = {"siglip2": True, "style_siglip2": True}
    quantities: ClassVar = similarity_quantities("siglip2", "SigLIP 2", "Tschannen et al. 2025", "SigLIP 2")


class Pres(Metric):
    """PRES: mean cosine of random members of the class, drawn by the customised model, to the subject's images.

    Lower is better: high means that the class has collapsed onto the subject.
    """

    copying: ClassVar = True
    higher_is_better: ClassVar = {"pres": False}
    quantities: ClassVar = {
        "pres": Quantity(
            "Drift of the class to the subject (PRES)",
            "mean cos(f(x), f(s)), x drawn for 'a photo of a {noun}'",
            "-1 to 1",
            "Ruiz et al. 2023",
            "cosine",
            heading="PRES",
        )
    }

    def __init__(self, network: ImageNetwork):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        """Impossible for a style, or when the method draws no images."""
        dataset = evaluation.dataset
        if dataset.style_words is not None:
            raise Impossible(f"PRES is about the class of a subject; {dataset.name} is a style.")
        if evaluation.class_images is None:
            raise Impossible("PRES needs images of the bare class, and none can be drawn here.")
        targets, members, store = style(dataset), evaluation.class_images(), feature_store(evaluation.cache)
        x, t = (unit(store.features(images, self.network)) for images in (members, targets))
        return Score(
            {"pres": float((x @ t.T).mean())}, {}, fingerprint(f"pres {self.version}", len(x), self.network, targets)
        )


class Div(Metric):
    """DIV: mean LPIPS between images of the same prompt and other seeds; higher is more diverse.

    The per-image value is its prompt's.
    """

    higher_is_better: ClassVar = {"div": True}
    quantities: ClassVar = {
        "div": Quantity(
            "Diversity within a prompt (DIV)",
            "mean d(y_i, y_j) over seeds of one prompt",
            "0 and above",
            "Ruiz et al. 2023",
            "LPIPS",
            heading="DIV",
        )
    }

    def __init__(self, network: PerceptualNetwork):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        """Impossible when no prompt has images of two seeds."""
        store = feature_store(evaluation.cache)
        found = mean_pair_distance(store, self.network, evaluation.images, evaluation.prompts)
        if np.isnan(found).all():
            raise Impossible("DIV needs at least two images of a prompt.")
        value = float(np.nanmean(found))
        return Score({"div": value}, {"div": found}, fingerprint(f"div {self.version}", len(found), self.network))
