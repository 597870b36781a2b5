"""The second opinion: the packages' numbers on our networks agree with our columns, and need neither hub nor luck."""

from dataclasses import replace

import numpy as np
import pytest
from metric_cases import dataset, scenes, sepia

from bench.contracts import Impossible
from bench.mini import scenes as drawings
from metrics.clip_score import ClipScore
from metrics.fid import Fid
from metrics.kid import Kid
from metrics.library_scores import CleanFid, LpipsPackage, TorchmetricsClipScore, TorchmetricsLpips, TorchmetricsSets
from metrics.lpips_leakage import LpipsLeakage
from metrics.networks import Inception, LpipsNet, OpenClip
from metrics.second_opinion import Agrees

MINI_CLIP = OpenClip(name="mini-clip", model="bench/mini/weights/clip")
ALEX = LpipsNet(name="lpips-alex-64", weights="bench/mini/weights/lpips/alexnet.safetensors", size=64)


def values(metric, case):
    return dict(metric.score(case).values)


@pytest.fixture
def equal_sizes(evaluation):
    """As many generated as reference images: then every subset of KID is the whole set, and its mean is exact."""
    return evaluation(dataset=dataset(reference_set=lambda: np.stack([sepia(image) for image in scenes(8, 102)])))


@pytest.mark.parametrize("package", [TorchmetricsSets, CleanFid])
def test_sets_agree_on_a_network_with_its_own_preprocessing(package, equal_sizes, parity):
    theirs, kid = values(package(MINI_CLIP), equal_sizes), values(Kid(MINI_CLIP), equal_sizes)["kid"]
    fid = values(Fid(MINI_CLIP), equal_sizes)["fid"]
    end = package.package.replace("-", "")
    parity(package.package, "KID on CLIP, equal sizes", kid, theirs[f"kid_{end}"], rtol=1e-6)
    parity(package.package, "FID on CLIP", fid, theirs[f"fid_{end}"], rtol=1e-3)


@pytest.mark.slow
def test_clean_fid_resizes_for_inception_itself(inception_file, equal_sizes, parity):
    """Its Pillow resizing against ours by torch; the layers are the same. Its square root of a singular matrix is
    rough, so FID agrees less than KID."""
    network = Inception(weights=str(inception_file), name="random-inception", device="cpu")
    theirs = values(CleanFid(network), equal_sizes)
    parity("clean-fid", "KID on Inception", values(Kid(network), equal_sizes)["kid"], theirs["kid_cleanfid"], rtol=1e-3)
    parity("clean-fid", "FID on Inception", values(Fid(network), equal_sizes)["fid"], theirs["fid_cleanfid"], rtol=1e-2)


@pytest.mark.parametrize("package", [LpipsPackage, TorchmetricsLpips])
def test_lpips_agrees_image_by_image(package, evaluation, parity):
    case = evaluation()
    theirs = package(ALEX).score(case)
    ours = LpipsLeakage(ALEX).score(case)
    (column,) = package.same_as
    parity(package.__name__, "LPIPS", ours.per_image["lpips_content"], theirs.per_image[column], atol=1e-5)


def test_clip_score_agrees_where_it_is_positive_and_is_clipped_below(evaluation, parity):
    made = [drawings.sample_scene(np.random.default_rng(k), pairs=0.0) for k in range(4)]
    captioned = {
        "images": np.stack([drawings.render(scene).transpose(2, 0, 1) for scene in made]),
        "prompts": [drawings.plain_caption(scene) for scene in made],
    }
    cases = [evaluation(**captioned), evaluation(prompts=["a dog"] * 8)]
    ours = np.array([values(ClipScore(MINI_CLIP), case)["clip_t"] for case in cases])
    theirs = [values(TorchmetricsClipScore(MINI_CLIP), case)["clip_t_torchmetrics"] for case in cases]
    assert ours[1] < 0 < ours[0], "the cases are not one of each sign"
    parity("torchmetrics", "CLIPScore", ours.clip(min=0), theirs, atol=1e-3)


@pytest.mark.parametrize("package", [TorchmetricsSets, CleanFid])
def test_subsets_are_drawn_from_a_fixed_seed_around_our_value(package, evaluation):
    """8 generated against 24 reference images: a subset is a part, so the value is near ours and always the same."""
    case, end = evaluation(), package.package.replace("-", "")
    first, again = (values(package(MINI_CLIP), case)[f"kid_{end}"] for _ in range(2))
    ours = values(Kid(MINI_CLIP), case)
    assert first == again != ours["kid"]
    assert first == pytest.approx(ours["kid"], abs=2 * ours["kid_se"])


def test_a_fingerprint_names_package_and_our_column(evaluation):
    made = LpipsPackage(ALEX).score(evaluation()).fingerprint
    assert made["engine"].startswith("lpips 0.") and made["same_as"] == {"lpips_content_lpips": "lpips_content"}


def test_missing_weights_are_one_sentence(tmp_path):
    lacking = LpipsPackage(LpipsNet(weights=str(tmp_path / "none.safetensors")))
    assert str(tmp_path / "none.safetensors") in lacking.missing()


@pytest.mark.parametrize("package", [TorchmetricsSets, CleanFid])
def test_sets_need_a_reference_set(package, evaluation):
    with pytest.raises(Impossible, match="needs a reference set"):
        package(MINI_CLIP).score(evaluation(dataset=dataset(reference_set=None)))


def test_the_doctor_tells_a_package_that_disagrees():
    class Other(LpipsLeakage):
        def score(self, evaluation):
            made = super().score(evaluation)
            return replace(made, values=dict(made.values) | {"lpips_content": 1.001 * made.values["lpips_content"]})

    assert Agrees(LpipsPackage(ALEX), [LpipsLeakage(ALEX)], 1e-4).run()[0]
    assert not Agrees(LpipsPackage(ALEX), [Other(ALEX)], 1e-4).run()[0]
