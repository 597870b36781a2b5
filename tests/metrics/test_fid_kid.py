"""Frechet and kernel distances against closed forms, clean-fid, torchmetrics and a double loop."""

import numpy as np
import pytest
import scipy.linalg
from metric_cases import dataset, scenes

from bench.contracts import Impossible
from metrics.cmmd import gaussian
from metrics.fid import Fid, frechet_distance, frechet_null, trace_root
from metrics.kid import Kid, cubic, mmd2


def features(n, d, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    return np.maximum(rng.normal(size=(n, d)) @ np.diag(np.linspace(2, 0.1, d)) + shift, 0)


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
@pytest.mark.parametrize("n, m", [(20, 30), (30, 20), (200, 40), (300, 250), (16, 16)])
def test_frechet_agrees_with_clean_fid(n, m, parity):
    from cleanfid.fid import fid_from_feats

    x, y = features(n, 64, 0), features(m, 64, 1, 0.3)
    parity("clean-fid", "frechet_distance", frechet_distance(x, y), fid_from_feats(x, y), rtol=1e-5)


def test_frechet_of_gaussians_with_known_moments(parity):
    rng = np.random.default_rng(0)
    d = 8

    def exactly(n, mean, covariance):  # samples whose mean and unbiased covariance are the given ones
        z = rng.normal(size=(n, d))
        z -= z.mean(axis=0)
        z = z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / (n - 1))).T
        return z @ np.linalg.cholesky(covariance).T + mean

    a, b = (m @ m.T + np.eye(d) for m in rng.normal(size=(2, d, d)))
    mean_a, mean_b = rng.normal(size=(2, d))
    expected = np.square(mean_a - mean_b).sum() + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    found = frechet_distance(exactly(50, mean_a, a), exactly(70, mean_b, b))
    parity("closed form", "Frechet distance of Gaussians", found, expected, rtol=1e-9)


def test_both_routes_of_the_trace_agree_also_when_a_covariance_is_singular():
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(40, 30))
    wide[:, -1] = wide[:, 0]  # singular: Cholesky fails or nearly so
    other = rng.normal(size=(50, 30))
    nuclear = np.linalg.svd(wide @ other.T, compute_uv=False).sum()
    assert trace_root(wide, other) == pytest.approx(nuclear, rel=1e-6)
    assert trace_root(wide[:20], other) == pytest.approx(np.linalg.svd(wide[:20] @ other.T)[1].sum(), rel=1e-6)


def test_frechet_of_a_set_with_itself_is_zero_and_order_does_not_matter():
    x, y = features(30, 64, 0), features(25, 64, 1)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(x[::-1], y) == pytest.approx(frechet_distance(y, x), rel=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_frechet_and_kernel_agree_with_torchmetrics_on_the_same_features(parity):
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    class Identity(torch.nn.Module):
        num_features = 32

        def forward(self, x):
            return x

    x, y = features(60, 32, 0), features(60, 32, 1, 0.2)
    fid = FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
    kid = KernelInceptionDistance(feature=Identity(), subsets=1, subset_size=60)
    for metric in (fid, kid):
        metric.update(torch.from_numpy(y), real=True)
        metric.update(torch.from_numpy(x), real=False)
    parity("torchmetrics", "FID, injected network", frechet_distance(x, y), float(fid.compute()), rtol=1e-6)
    parity("torchmetrics", "KID, injected network", mmd2(x, y)[0], float(kid.compute()[0]), rtol=1e-4)


@pytest.mark.parametrize("n, m", [(60, 60), (20, 90)])
def test_frechet_and_kernels_agree_with_torch_fidelity(n, m, parity):
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kernel_poly, kernel_rbf
    from torch_fidelity.metric_kid import mmd2 as unbiased

    x, y = features(n, 32, 0), features(m, 32, 1, 0.2)
    moments = [fid_features_to_statistics(torch.from_numpy(z)) for z in (x, y)]
    expected = fid_statistics_to_metric(*moments, verbose=False)["frechet_inception_distance"]
    parity("torch-fidelity", "FID of features", frechet_distance(x, y), expected, rtol=1e-6)
    if n != m:
        return  # its MMD takes equal sizes
    options = {"kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}
    for ours, theirs, more in ((cubic, kernel_poly, options), (gaussian, kernel_rbf, {"kid_kernel_rbf_sigma": 10})):
        grams = (theirs(a, b, **more) for a, b in ((x, x), (x, y), (y, y)))
        found = mmd2(x, y, ours)[0]
        parity("torch-fidelity", f"unbiased MMD, {ours.__name__} kernel", found, unbiased(*grams), rtol=1e-9)


def test_kernel_agrees_with_clean_fid_when_its_subsets_are_the_sets(parity):
    from cleanfid.fid import kernel_distance

    np.random.seed(0)
    x, y = features(50, 32, 0), features(50, 32, 1, 0.2)
    parity("clean-fid", "kernel_distance", mmd2(x, y)[0], kernel_distance(x, y, num_subsets=2), rtol=1e-9)


def unbiased_double_loop(x, y):
    def k(a, b):
        return (a @ b / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_kernel_and_its_jackknife_agree_with_double_loops():
    x, y = features(7, 5, 0), features(9, 5, 1, 0.2)
    value, error = mmd2(x, y)
    assert value == pytest.approx(unbiased_double_loop(x, y), rel=1e-12)
    left_x = np.array([unbiased_double_loop(np.delete(x, i, 0), y) for i in range(7)])
    left_y = np.array([unbiased_double_loop(x, np.delete(y, j, 0)) for j in range(9)])
    variance = 6 / 7 * np.square(left_x - left_x.mean()).sum() + 8 / 9 * np.square(left_y - left_y.mean()).sum()
    assert error == pytest.approx(np.sqrt(variance), rel=1e-9)


def test_kernel_is_unbiased_and_its_error_covers():
    pool = np.random.default_rng(0).normal(size=(200, 2, 20, 8))
    found = np.array([mmd2(x, y) for x, y in pool])
    spread = found[:, 0].std()
    assert abs(found[:, 0].mean()) < 3 * spread / np.sqrt(200)
    assert (found[:, 0] < 0).any()  # a negative KID stays negative
    assert 0.9 < found[:, 1].mean() / spread < 2.0


def test_blocks_do_not_change_the_kernel_distance(monkeypatch):
    x, y = features(30, 8, 0), features(20, 8, 1)
    whole = mmd2(x, y)
    monkeypatch.setattr("metrics.kid.BLOCK", 7)
    assert mmd2(x, y) == pytest.approx(whole, rel=1e-12)


def test_the_null_is_a_part_of_the_asked_size_against_the_rest():
    """With rows that are unit vectors a split of n and m has a distance that does not depend on which rows it takes."""
    rows, n, m = 3.0 * np.eye(30), 10, 20
    value, size = frechet_null(rows, n)
    means = 9 * (1 / n + 1 / m)  # disjoint unit vectors: |mean x - mean y|^2, and covariances at right angles
    variances = 9 * (1 - 1 / n) * n / (n - 1) + 9 * (1 - 1 / m) * m / (m - 1)
    shared = frechet_distance(rows[:n], rows[n:])
    assert size == n and value == pytest.approx(shared, rel=1e-9) and 0 < value < means + variances
    assert frechet_null(rows, 100)[1] == 15
    assert np.isnan(frechet_null(rows[:3], 10)[0])


def test_the_null_is_what_images_of_the_right_distribution_score():
    rng = np.random.default_rng(0)
    draws = [frechet_distance(rng.normal(size=(12, 24)), rng.normal(size=(88, 24))) for _ in range(40)]
    nulls = [frechet_null(rng.normal(size=(100, 24)), 12)[0] for _ in range(20)]
    assert np.mean(nulls) == pytest.approx(np.mean(draws), rel=0.04)
    assert frechet_null(rng.normal(size=(1000, 24)), 500)[0] < np.mean(nulls) / 5  # another N, another bias


def test_scores_name_their_network_and_say_that_few_images_are_not_publishable(clip, evaluation):
    case = evaluation()
    fid, kid = Fid(clip).score(case), Kid(clip).score(case)
    assert set(fid.values) == set(Fid.higher_is_better) and set(kid.values) == set(Kid.higher_is_better)
    assert fid.fingerprint["network"] == "tiny-clip" and fid.fingerprint["publishable"] is False
    assert (fid.fingerprint["n"], fid.fingerprint["reference_n"], fid.fingerprint["null_n"]) == (8, 24, 8)
    x, y = (np.float64(clip(images)) for images in (case.images, case.dataset.reference_set()))
    x, y = ((z.T / np.sqrt((z * z).sum(axis=1))).T * np.sqrt(16) for z in (x, y))  # CLIP compares directions
    assert kid.values["kid"] == pytest.approx(1000 * unbiased_double_loop(x, y), rel=1e-4)
    assert fid.values["fid"] == pytest.approx(frechet_distance(x, y), rel=1e-4)
    assert fid.fingerprint["points"] == "unit length x sqrt(D)"


@pytest.mark.parametrize("metric", [Fid, Kid])
def test_one_image_is_refused_with_the_number_that_is_needed(metric, clip, evaluation):
    with pytest.raises(Impossible, match="needs at least 2 images on both sides, got 1 generated and 24 reference"):
        metric(clip).score(evaluation(images=scenes(1, 3), baseline=scenes(1, 4)))


def test_two_images_have_a_distance_beside_that_of_two_images_of_the_right_distribution(clip, evaluation):
    case = evaluation(images=scenes(2, 3), baseline=scenes(2, 4))
    fid, kid = Fid(clip).score(case), Kid(clip).score(case)
    assert fid.fingerprint["n"] == fid.fingerprint["null_n"] == 2 and fid.fingerprint["publishable"] is False
    assert np.isfinite([fid.values["fid"], fid.values["fid_null"], kid.values["kid"]]).all()
    x, y = (np.float64(clip(images)) for images in (case.images, case.dataset.reference_set()))
    x, y = ((z.T / np.sqrt((z * z).sum(axis=1))).T * np.sqrt(16) for z in (x, y))
    assert kid.values["kid"] == pytest.approx(1000 * unbiased_double_loop(x, y), rel=1e-4)


def test_without_a_reference_set_the_cell_is_told_why(clip, evaluation):
    case = evaluation(dataset=dataset(reference_set=None))
    with pytest.raises(Impossible, match="reference set, and the dataset sepia has none"):
        Fid(clip).score(case)
    with pytest.raises(Impossible, match="at least 2 images"):
        Kid(clip).score(evaluation(dataset=dataset(reference_set=lambda: np.zeros((1, 3, 64, 64), np.uint8))))
