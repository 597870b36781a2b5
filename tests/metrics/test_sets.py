"""CMMD, precision to coverage, Vendi and diversity against double loops, closed forms and torch-fidelity."""

import dataclasses

import numpy as np
import pytest
from metric_cases import dataset, scenes, sepia

from bench.contracts import Impossible
from metrics.cmmd import Cmmd, biased, gaussian
from metrics.diversity import Diversity
from metrics.features import FeatureStore, feature_store
from metrics.kid import mmd2
from metrics.perceptual import distances, mean_distances
from metrics.prdc import Prdc, density_coverage, precision_recall, radii, squared_distances
from metrics.vendi import Vendi, vendi


def cloud(n, d, seed, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


# --- CMMD --------------------------------------------------------------------------------------------------------


def test_cmmd_agrees_with_double_loops(parity):
    x, y = cloud(7, 5, 0), cloud(9, 5, 1, 0.3)

    def k(a, b):
        return np.exp(-np.square(a - b).sum() / 200)

    kxx, kyy, kxy = ([[k(a, b) for b in q] for a in p] for p, q in ((x, x), (y, y), (x, y)))
    with_self = np.mean(kxx) + np.mean(kyy) - 2 * np.mean(kxy)
    parity("double loop", "CMMD, biased", biased(x, y), with_self, rtol=1e-9)
    without = sum(np.sum(kk) - len(kk) for kk in (kxx,)) / 42 + (np.sum(kyy) - 9) / 72 - 2 * np.mean(kxy)
    parity("double loop", "CMMD, unbiased", mmd2(x, y, gaussian)[0], without, rtol=1e-9)


def test_biased_cmmd_agrees_with_torch_fidelity_and_is_zero_for_a_set_with_itself(parity):
    from torch_fidelity.metric_kid import kernel_rbf
    from torch_fidelity.metric_kid import mmd2 as theirs

    x, y = cloud(40, 8, 0), cloud(40, 8, 1, 0.3)
    grams = (kernel_rbf(a, b, kid_kernel_rbf_sigma=10) for a, b in ((x, x), (x, y), (y, y)))
    parity("torch-fidelity", "biased MMD, gaussian kernel", biased(x, y), theirs(*grams, mmd_est="biased"), rtol=1e-9)
    assert abs(biased(x, x)) < 1e-15


def test_the_unbiased_cmmd_is_centred_at_zero_and_the_biased_one_is_not():
    draws = [(cloud(20, 8, 2 * seed), cloud(20, 8, 2 * seed + 1)) for seed in range(200)]
    found = np.array([mmd2(x, y, gaussian)[0] for x, y in draws])
    error = found.std() / np.sqrt(200)
    assert abs(found.mean()) < 3 * error
    assert np.mean([biased(x, y) for x, y in draws]) > 20 * error


def test_cmmd_compares_directions_and_is_scaled_by_a_thousand(clip, evaluation):
    case = evaluation()
    score = Cmmd(clip).score(case)
    x, y = (np.float64(clip(images)) for images in (case.images, case.dataset.reference_set()))
    x, y = (z / np.sqrt((z * z).sum(axis=1, keepdims=True)) for z in (x, y))
    assert score.values["cmmd"] == pytest.approx(1000 * biased(x, y), rel=1e-4)
    assert score.values["cmmd_u"] == pytest.approx(1000 * mmd2(x, y, gaussian)[0], rel=1e-4)
    assert score.values["cmmd"] > score.values["cmmd_u"] and score.values["cmmd_u_se"] > 0
    assert score.fingerprint["network"] == "tiny-clip" and score.fingerprint["reference_n"] == 24


# --- precision, recall, density, coverage ------------------------------------------------------------------------


def four(x, y):
    yy, xy = squared_distances(y, y), squared_distances(x, y)
    return *precision_recall(squared_distances(x, x), yy, xy), *density_coverage(yy, xy)


def by_loops(x, y):
    """The definitions, word by word."""

    def reach(points, i, k):
        return sorted(np.linalg.norm(points[i] - points[j]) for j in range(len(points)) if j != i)[k - 1]

    def d(a, b):
        return np.linalg.norm(a - b)

    n, m = range(len(x)), range(len(y))
    y3, x3, y5 = [reach(y, j, 3) for j in m], [reach(x, i, 3) for i in n], [reach(y, j, 5) for j in m]
    precision = np.mean([any(d(x[i], y[j]) <= y3[j] for j in m) for i in n])
    recall = np.mean([any(d(x[i], y[j]) <= x3[i] for i in n) for j in m])
    density = sum(d(x[i], y[j]) < y5[j] for i in n for j in m) / (5 * len(x))
    coverage = np.mean([any(d(x[i], y[j]) < y5[j] for i in n) for j in m])
    return precision, recall, density, coverage


@pytest.mark.parametrize("n, m, shift", [(20, 20, 0.5), (12, 30, 1.0), (30, 9, 1.5)])
def test_the_four_numbers_agree_with_their_definitions_in_loops(n, m, shift, parity):
    x, y = cloud(n, 3, 0, shift), cloud(m, 3, 1)
    assert len(set(four(x, y))) > 2  # not all 0 or 1
    parity("double loop", "precision, recall, density, coverage", four(x, y), by_loops(x, y), atol=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_precision_and_recall_agree_with_torch_fidelity(shift, parity):
    import torch
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    x, y = cloud(80, 6, 0, shift), cloud(90, 6, 1)
    theirs = calculate_precision_recall_full(torch.from_numpy(x), torch.from_numpy(y), neighborhood=3)
    parity("torch-fidelity", "precision and recall", four(x, y)[:2], theirs, rtol=1e-6)


def test_density_and_coverage_agree_with_the_published_three_lines(parity):
    """Naeem et al. 2020, as their package `prdc` computes them."""
    x, y = cloud(60, 4, 0, 0.4), cloud(70, 4, 1)
    real, fake = y, x
    within = np.linalg.norm(real[:, None] - real[None], axis=2)
    radius = np.partition(within, 5, axis=1)[:, 5]  # the image itself is one of the six
    across = np.linalg.norm(real[:, None] - fake[None], axis=2)
    density = (1 / 5) * (across < radius[:, None]).sum(axis=0).mean()
    coverage = (across.min(axis=1) < radius).mean()
    parity("prdc's formulas", "density and coverage", four(x, y)[2:], (density, coverage), rtol=1e-12)


def test_equal_sets_cover_each_other_and_far_ones_do_not():
    x = cloud(40, 4, 0)
    precision, recall, density, coverage = four(x, x)
    assert (precision, recall, coverage) == (1, 1, 1) and density == pytest.approx(1, abs=0.3)
    assert four(x + 100, x) == (0, 0, 0, 0)


def test_distances_of_duplicates_are_small_beside_the_others():
    x = 50 + cloud(60, 512, 0)
    x[30:] = x[:30]
    found = squared_distances(x, x)
    assert found[np.arange(30), np.arange(30, 60)].max() < 1e-9 * np.median(found)
    assert radii(found, 1).max() < 1e-9 * np.median(found)


def test_few_images_are_not_publishable_and_fewer_are_impossible(clip, evaluation):
    score = Prdc(clip).score(evaluation())
    assert set(score.values) == set(Prdc.higher_is_better) and score.fingerprint["publishable"] is False
    plenty = evaluation(baseline=scenes(50, 7), dataset=dataset(reference_set=lambda: scenes(50, 8)))
    assert Prdc(clip).score(plenty).fingerprint["publishable"] is True
    with pytest.raises(Impossible, match="at least 6 images on both sides, got 5 generated and 24"):
        Prdc(clip).score(evaluation(baseline=scenes(5, 7)))


# --- Vendi -------------------------------------------------------------------------------------------------------


def test_vendi_of_copies_of_unrelated_and_of_clustered_images():
    assert vendi(np.ones((6, 4))) == pytest.approx(1)
    assert vendi(5 * np.eye(7)) == pytest.approx(7)
    assert vendi(np.repeat(np.eye(3), 4, axis=0)) == pytest.approx(3)  # three kinds of four
    weights = np.array([6, 2])
    expected = np.exp(-(weights / 8 * np.log(weights / 8)).sum())
    assert vendi(np.repeat(np.eye(2), weights, axis=0)) == pytest.approx(expected)


@pytest.mark.parametrize("n, d", [(12, 30), (40, 6)])
def test_vendi_agrees_with_its_published_formula(n, d, parity):
    x = cloud(n, d, 0, 0.5)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(unit @ unit.T / n)
    values = values[values > 1e-12]
    expected = np.exp(-(values * np.log(values)).sum())
    parity("vendi's formula", "Vendi score", vendi(x), expected, rtol=1e-9)


def test_the_relative_vendi_is_one_for_the_baseline_itself_and_less_for_one_image(clip, evaluation):
    baseline = scenes(8, 7)
    assert Vendi(clip).score(evaluation(images=baseline, baseline=baseline)).values["vendi_rel"] == 1
    score = Vendi(clip).score(evaluation(images=np.repeat(baseline[:1], 8, axis=0), baseline=baseline))
    assert score.values["vendi"] == pytest.approx(1) and score.values["vendi_rel"] < 1


# --- diversity ---------------------------------------------------------------------------------------------------


def test_the_mean_over_pairs_agrees_with_a_loop_over_pairs(alex, tmp_path, parity):
    images = scenes(19, 3)  # more than one batch of the trunk
    store = FeatureStore(tmp_path)
    first, second = np.triu_indices(19, 1)
    expected = distances(store, alex, images[first], images[second]).mean()
    parity(
        "double loop",
        "mean LPIPS over pairs",
        float(mean_distances(store, alex, images, [range(len(images))])[0]),
        expected,
        rtol=1e-5,
    )


def test_diversity_is_kept_and_relative_to_the_baseline(alex, evaluation, monkeypatch):
    case = evaluation()
    first = Diversity(alex).score(case)
    store = feature_store(case.cache)
    y, y0 = (mean_distances(store, alex, x, [range(len(x))])[0] for x in (case.images, case.baseline))
    assert first.values == {"lpips_diversity": y, "lpips_diversity_rel": y / y0} and y != y0
    monkeypatch.setattr(type(alex), "maps", lambda *_: pytest.fail("a known set passed through the trunk again"))
    assert Diversity(alex).score(case).values == first.values
    assert (
        Diversity(alex).score(evaluation(images=case.images, baseline=case.images)).values["lpips_diversity_rel"] == 1
    )


def test_one_image_has_no_diversity_and_copies_have_none_to_compare_with(alex, evaluation):
    same = np.repeat(scenes(1, 7), 4, axis=0)
    values = Diversity(alex).score(evaluation(images=scenes(4, 8), baseline=same)).values
    assert np.isnan(values["lpips_diversity_rel"]) or values["lpips_diversity_rel"] > 1e6
    with pytest.raises(Impossible, match="at least 2, got 1"):
        Diversity(alex).score(evaluation(baseline=scenes(1, 7)))


# --- together ----------------------------------------------------------------------------------------------------


def test_without_a_reference_set_each_says_so(clip, evaluation):
    case = evaluation(dataset=dataset(reference_set=None))
    for metric in (Cmmd(clip), Prdc(clip)):
        with pytest.raises(Impossible, match="needs a reference set, and the dataset sepia has none"):
            metric.score(case)


def test_the_right_style_is_closer_than_the_baseline(clip, evaluation):
    styled = evaluation(baseline=scenes(12, 7))
    plain = dataclasses.replace(styled, images=styled.baseline)
    assert np.array_equal(styled.images[0], sepia(plain.images[0]))
    assert Cmmd(clip).score(styled).values["cmmd_u"] < Cmmd(clip).score(plain).values["cmmd_u"] / 2
    assert Prdc(clip).score(styled).values["coverage"] > Prdc(clip).score(plain).values["coverage"]
