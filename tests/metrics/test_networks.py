"""Extractors against the libraries they borrow from, on the same random weights."""

import sys
import warnings

import numpy as np
import pytest
import torch
from metric_cases import scenes

from bench.contracts import BenchError
from bench.paths import ROOT
from metrics.csd import Csd
from metrics.dino import Vit
from metrics.features import FeatureStore
from metrics.networks import Inception, LpipsNet, MiniPerceptual, OpenClip, lpips, open_clip, resize_clean
from metrics.perceptual import DistancesTo, distances, gram, phi, standardise


@pytest.fixture
def images():
    return scenes(6, 3)


# --- preprocessing -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize("size", [(64, 64), (512, 512), (350, 230)])
def test_clean_resizing_agrees_with_clean_fid_pixel_by_pixel(size):
    from cleanfid.resize import build_resizer

    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    ours = resize_clean(torch.from_numpy(image).permute(2, 0, 1)[None], 299)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(ours, build_resizer("clean")(image), atol=1e-2)
    assert ours.min() >= 0 and ours.max() <= 255


# --- OpenCLIP ----------------------------------------------------------------------------------------------------


def test_clip_features_are_those_of_open_clip_itself(clip, clip_folder, images, record_property):
    import open_clip
    from PIL import Image

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip_folder}")
    texts = ["a photo of a dog", "a red house"]
    with torch.inference_mode():
        batch = torch.stack([transform(Image.fromarray(image.transpose(1, 2, 0))) for image in images])
        expected = model.eval().encode_image(batch).numpy()
        expected_text = model.encode_text(tokenizer(texts)).numpy()
    apart = [np.abs(clip(images) - expected).max(), np.abs(clip.embed_text(texts) - expected_text).max()]
    record_property("largest difference, open_clip", float(max(apart)))
    assert max(apart) < 1e-5 and expected.std() > 0.01


def test_an_open_clip_file_is_loaded_by_architecture_and_path(clip, clip_folder, images, tmp_path):
    import json

    import open_clip

    config = json.loads((clip_folder / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "tiny-test-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    named = OpenClip(
        name="file", model="tiny-test-clip", weights=str(clip_folder / "open_clip_model.safetensors"), device="cpu"
    )
    np.testing.assert_allclose(named.embed_text(["a dog"]), clip.embed_text(["a dog"]), atol=1e-6)
    assert named.id != clip.id and named.weights_sha256 == clip.weights_sha256


def test_truncated_captions_are_counted_and_keep_their_end_token(clip):
    words = "red blue green house dog cat tree car ball lamp".split()
    exact, long, other = (" ".join(words * 5).split()[:n] for n in (22, 23, 40))  # 22 words and 2 marks fill 24
    assert clip.truncated([" ".join(exact)]) == 0
    assert clip.truncated([" ".join(text) for text in (exact, long, other)]) == 2
    first, second = clip.embed_text(["dog " * 40, "house " * 40])
    assert not np.allclose(first, second, atol=1e-3)


def test_equal_networks_share_one_model_and_the_id_follows_the_weights(clip, clip_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    twin = OpenClip(name="tiny-clip", model=str(clip_folder), device="cpu")
    assert open_clip._load_clip(twin)[0] is open_clip._load_clip(clip)[0]
    (tmp_path / "open_clip_config.json").write_bytes((clip_folder / "open_clip_config.json").read_bytes())
    state = load_file(clip_folder / "open_clip_model.safetensors")
    save_file(state | {"logit_scale": state["logit_scale"] + 1}, tmp_path / "open_clip_model.safetensors")
    assert OpenClip(name="tiny-clip", model=str(tmp_path)).id != twin.id


def test_loading_leaves_the_global_random_state_alone(clip_folder, alex_file):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    open_clip._load_clip(OpenClip(name="again", model=str(clip_folder), device="cpu"))
    lpips._load_lpips(LpipsNet(name="again", weights=str(alex_file), device="cpu"))
    assert torch.equal(before, torch.get_rng_state())


# --- Inception ---------------------------------------------------------------------------------------------------


def test_inception_agrees_with_torch_fidelity_where_nothing_is_resized(inception_file, record_property):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    images = scenes(2, 4, 299)
    oracle = FeatureExtractorInceptionV3("oracle", ["2048"], feature_extractor_weights_path=str(inception_file))
    expected = oracle(torch.from_numpy(images))[0].numpy()
    found = Inception(weights=str(inception_file), device="cpu")(images)
    record_property("largest difference, torch-fidelity Inception", float(np.abs(found - expected).max()))
    assert found.shape == (2, 2048) and expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_another_networks_file_is_refused_as_inception(tmp_path):
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(BenchError, match="do not fit"):
        Inception(weights=str(tmp_path / "other.pth"), device="cpu")(scenes(1, 0))


# --- LPIPS -------------------------------------------------------------------------------------------------------


def test_distances_agree_with_the_lpips_package(alex, alex_file, images, tmp_path, record_property):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its torchvision arguments are deprecated
        import lpips

        oracle = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    _give_trunk(oracle.net, alex_file)
    x = torch.from_numpy(images).float() / 127.5 - 1
    with torch.inference_mode():
        expected = oracle(x[:3], x[3:]).flatten().numpy()
    found = distances(FeatureStore(tmp_path), alex, images[:3], images[3:])
    record_property("largest difference, lpips", float(np.abs(found - expected).max()))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert expected.min() > 0.01


def _give_trunk(net, alex_file):
    """Copy torchvision's `features.N` into the slices of the libraries' trunks, which keep the numbers as names."""
    state = torch.load(alex_file, weights_only=True)
    layers = {number: layer for k in range(1, 6) for number, layer in getattr(net, f"slice{k}").named_children()}
    for name, value in state.items():
        _, number, kind = name.split(".")
        getattr(layers[number], kind).data.copy_(value)


def test_distances_agree_with_torchmetrics_at_another_resolution(alex_file, images, tmp_path, record_property):
    from torchmetrics.functional.image.lpips import _LPIPS

    big = LpipsNet(weights=str(alex_file), name="random-alex-96", size=96, device="cpu")
    oracle = _LPIPS(pretrained=True, net="alex", pnet_rand=True, eval_mode=True)
    _give_trunk(oracle.net, alex_file)
    x = resize_clean(torch.from_numpy(images), 96) / 127.5 - 1
    with torch.inference_mode():
        expected = oracle(x[:3], x[3:]).flatten().numpy()
    found = distances(FeatureStore(tmp_path), big, images[:3], images[3:])
    record_property("largest difference, torchmetrics LPIPS", float(np.abs(found - expected).max()))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_distances_to_references_agree_with_pairs(alex, images, tmp_path):
    store = FeatureStore(tmp_path)
    found = store.features(images[:4], DistancesTo(alex, "phi", images[4:]))
    for row in range(4):
        for column in range(2):
            pair = distances(store, alex, images[row : row + 1], images[4 + column : 5 + column])
            assert found[row, column] == pytest.approx(pair[0], rel=1e-5)


def test_the_embedding_reproduces_the_distance_and_is_zero_for_equal_images(alex, images, tmp_path):
    layers = phi(alex, torch.from_numpy(images).float())
    direct = sum(float((layer[0] - layer[1]).double().square().sum()) for layer in layers)
    pair = distances(FeatureStore(tmp_path), alex, images[:2], images[[1, 1]])
    assert pair[0] == pytest.approx(direct, rel=1e-5) and pair[1] == 0


def test_gram_matrices_agree_with_a_loop_over_places(alex, images):
    x = torch.from_numpy(images[:2]).float()
    maps = alex.maps(x)
    for layer, found in zip(maps, gram(alex, x), strict=True):
        rows = layer[1].flatten(1)
        expected = sum(torch.outer(rows[:, place], rows[:, place]) for place in range(rows.shape[1])) / rows.shape[1]
        torch.testing.assert_close(found[1].reshape(expected.shape) * len(maps) ** 0.5, expected, rtol=1e-4, atol=1e-6)


def test_standardised_images_lose_colour_and_contrast_but_not_structure(images):
    x = torch.from_numpy(images).float() * 0.5 + 60
    found = standardise(x)
    assert torch.equal(found[:, 0], found[:, 2])
    weaker = standardise(x * 0.5 + 30)
    torch.testing.assert_close(found, weaker, atol=1e-2, rtol=0)
    inner = found[(found.amin((1, 2, 3)) > 0) & (found.amax((1, 2, 3)) < 255)]
    assert len(inner) > 0
    torch.testing.assert_close(inner.mean((1, 2, 3)), torch.full((len(inner),), 128.0), atol=1e-2, rtol=0)
    torch.testing.assert_close(inner.std((1, 2, 3), correction=0), torch.full((len(inner),), 50.0), atol=1e-2, rtol=0)
    assert (standardise(torch.full((1, 3, 8, 8), 200.0)) == 128).all()


def test_a_wrong_trunk_file_is_refused_and_not_silently_random(tmp_path):
    torch.save({"classifier.1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(BenchError, match="do not fit"):
        LpipsNet(weights=str(tmp_path / "other.pth"), device="cpu").heads()


@pytest.fixture
def wrong_clip(clip_folder, tmp_path):
    """A folder in open_clip's format whose weights file is made by `wrong(bytes)`."""

    def build(wrong):
        (tmp_path / "open_clip_config.json").write_bytes((clip_folder / "open_clip_config.json").read_bytes())
        whole = (clip_folder / "open_clip_model.safetensors").read_bytes()
        (tmp_path / "open_clip_model.safetensors").write_bytes(wrong(whole))
        return OpenClip(name="tiny-clip", model=str(tmp_path), device="cpu")

    return build


def test_a_truncated_safetensors_file_is_said_before_anything_is_computed(wrong_clip, tmp_path):
    network = wrong_clip(lambda whole: whole[:-1000])
    assert "is truncated or no safetensors file" in network.missing()
    (tmp_path / "model.safetensors").write_bytes(b"short")
    assert "is truncated" in MiniPerceptual(weights=str(tmp_path), device="cpu").missing()


def test_a_truncated_checkpoint_is_said_before_anything_is_computed(alex_file, tmp_path):
    (tmp_path / "alexnet.pth").write_bytes(alex_file.read_bytes()[:-1000])
    assert "is truncated: its end is missing" in LpipsNet(weights=str(tmp_path / "alexnet.pth")).missing()


def test_weights_of_another_network_under_the_right_name_are_one_short_sentence(wrong_clip, tmp_path):
    from safetensors.torch import save

    network = wrong_clip(lambda _: save({"visual.conv1.weight": torch.zeros(2, 2)}))
    assert network.missing() is None  # the file is whole
    with pytest.raises(BenchError, match="weights of tiny-clip do not fit") as refused:
        network.embed_text(["a dog"])
    assert len(str(refused.value)) < 400 and "\n" not in str(refused.value)
    (tmp_path / "config.json").write_text('{"widths": [4, 4]}')
    (tmp_path / "model.safetensors").write_bytes(save({"stages.0.0.weight": torch.zeros(1)}))
    with pytest.raises(BenchError, match="weights of mini-perceptual do not fit"):
        MiniPerceptual(weights=str(tmp_path), device="cpu").heads()


def test_a_file_that_is_no_checkpoint_is_one_sentence(tmp_path):
    (tmp_path / "alexnet.pth").write_bytes(b"<html>not found</html>")
    with pytest.raises(BenchError, match="cannot be read: .* is truncated or no weights file"):
        LpipsNet(weights=str(tmp_path / "alexnet.pth"), device="cpu").heads()


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"features.0.weight": Bomb()}, tmp_path / "alexnet.pth", pickle_module=pickle)
    with pytest.raises(BenchError, match="cannot be read"):
        LpipsNet(weights=str(tmp_path / "alexnet.pth"), device="cpu").heads()
    assert not (tmp_path / "ran").exists()


def test_mini_distances_are_the_trunks_own(images, tmp_path):
    from bench.mini.perceptual import PerceptualTrunk

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        PerceptualTrunk().save(tmp_path / "trunk")
    network = MiniPerceptual(weights=str(tmp_path / "trunk"), device="cpu")
    trunk = PerceptualTrunk.load(tmp_path / "trunk")
    x = torch.from_numpy(images).float() / 127.5 - 1
    with torch.inference_mode():
        expected = trunk(x[:3], x[3:]).numpy()
    found = distances(FeatureStore(tmp_path / "features"), network, images[:3], images[3:])
    np.testing.assert_allclose(found, expected, rtol=1e-4)


# --- missing weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network, words",
    [
        (Inception(), "weights-inception-2015-12-05-6726825d.pth"),
        (LpipsNet(), "alexnet-owt-7be5be79.pth"),
        (
            OpenClip(name="b32", model="ViT-B-32-quickgelu", weights="clip_vit_b32_openai"),
            "weights clip_vit_b32_openai",
        ),
        (OpenClip(name="b32", model="ViT-B-32", weights="clip_vit_b32_openai"), "are of ViT-B-32-quickgelu"),
        (
            Vit(name="v", architecture="vit_small_patch16_224.dino", weights="dino_vits16"),
            "dino_deitsmall16_pretrain.pth",
        ),
        (Csd(), "csd-vit-l.bin"),
        (OpenClip(name="gone", model="no/such/folder"), "does not exist"),
        (MiniPerceptual(weights="no/such/folder"), "does not exist"),
    ],
)
def test_missing_weights_are_named_with_what_to_type(network, words, tmp_path, monkeypatch):
    for variable in ("BENCH_MIRROR", "BENCH_CACHE", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert words in network.missing()
    with pytest.raises(BenchError):
        network.id  # noqa: B018


def test_present_weights_are_not_missing(clip, alex):
    assert clip.missing() is None and alex.missing() is None


def test_constructing_metrics_imports_no_torch():
    import subprocess

    code = (
        "import sys; import metrics.fid, metrics.kid, metrics.clip_score, metrics.lpips_leakage, metrics.oracle,"
        " metrics.style, metrics.subject, metrics.feature_leakage, metrics.csd, metrics.dino, metrics.dreamsim;"
        " from metrics.networks import Inception; m = metrics.fid.Fid(Inception()); m.missing();"
        " print('torch' in sys.modules, 'open_clip' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.split() == ["False", "False"]
