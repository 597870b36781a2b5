"""How much of the training picture's content reappears, in LPIPS, and how much of the baseline's content is kept.

d is LPIPS, d_n the same on luminance-standardised pictures; `metrics/leakage.py` defines the leak. The primary number
is `lpips_leak`, of d_n. Where a style destroys texture the controls do not take it out (an ink drawing is far from
every photograph), so a dataset that knows its style function S also gives `lpips_leak_styled`: the same with t_k for
c_k and S(u_j) for u_j, all in the style.
Shapes: N images, K training images, J controls.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from bench.contracts import Dataset, Evaluation, Impossible, Metric, Quantity, Score
from metrics.features import FeatureStore, feature_store, images_hash
from metrics.fingerprint import fingerprint
from metrics.leakage import Gaps, Sides, controls, defined, leak_scores, mean, mirror, over_training_images
from metrics.networks import PerceptualNetwork
from metrics.perceptual import DistancesTo, distances, mean_pair_distance
from metrics.training_images import Content, content, related

CONFOUNDED = "the dataset has no plain half, so the leak is measured to images in the style: read it with care."
STYLED = ("lpips_leak", "lpips_leak_frac", "lpips_leak_rate")  # also given against stylised pictures


def standardised_distances(
    store: FeatureStore, network: PerceptualNetwork, evaluation: Evaluation, sides: Sides
) -> tuple[Gaps, Gaps]:
    """d_n against training content and controls as they are, and mirrored: one trunk pass per picture."""
    k, j = len(sides.c), len(sides.u)
    references = np.concatenate([sides.c, sides.u, mirror(sides.c), mirror(sides.u)])
    to_all = DistancesTo(network, "phi_standardised", references)

    def rows(images: np.ndarray) -> np.ndarray:
        return store.features(images, to_all).astype(np.float64)  # (., 2 (K + J))

    ym, y0 = rows(evaluation.images), rows(evaluation.baseline)

    def side(start: int, t: np.ndarray) -> Gaps:
        c, u = slice(start, start + k), slice(start + k, start + k + j)
        return Gaps(ym[:, c], y0[:, c], np.diagonal(t[:, c]), ym[:, u], y0[:, u], t[:, u])

    return side(0, rows(sides.t)), side(k + j, rows(mirror(sides.t)))


class LpipsLeakage(Metric):
    """Content kept (`lpips_content`), the raw gap to the training picture, and the controlled leak (`lpips_leak`)."""

    version: ClassVar[int] = 2
    copying: ClassVar = True
    higher_is_better: ClassVar = {
        "lpips_content": False,
        "lpips_content_rel": False,
        "lpips_gap_raw": True,
        "lpips_leak_raw": False,
        "lpips_leak": False,
        "lpips_leak_frac": False,
        "lpips_leak_rate": False,
        "lpips_leak_max": False,
        "lpips_leak_related": False,
        "lpips_leak_styled": False,
        "lpips_leak_styled_frac": False,
        "lpips_leak_styled_rate": False,
    }
    quantities: ClassVar = {
        "lpips_content": Quantity(
            "Change of content",
            "mean d(y, y0)",
            "0 and above",
            "Gandikota et al. 2024 (LPIPS to the original image)",
            "LPIPS",
            "low, but 0 means that nothing was learned",
            heading="LPIPS to baseline",
        ),
        "lpips_content_rel": Quantity(
            "Change of content relative to another seed",
            "lpips_content / mean d between baseline images of one prompt",
            "0 and above",
            "this project",
            "ratio",
            "low; 1 is as far as another seed",
            heading="Relative change",
        ),
        "lpips_gap_raw": Quantity(
            "Uncontrolled gap to the training image",
            "mean d(y, c) - d(y0, c)",
            "no bounds",
            "this project; distance of Zhang et al. 2018",
            "LPIPS",
            "confounded by style: read lpips_leak",
            heading="LPIPS gap, raw",
        ),
        "lpips_leak_raw": Quantity(
            "Uncontrolled leak",
            "- lpips_gap_raw",
            "no bounds",
            "this project; distance of Zhang et al. 2018",
            "LPIPS",
            "confounded by style: read lpips_leak",
            heading="LPIPS leak, raw",
        ),
        "lpips_leak": Quantity(
            "Leakage of training content",
            "mean g(c), g(c) = [d_n(y0, c) - d_n(y, c)] - mean_u [d_n(y0, u) - d_n(y, u)]",
            "no bounds; positive is leakage",
            "this project; distance of Zhang et al. 2018",
            "LPIPS",
            "0",
            target=0.0,
            heading="LPIPS leak",
        ),
        "lpips_leak_frac": Quantity(
            "Leakage as a share of a full copy",
            "100 mean g(c) / mean g(c) of the training image itself",
            "up to about 100",
            "this project",
            "%",
            "0",
            target=0.0,
            heading="Leaked share",
        ),
        "lpips_leak_rate": Quantity(
            "Share of images that leak",
            "share of (y, c) with g(c) above the 95th percentile of g(u)",
            "0 to 1",
            "this project",
            "share",
            "0.05: the rate without leakage",
            target=0.05,
            heading="Leak rate",
        ),
        "lpips_leak_max": Quantity(
            "Worst leak",
            "99th percentile of max over c of g(c); the maximum below 100 images",
            "no bounds",
            "this project",
            "LPIPS",
            "0",
            heading="Worst leak",
        ),
        "lpips_leak_related": Quantity(
            "Leakage for prompts of the training class",
            "lpips_leak over prompts that name the noun of c",
            "no bounds",
            "this project",
            "LPIPS",
            "0",
            target=0.0,
            heading="LPIPS leak, own class",
        ),
        "lpips_leak_styled": Quantity(
            "Leakage measured inside the style",
            "lpips_leak with S(c) for c and S(u) for u",
            "no bounds",
            "this project",
            "LPIPS",
            "0",
            target=0.0,
            heading="LPIPS leak in style",
        ),
        "lpips_leak_styled_frac": Quantity(
            "The same as a share of a full copy",
            "as lpips_leak_frac",
            "up to about 100",
            "this project",
            "%",
            "0",
            target=0.0,
            heading="Leaked share in style",
        ),
        "lpips_leak_styled_rate": Quantity(
            "The same as a rate",
            "as lpips_leak_rate",
            "0 to 1",
            "this project",
            "share",
            "0.05: the rate without leakage",
            target=0.05,
            heading="Leak rate in style",
        ),
    }

    def __init__(self, network: PerceptualNetwork):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        """Impossible when the dataset has no training images; without eight controls the leak itself is absent."""
        store, dataset = feature_store(evaluation.cache), evaluation.dataset
        known = content(dataset)
        same_class = related(evaluation.prompts, known.nouns)
        values, per_image = self._content(store, evaluation)
        raw = self._raw(store, evaluation, known.plain, ~same_class)
        values |= {"lpips_gap_raw": -mean(raw), "lpips_leak_raw": mean(raw)}
        per_image["lpips_leak_raw"] = raw
        notes = [CONFOUNDED] if known.confounded else []
        try:
            found = self._leak(store, evaluation, known, same_class)
            values, per_image = values | found[0], per_image | found[1]
        except Impossible as reason:
            notes.append(f"lpips_leak left out: {reason}")
        values, undefined = defined(values)
        more = about(dataset, known.confounded, float(same_class.mean()))
        made = fingerprint(f"lpips_leakage {self.version}", len(raw), self.network, known.plain, **more)
        return Score(values, per_image, made, [*notes, *undefined])

    def _content(self, store: FeatureStore, evaluation: Evaluation) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """How far the images moved from the baseline, alone and in units of what another seed changes."""
        moved = distances(store, self.network, evaluation.images, evaluation.baseline)
        seeds = mean(mean_pair_distance(store, self.network, evaluation.baseline, evaluation.prompts))
        relative = float(moved.mean() / seeds) if seeds > 0 else float("nan")
        return {"lpips_content": float(moved.mean()), "lpips_content_rel": relative}, {"lpips_content": moved}

    def _leak(
        self, store: FeatureStore, evaluation: Evaluation, known: Content, same_class: np.ndarray
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """The leak of plain content, and of the stylised picture where the style can be laid over the controls too."""
        dataset, name = evaluation.dataset, STYLED[0]
        others = controls(dataset, name)

        def scores(sides: Sides) -> tuple[dict[str, float], dict[str, np.ndarray]]:
            gaps = standardised_distances(store, self.network, evaluation, sides)
            return leak_scores(*gaps, same_class, name)

        values, per_image = scores(Sides(known.plain, known.style, others))
        if dataset.oracle is None:
            return values, per_image
        more, rows = scores(Sides(known.style, known.style, np.stack([dataset.oracle(image) for image in others])))
        values |= {key.replace("leak", "leak_styled"): more[key] for key in STYLED}
        return values, per_image | {"lpips_leak_styled": rows[name]}

    def _raw(self, store: FeatureStore, evaluation: Evaluation, plain: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """E_k d(y0, c_k) - d(ym, c_k) per image, (N,)."""
        to_content = DistancesTo(self.network, "phi", plain)
        y0, ym = (store.features(x, to_content).astype(np.float64) for x in (evaluation.baseline, evaluation.images))
        return over_training_images(y0 - ym, kept)


def about(dataset: Dataset, confounded: bool, share_related: float) -> dict[str, Any]:
    """What else the leak depends on. The baseline is requested the content prompts, without words for the style."""
    found: dict[str, Any] = {"style_confounded": confounded, "related_share": share_related}
    found |= {"baseline": "content prompts", "controls": len(dataset.controls)}
    return found | ({"controls_hash": images_hash(dataset.controls)} if dataset.controls else {})
