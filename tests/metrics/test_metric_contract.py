"""What every metric of conf/metrics promises, on the networks of `mini`, which ship with the repository.

A metric over a public network is given the one of `mini` of the same kind, so what is tested is its statistic; a judge
is given one whose answers are known.
`test_metric_walkthrough.py` shows that each test can fail. N images.
"""

import functools
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from rigged_judge import Rigged
from training_steps import global_random

from bench.contracts import Evaluation, Impossible, Score
from bench.data import loading, rendering, schema
from bench.mini import scenes
from bench.paths import CONF
from bench.settings import build
from metrics.networks import ImageNetwork, LpipsNet, OpenClip, PerceptualNetwork, VisionLanguage

STYLE, SUBJECT = "duotone", "dog"
SCENES, SEEDS = 5, 2
COPIES = "copies of training image"
NO_CONTEST = ("_se", "_null", "_gap")  # ends of ids that nobody wins in: errors, nulls, checks of the metric itself
ROUNDING = 1e-6  # relative


def cases():
    """Every metric of conf/metrics once for each class and its settings, as JSON."""
    found = {}
    for path in sorted((CONF / "metrics").glob("*.yaml")):
        for name, spec in (yaml.safe_load(path.read_text()) or {}).items():
            if name != "defaults":
                plain = {key: value for key, value in spec.items() if key != "network"}
                found.setdefault(json.dumps(plain, sort_keys=True), pytest.param(json.dumps(spec), id=name))
    return list(found.values())


metrics = pytest.mark.parametrize("case", cases())


@functools.cache
def built(case):
    """The metric, over the network of `mini` of the same kind; one of another kind stays as it is."""
    metric = build(json.loads(case))
    network = getattr(metric, "network", None)
    if hasattr(metric, "perceptual"):
        metric.perceptual = LpipsNet(
            name="lpips-alex-64", weights="bench/mini/weights/lpips/alexnet.safetensors", size=64
        )
    if isinstance(network, PerceptualNetwork):
        metric.network = LpipsNet(name="lpips-alex-64", weights="bench/mini/weights/lpips/alexnet.safetensors", size=64)
    elif isinstance(network, ImageNetwork):
        metric.network = OpenClip(name="mini-clip", model="bench/mini/weights/clip")
    elif isinstance(network, VisionLanguage):
        metric.network = Rigged()
    return metric


# --- sets of images ----------------------------------------------------------------------------------------------


@functools.cache
def drawn():
    """Scenes and captions; each caption has two pictures of the scene, one of them mirrored."""
    made = [scenes.sample_scene(np.random.default_rng(k), pairs=0.0) for k in range(SCENES)]
    images = np.stack([scenes.render(scene).transpose(2, 0, 1) for scene in made])
    return np.concatenate([images, images[..., ::-1]]), [scenes.plain_caption(scene) for scene in made] * SEEDS


@functools.cache
def a_dataset(subject):
    """A style with its function, pair and reference set; or a subject, three pictures of it."""
    spec = schema.describe(STYLE)
    few = {"references": 3, "auxiliary": 1, "reference_set": 12}
    dataset = loading.load({**spec, "rendered": {**spec["rendered"], **few}}, 64)
    if not subject:
        return dataset
    pictures = tuple(rendering._example(rendering._scene(7, rendering.PAIRS, k, only=[SUBJECT]), 64) for k in range(3))
    return replace(
        dataset, name="subject", style_words=None, noun=SUBJECT, pairs=(), references=pictures, oracle=None,
        auxiliary=(), reference_set=None,
    )  # fmt: skip


def sets(subject):
    """The right images, and sets that nobody wants: one image again and again, of the training, of noise, or grey."""
    dataset, (plain, _) = a_dataset(subject), drawn()
    shown = [dataset.references[0]] if subject else [dataset.pairs[0].content, dataset.pairs[0].style]
    noise = np.random.default_rng(0).integers(0, 256, plain[0].shape, np.uint8)
    once = {f"{COPIES} {i}": example.image for i, example in enumerate(shown)}
    once |= {"noise": noise, "grey": np.full_like(noise, 128)}
    right = plain if subject else np.stack([dataset.oracle(image) for image in plain])
    return {"right": right, **{name: np.repeat(image[None], len(plain), 0) for name, image in once.items()}}


def evaluation(images, subject=False, order=None, dataset=None):
    plain, captions = drawn()
    dataset = dataset or a_dataset(subject)
    rows = np.arange(len(plain)) if order is None else order
    prompts = [captions[row] for row in rows]
    return Evaluation(
        images=images[rows], baseline=plain[rows], prompts=prompts,
        full_prompts=[dataset.styled(prompt) for prompt in prompts], seeds=[int(row) // SCENES for row in rows],
        dataset=dataset, cache=Path(os.environ["BENCH_CACHE"]) / "metric_contract", class_images=lambda: images[rows],
    )  # fmt: skip


def scored(case, **changes):
    """The metric with its score of the right images, on a style or else on a subject; skipped where it gives none."""
    metric = built(case)
    if metric.missing():
        pytest.skip(metric.missing())
    reasons = []
    for subject in (False, True):
        try:
            return metric, subject, metric.score(evaluation(sets(subject)["right"], subject, **changes))
        except Impossible as reason:
            reasons.append(str(reason))
    pytest.skip(f"it gives no number for a style or a subject: {' '.join(dict.fromkeys(reasons))}")


# --- promises ----------------------------------------------------------------------------------------------------


@metrics
def test_it_gives_finite_numbers_under_declared_names(case):
    metric, _, score = scored(case)
    assert isinstance(score, Score) and score.values
    assert set(score.values) <= set(metric.higher_is_better), "a value without a direction"
    assert all(isinstance(value, float) and math.isfinite(value) for value in score.values.values())
    assert all(np.shape(column) == (SCENES * SEEDS,) for column in score.per_image.values())
    assert all(note.strip() for note in score.notes)
    assert str(score.fingerprint["metric"]).endswith(f" {metric.version}") and score.fingerprint["n"] > 0
    json.dumps(score.fingerprint)


@metrics
def test_the_order_of_the_images_does_not_matter(case):
    """Prompts, seeds and the baseline go along."""
    order = np.random.default_rng(3).permutation(SCENES * SEEDS)
    (_, _, straight), (_, _, mixed) = scored(case), scored(case, order=order)
    assert dict(mixed.values) == pytest.approx(dict(straight.values), rel=ROUNDING, abs=ROUNDING)
    for name, column in straight.per_image.items():
        np.testing.assert_allclose(mixed.per_image[name], np.asarray(column)[order], rtol=ROUNDING, atol=ROUNDING)


@metrics
def test_it_draws_nothing_from_a_global_random_state(case):
    _, _, first = scored(case)
    for seed in (1, 2):
        with global_random(seed):
            _, _, again = scored(case)
        assert dict(again.values) == dict(first.values), "the same images have another number the second time"


@metrics
def test_a_shifted_set_has_another_number(case):
    """The same images, brighter and with two channels exchanged."""
    metric, subject, score = scored(case)
    images = sets(subject)["right"]
    shifted = (images[:, [1, 0, 2]].astype(int) + 60).clip(0, 255).astype(np.uint8)
    other = metric.score(evaluation(shifted, subject))
    moved = [name for name, value in score.values.items() if other.values.get(name) != pytest.approx(value, rel=1e-3)]
    assert moved, "no number of it depends on the colours of the images"


@metrics
def test_its_directions_are_right(case):
    """Noise and grey are worse than the right images, judged by the one of them that a number tells apart best.

    A metric of copying need not mind those: it is judged by copies of training images, which others may like.
    """
    metric, subject, score = scored(case)
    unwanted = {name: images for name, images in sets(subject).items() if name != "right"}
    unwanted = {name: images for name, images in unwanted.items() if name.startswith(COPIES) == metric.copying}
    others = {name: metric.score(evaluation(images, subject)).values for name, images in unwanted.items()}
    told_apart = 0
    for name, right in score.values.items():
        gaps = {other: values[name] - right for other, values in others.items() if name in values}
        other = max(gaps, key=lambda key: abs(gaps[key]))
        if name.endswith(NO_CONTEST) or abs(gaps[other]) <= ROUNDING * max(1, abs(right)):
            continue
        told_apart += 1
        better = metric.higher_is_better.get(name) == (gaps[other] > 0)
        assert not better, f"{name} is {right:.3g} for the right images and {others[other][name]:.3g} for {other}"
    assert told_apart, f"no number of it tells the right images from {', '.join(others)}"


@metrics
def test_what_a_dataset_lacks_is_no_number(case):
    """A dataset without training images, reference set and controls: Impossible, or what can be had without them."""
    metric, _, _ = scored(case)
    bare = replace(a_dataset(False), pairs=(), references=(), reference_set=None, oracle=None, controls=())
    bare = replace(bare, control_captions=(), auxiliary=())
    try:
        score = metric.score(evaluation(drawn()[0], dataset=bare))
    except Impossible as reason:
        assert len(str(reason).split()) > 3, "the reason is no sentence"
    else:
        assert all(math.isfinite(value) for value in score.values.values())
