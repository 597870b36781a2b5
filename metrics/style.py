"""Style similarity as a paired difference: generated images against the baseline's of the same prompt and seed.

Raw similarity to a style image is not calibrated (arXiv 2605.09030 finds whole artists inverted, for CSD, CLIP and
DINOv2 alike), and rewards copying it; read it next to `lpips_leak`. So each score comes with the discrimination gap of
its network on this style: how much nearer real pictures in the style lie to the training style images than the
baseline's do. Where the gap is not positive, the network does not see this style and the score is left out.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from bench.contracts import Dataset, Evaluation, Impossible, Metric, Quantity, Score
from metrics.features import FeatureStore, feature_store
from metrics.fingerprint import fingerprint
from metrics.networks import ImageNetwork, OpenClip, PerceptualNetwork, unit
from metrics.perceptual import DistancesTo
from metrics.training_images import style

IN_STYLE = 64  # pictures of the reference set that the gap is taken of
CHECK = "a check, not a score: at 0 or below, the score is left out"


class StyleMetric(Metric):
    """`higher_is_better` names the score and its gap."""

    network: ImageNetwork | PerceptualNetwork

    @abstractmethod
    def nearness(self, store: FeatureStore, images: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Similarity of uint8 images (N, 3, P, P) to each of the targets (K, 3, P, P), higher is nearer: (N, K)."""

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        """Impossible when the dataset has no images that show the style."""
        targets, store = style(evaluation.dataset), feature_store(evaluation.cache)
        name, gap_name = self.higher_is_better
        before = self.nearness(store, evaluation.baseline, targets)
        gain = (self.nearness(store, evaluation.images, targets) - before).mean(axis=1)
        gain = gain if self.higher_is_better[name] else -gain
        gap = self._gap(store, evaluation.dataset, targets, float(before.mean()))
        made = fingerprint(f"{name} {self.version}", len(gain), self.network, targets)
        if gap is None:
            note = f"{name} was not checked for discrimination: the dataset has one image in the style."
            return Score({name: float(gain.mean())}, {name: gain}, made, [note])
        if gap <= 0:
            reason = f"pictures in the style are no nearer to the training images than the baseline's (gap {gap:.3g})"
            return Score({gap_name: gap}, {}, made, [f"{name} left out: {reason}."])
        return Score({name: float(gain.mean()), gap_name: gap}, {name: gain}, made)

    def _gap(self, store: FeatureStore, dataset: Dataset, targets: np.ndarray, before: float) -> float | None:
        """Nearness of other pictures in the style less the baseline's; None where there are no other ones."""
        if dataset.reference_set is not None:
            return float(self.nearness(store, dataset.reference_set()[:IN_STYLE], targets).mean()) - before
        if len(targets) < 2:
            return None
        among = self.nearness(store, targets, targets)
        return float(among[~np.eye(len(targets), dtype=bool)].mean()) - before


class StyleGram(StyleMetric):
    """`style_gram`: mean Gram distance to the training style images minus the baseline's; negative is closer."""

    higher_is_better: ClassVar = {"style_gram": False, "style_gram_gap": True}
    quantities: ClassVar = {
        "style_gram": Quantity(
            "Change of the Gram distance to the style",
            "mean D(y, s) - mean D(y0, s), D the distance of Gram matrices",
            "no bounds; negative is closer",
            "Gatys et al. 2016",
            "Gram distance",
            heading="Gram distance gain",
        ),
        "style_gram_gap": Quantity(
            "Discrimination gap of style_gram",
            "mean D(y0, s) - mean D(r, s)",
            "no bounds",
            "this project",
            "Gram distance",
            CHECK,
            heading="Gram check",
        ),
    }

    def __init__(self, network: PerceptualNetwork):
        self.network: PerceptualNetwork = network

    def nearness(self, store: FeatureStore, images: np.ndarray, targets: np.ndarray) -> np.ndarray:
        to_style = DistancesTo(self.network, "gram", targets)
        return -np.sqrt(store.features(images, to_style).astype(np.float64))


def style_quantities(id: str, network: str, source: str) -> dict[str, Quantity]:
    """A style similarity and its discrimination gap as docs/metrics.md describes them."""
    gained, gap = "mean cos(f(y), f(s)) - mean cos(f(y0), f(s))", "mean cos(f(r), f(s)) - mean cos(f(y0), f(s))"
    bounds, unit, truth = "-200 to 200", "100 x cosine", "the value of the method oracle"
    return {
        id: Quantity(
            f"Style similarity gained, {network}",
            gained,
            bounds,
            f"{source}; as a difference: this project",
            unit,
            truth,
            f"{network} style gain",
        ),
        f"{id}_gap": Quantity(
            f"Discrimination gap of {id}", gap, bounds, "this project", unit, CHECK, f"{network} style check"
        ),
    }


class StyleSimilarity(StyleMetric):
    """100 x mean cosine to the training style images minus the baseline's; positive is closer."""

    def __init__(self, network: ImageNetwork):
        self.network: ImageNetwork = network

    def nearness(self, store: FeatureStore, images: np.ndarray, targets: np.ndarray) -> np.ndarray:
        x, t = (unit(store.features(pictures, self.network)) for pictures in (images, targets))
        return 100 * x @ t.T


class StyleClip(StyleSimilarity):
    """Style similarity in the features of the image tower of a CLIP."""

    higher_is_better: ClassVar = {"style_clip": True, "style_clip_gap": True}
    quantities: ClassVar = style_quantities("style_clip", "CLIP", "Radford et al. 2021")


class StyleCsd(StyleSimilarity):
    """Style similarity in the features of CSD (Somepalli et al. 2024, arXiv 2404.01292)."""

    higher_is_better: ClassVar = {"style_csd": True, "style_csd_gap": True}
    quantities: ClassVar = style_quantities("style_csd", "CSD", "Somepalli et al. 2024")


class StyleDreamsim(StyleSimilarity):
    """Style similarity in the features of DreamSim (Fu et al. 2023, arXiv 2306.09344)."""

    higher_is_better: ClassVar = {"style_dreamsim": True, "style_dreamsim_gap": True}
    quantities: ClassVar = style_quantities("style_dreamsim", "DreamSim", "Fu et al. 2023")


class RawCsd(Metric):
    """Raw cosine of CSD's style descriptors to the training style images, as papers print it, whatever its gap says.

    It is not calibrated and rewards copies (arXiv 2605.09030): read it beside `style_csd_gap` and `lpips_leak`.
    """

    higher_is_better: ClassVar = {"csd": True}
    quantities: ClassVar = {
        "csd": Quantity(
            "Style similarity, CSD (raw)",
            "mean cos(f(y), f(s))",
            "-1 to 1",
            "protocol of Somepalli et al. 2024: cosine of style descriptors",
            "cosine",
            heading="CSD",
        )
    }

    def __init__(self, network: ImageNetwork):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        """Impossible for a subject, and without images that show the style."""
        of_a_style(evaluation.dataset)
        targets = style(evaluation.dataset)
        cosines = to_style(feature_store(evaluation.cache), self.network, evaluation.images, targets)
        made = fingerprint(f"csd {self.version}", len(cosines), self.network, targets)
        return Score({"csd": float(cosines.mean())}, {"csd": cosines}, made)


class TextStyle(Metric):
    """Harmonic mean of agreement with the prompt and similarity to the style images, both in one CLIP.

    A copy of a training image has all of the style and little of the prompt, so it does not win. Papers of 2025 and
    2026 print the harmonic mean of their two columns; here it is taken for each image and averaged, so that it has an
    interval, which gives no more than theirs. Cosines below 0 count as 0.
    """

    higher_is_better: ClassVar = {"text_style": True}
    quantities: ClassVar = {
        "text_style": Quantity(
            "Harmonic mean of text and style, CLIP",
            "100 mean 2 a b / (a + b), a = max(cos(f(y), T(q)), 0), b = max(mean cos(f(y), f(s)), 0)",
            "0 to 100",
            "this project, after the harmonic mean of CLIP-T and CLIP-I (Ruiz et al. 2023) in later papers",
            "100 x cosine",
            heading="Text and style",
        )
    }

    def __init__(self, network: OpenClip):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        """Impossible for a subject, and without images that show the style."""
        of_a_style(evaluation.dataset)
        targets, store = style(evaluation.dataset), feature_store(evaluation.cache)
        images, texts = store.features(evaluation.images, self.network), store.texts(evaluation.prompts, self.network)
        a = (unit(images) * unit(texts)).sum(axis=1).clip(min=0)
        b = to_style(store, self.network, evaluation.images, targets).clip(min=0)
        both = np.divide(200 * a * b, a + b, out=np.zeros_like(a), where=a + b > 0)
        made = fingerprint(f"text_style {self.version}", len(both), self.network, targets)
        return Score({"text_style": float(both.mean())}, {"text_style": both}, made)


def of_a_style(dataset: Dataset) -> None:
    """Raises Impossible for a subject."""
    if dataset.style_words is None:
        raise Impossible(f"{dataset.name} is a subject, not a style.")


def to_style(store: FeatureStore, network: ImageNetwork, images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Mean cosine of each image (N, 3, P, P) to the targets (K, 3, P, P): (N,)."""
    x, t = (unit(store.features(pictures, network)) for pictures in (images, targets))
    return (x @ t.T).mean(axis=1)
