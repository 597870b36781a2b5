"""What prompts add to numbers of sets, against the metrics themselves without each prompt, and a paired jackknife."""

import dataclasses

import numpy as np
import pytest
from metric_cases import dataset, scenes, sepia

from metrics.cmmd import Cmmd
from metrics.diversity import Diversity
from metrics.fid import Fid
from metrics.jackknife import codes, per_prompt, spread_out, standard_error
from metrics.kid import Kid, mmd2_of
from metrics.oracle import Oracle, OracleClip
from metrics.prdc import Prdc
from metrics.vendi import Vendi

PROMPTS = ["a dog", "a hut", "a dog", "a cup", "a hut", "a cup", "a sea", "a sea", "a fox", "a fox"]


@pytest.fixture
def case(evaluation):
    baseline = scenes(len(PROMPTS), 7)
    images = np.stack([sepia(image) for image in baseline])
    images[::3] = 255 - images[::3]
    known = dataset(oracle=sepia)
    return evaluation(images, baseline, prompts=PROMPTS, full_prompts=PROMPTS, seeds=[0] * len(PROMPTS), dataset=known)


def without(case, prompt):
    """The evaluation that never had a prompt."""
    rows = [i for i, name in enumerate(case.prompts) if name != prompt]
    lists = {name: [getattr(case, name)[i] for i in rows] for name in ("prompts", "full_prompts", "seeds")}
    return dataclasses.replace(case, images=case.images[rows], baseline=case.baseline[rows], **lists)


def metrics(clip, alex):
    yield from (Kid(clip), Cmmd(clip), Fid(clip), Vendi(clip), Prdc(clip), OracleClip(clip))
    yield from (Diversity(alex), Oracle(alex))


def test_the_number_without_a_prompt_is_what_the_metric_gives_without_it(clip, alex, case):
    names = list(dict.fromkeys(PROMPTS))
    seen = set()
    for metric in metrics(clip, alex):
        whole, parts = metric.score(case), [metric.score(without(case, name)) for name in names]
        for key, each in whole.per_prompt.items():
            left = np.array([part.values[key] for part in parts])
            expected = whole.values[key] + (len(names) - 1) * (left.mean() - left)
            found = [each[PROMPTS.index(name)] for name in names]
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6 + 1e-3 * np.abs(expected).max())
            assert each.mean() == pytest.approx(whole.values[key], rel=1e-9, abs=1e-12)
            seen.add(key)
    shares = {"gap_closed_rgb", "gap_closed_lpips", "gap_closed_clip"}
    diverse = {"lpips_diversity", "lpips_diversity_rel", "vendi", "vendi_rel"}
    assert seen == shares | diverse | {"kid", "cmmd", "cmmd_u", "fid", "precision", "recall", "density", "coverage"}


def test_the_error_of_a_difference_is_that_of_the_paired_jackknife(clip, case):
    """Delete the same prompt from both rows: the values' differences have that standard error."""
    other = dataclasses.replace(case, images=case.baseline)
    for metric, key in ((Kid(clip), "kid"), (Fid(clip), "fid")):
        apart = metric.score(case).per_prompt[key] - metric.score(other).per_prompt[key]
        each = np.array([apart[PROMPTS.index(name)] for name in dict.fromkeys(PROMPTS)])
        names = list(dict.fromkeys(PROMPTS))
        left = [
            metric.score(without(case, name)).values[key] - metric.score(without(other, name)).values[key]
            for name in names
        ]
        assert each.std(ddof=1) / np.sqrt(len(each)) == pytest.approx(standard_error(np.array(left)), rel=1e-3)


def test_kid_se_is_over_prompts_and_reference_images():
    """Two copies of each image say no more than one: the error over images would be too small by sqrt(2)."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(40, 6)), draw.normal(size=(4000, 6))
    noise = 1e-6 * draw.normal(size=(80, 6))
    twice = np.repeat(x, 2, axis=0) + noise
    clustered = mmd2_of(twice, y, np.repeat(np.arange(40), 2))
    single = mmd2_of(twice, y, np.arange(80))
    assert 1.2 < clustered.error / single.error < 1.6


def test_for_a_mean_the_jackknife_is_the_mean_of_each_prompt():
    values = np.array([1.0, 5.0, 2.0, 8.0, 3.0, 3.5])
    prompts = ["a", "a", "b", "b", "c", "c"]
    found = per_prompt({"m": values.mean()}, prompts, lambda keep: {"m": values[keep].mean()})["m"]
    np.testing.assert_allclose(found, np.repeat([3.0, 5.0, 3.25], 2))


def test_one_prompt_and_a_large_set_have_none():
    ones = np.ones(4)
    assert per_prompt({"m": 1.0}, ["a"] * 4, lambda keep: {"m": 1.0}) == {}
    assert per_prompt({"m": 1.0}, list("abcd"), lambda keep: {"m": 1.0}, others=10**9) == {}
    assert per_prompt({"m": 1.0}, list("abcd"), lambda keep: {"m": float("nan")}) == {}
    assert codes(["b", "a", "b"]).tolist() == [0, 1, 0]
    assert spread_out(2.0, np.array([1.0, 3.0]), np.array([0, 1, 1])).mean() == 2.0 and ones.any()
