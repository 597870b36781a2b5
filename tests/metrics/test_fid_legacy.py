"""The older recipes of FID against the programs that they are named after."""

import numpy as np
import pytest
import torch
from metric_cases import scenes

from bench.contracts import BenchError
from metrics.fd_dinov2 import FdDinov2
from metrics.fid import Fid
from metrics.fid_legacy import RECIPES, FidLegacyTf, FidLegacyTorch, LegacyInception, legacy_tf, legacy_torch
from metrics.networks import Inception

SIZES = [(64, 64), (512, 512), (350, 230)]


def noise(size):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, *size), dtype=np.uint8))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", SIZES)
def test_the_recipe_of_torch_is_that_of_clean_fids_legacy_pytorch(size, parity):
    import warnings

    from cleanfid.resize import build_resizer

    with warnings.catch_warnings():  # it silences the whole process
        resize = build_resizer("legacy_pytorch")
    image = noise(size)
    theirs = 2 * torch.from_numpy(resize(image[0].permute(1, 2, 0).numpy())) / 255 - 1
    ours = legacy_torch(image)[0].permute(1, 2, 0)
    parity("clean-fid", "legacy_pytorch resizer, of [-1, 1]", ours, theirs, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_the_recipe_of_tensorflow_is_a_loop_over_its_formula(size, parity):
    """Pixel (y, x) of the output reads place (y h / 299, x w / 299) of the input, between its four neighbours."""
    image = noise(size)
    pixels, (h, w) = image[0].double().numpy(), size
    found = legacy_tf(image)[0].numpy() * 128 + 128
    for y, x in [(0, 0), (298, 298), (298, 0), (150, 201), (77, 13), (299 - 2, 150)]:
        top, left = np.float32(y) * np.float32(h / 299), np.float32(x) * np.float32(w / 299)
        y0, x0 = int(top), int(left)
        y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
        upper = pixels[:, y0, x0] + (pixels[:, y0, x1] - pixels[:, y0, x0]) * (left - x0)
        lower = pixels[:, y1, x0] + (pixels[:, y1, x1] - pixels[:, y1, x0]) * (left - x0)
        parity(
            "double loop",
            "TensorFlow 1 resizer, grey levels",
            found[:, y, x],
            upper + (lower - upper) * (top - y0),
            atol=1e-3,
        )


def test_at_299_pixels_nothing_is_resized_and_only_the_normalisation_differs():
    image = noise((299, 299))
    torch.testing.assert_close(legacy_tf(image), (image.float() - 128) / 128, atol=1e-6, rtol=0)
    torch.testing.assert_close(legacy_torch(image), 2 * image.float() / 255 - 1, atol=1e-6, rtol=0)


def test_each_recipe_feeds_the_network_in_its_own_way(inception_file, parity):
    """On random weights; torch-fidelity resizes as TensorFlow does."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    weights, image = str(inception_file), scenes(1, 4)
    tf, torch_ = (LegacyInception(name=x, preprocessing=x, weights=weights, device="cpu") for x in RECIPES)
    clean = Inception(weights=weights, device="cpu")
    assert len({clean.id, tf.id, torch_.id}) == 3 and tf.weights_sha256 == clean.weights_sha256
    theirs = FeatureExtractorInceptionV3("oracle", ["2048"], feature_extractor_weights_path=weights)
    expected = theirs(torch.from_numpy(image))[0].numpy()
    parity("torch-fidelity", "Inception pool3 of a resized image", tf(image), expected, atol=1e-4)
    for other in (torch_, clean):
        assert np.abs(other(image) - expected).max() > 1e-3


@pytest.mark.parametrize("metric", [FidLegacyTf, FidLegacyTorch, FdDinov2])
def test_each_has_its_own_column(metric, clip, evaluation):
    case = evaluation()
    score, same = metric(clip).score(case), Fid(clip).score(case)
    assert set(score.values) == set(metric.higher_is_better) and not set(score.values) & set(same.values)
    assert list(score.values.values()) == list(same.values.values())  # on the same network
    assert score.fingerprint["metric"] != same.fingerprint["metric"]


def test_an_unknown_recipe_is_refused():
    with pytest.raises(BenchError, match="there are legacy_tf, legacy_torch"):
        LegacyInception(name="x", preprocessing="clean")
