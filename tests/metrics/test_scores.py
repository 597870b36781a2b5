"""CLIP score, distance to the stylised truth and style similarity against plain loops over the networks' outputs."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from metric_cases import dataset, scenes, sepia

from bench.contracts import BenchError, Evaluation, Example, Impossible
from bench.paths import CONF
from bench.settings import build
from metrics import networks
from metrics.clip_score import ClipScore
from metrics.features import feature_store
from metrics.oracle import Oracle, OracleClip
from metrics.perceptual import embed
from metrics.style import RawCsd, StyleClip, StyleGram, TextStyle


def cosine(a, b):
    a, b = np.float64(a), np.float64(b)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def lpips(network, a, b):
    (x,), (y,) = (list(embed(network, "phi", image[None])) for image in (a, b))
    return sum(float((p - q).double().square().sum()) for p, q in zip(x, y, strict=True))


# --- CLIP score --------------------------------------------------------------------------------------------------


def test_clip_score_agrees_with_a_loop_over_pairs(clip, evaluation):
    case = evaluation()
    score = ClipScore(clip, hessel=True).score(case)
    pairs = [
        (clip(image[None])[0], clip.embed_text([plain])[0], clip.embed_text([full])[0])
        for image, plain, full in zip(case.images, case.prompts, case.full_prompts, strict=True)
    ]
    expected = [100 * cosine(image, text) for image, text, _ in pairs]
    np.testing.assert_allclose(score.per_image["clip_t"], expected, rtol=1e-5)
    assert score.values["clip_t"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert score.values["clip_t_full"] == pytest.approx(np.mean([100 * cosine(i, f) for i, _, f in pairs]), rel=1e-4)
    prefixed = [clip.embed_text([f"A photo depicts {prompt}"])[0] for prompt in case.prompts]
    hessel = [2.5 * max(cosine(image, text), 0) for (image, _, _), text in zip(pairs, prefixed, strict=True)]
    assert score.values["clipscore_hessel"] == pytest.approx(np.mean(hessel), rel=1e-4, abs=1e-9)


def test_clip_score_agrees_with_torchmetrics_on_open_clips_own_model(clip, clip_folder, evaluation, record_property):
    """torchmetrics 1.9 crashes on what transformers 5 returns, so open_clip's model is wrapped; it clips its mean."""
    import open_clip
    from PIL import Image
    from torchmetrics.functional.multimodal import clip_score

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip_folder}")
    case = evaluation()
    ours = ClipScore(clip).score(case).values["clip_t"]

    class Model(torch.nn.Module):
        config = SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=77))

        @torch.inference_mode()
        def get_image_features(self, pixels):
            return model.eval().encode_image(pixels).clone()

        @torch.inference_mode()
        def get_text_features(self, ids, mask):
            return model.eval().encode_text(ids).clone() * float(np.sign(ours))

    def processor(text=None, images=None, **_):
        if images is not None:
            rows = [Image.fromarray(np.asarray(image).transpose(1, 2, 0)) for image in images]
            return {"pixel_values": torch.stack([transform(row) for row in rows])}
        return {"input_ids": tokenizer(text), "attention_mask": torch.ones(len(text), 1)}

    found = float(clip_score(list(torch.from_numpy(case.images)), case.prompts, lambda: (Model(), processor)))
    record_property("largest difference, torchmetrics CLIPScore", abs(abs(ours) - found))
    assert abs(ours) == pytest.approx(found, rel=1e-4)


def test_hessels_variant_is_only_given_when_asked_for_and_long_prompts_are_counted(clip, evaluation):
    case = dataclasses.replace(evaluation(), prompts=["dog " * 40] * 8)
    score = ClipScore(clip).score(case)
    assert set(score.values) == {"clip_t", "clip_t_full"}
    assert score.notes == ["8 of 16 captions are longer than tiny-clip reads, so cut."]
    assert ClipScore(clip).score(evaluation()).notes == []
    assert score.fingerprint["truncated_captions"] == 8 and score.fingerprint["network"] == "tiny-clip"


# --- the stylised truth ------------------------------------------------------------------------------------------


def test_oracle_distances_agree_with_a_loop(alex, clip, evaluation):
    case = evaluation(images=scenes(8, 8))
    truth = [sepia(image) for image in case.baseline]
    score = Oracle(alex).score(case)
    rgb = [np.sqrt((((y / 255.0) - (s / 255.0)) ** 2).mean()) for y, s in zip(case.images, truth, strict=True)]
    start = [np.sqrt((((y / 255.0) - (s / 255.0)) ** 2).mean()) for y, s in zip(case.baseline, truth, strict=True)]
    assert score.values["oracle_rgb"] == pytest.approx(np.mean(rgb))
    assert score.values["gap_closed_rgb"] == pytest.approx(1 - np.mean(rgb) / np.mean(start))
    far = np.mean([lpips(alex, y, s) for y, s in zip(case.images, truth, strict=True)])
    near = np.mean([lpips(alex, y, s) for y, s in zip(case.baseline, truth, strict=True)])
    assert score.values["oracle_lpips"] == pytest.approx(far, rel=1e-5)
    assert score.values["gap_closed_lpips"] == pytest.approx(1 - far / near, rel=1e-5)
    clip_score = OracleClip(clip).score(case)
    features = [1 - cosine(clip(y[None])[0], clip(s[None])[0]) for y, s in zip(case.images, truth, strict=True)]
    assert clip_score.values["oracle_clip"] == pytest.approx(np.mean(features), rel=1e-4)


def test_the_truth_closes_everything_the_baseline_nothing(alex, clip, evaluation):
    at_truth = {**Oracle(alex).score(evaluation()).values, **OracleClip(clip).score(evaluation()).values}
    baseline = scenes(8, 7)
    case = evaluation(images=baseline, baseline=baseline)
    at_start = {**Oracle(alex).score(case).values, **OracleClip(clip).score(case).values}
    for name in ("gap_closed_rgb", "gap_closed_lpips", "gap_closed_clip"):
        assert at_truth[name] == pytest.approx(1, abs=1e-6) and at_start[name] == pytest.approx(0, abs=1e-6)


def test_a_dataset_without_an_oracle_is_told_so(alex, clip, evaluation):
    case = evaluation(dataset=dataset(oracle=None))
    for metric in (Oracle(alex), OracleClip(clip)):
        with pytest.raises(Impossible, match="needs an oracle, sepia has none"):
            metric.score(case)


def test_a_baseline_that_is_the_truth_leaves_the_closed_fraction_undefined(alex, evaluation):
    case = evaluation(dataset=dataset(oracle=lambda image: image))
    assert np.isnan(Oracle(alex).score(case).values["gap_closed_rgb"])


# --- style similarity --------------------------------------------------------------------------------------------


def test_style_differences_agree_with_loops(alex, clip, evaluation):
    references = tuple(Example(sepia(image), "a lamp", "lamp") for image in scenes(3, 50))
    case = evaluation(dataset=dataset(pairs=(), references=references))
    targets = [example.image for example in references]

    def grams(image):
        (layers,) = list(embed(alex, "gram", image[None]))
        return np.concatenate([layer[0].double().numpy() for layer in layers])

    expected = [
        np.mean([np.linalg.norm(grams(y) - grams(t)) - np.linalg.norm(grams(y0) - grams(t)) for t in targets])
        for y, y0 in zip(case.images, case.baseline, strict=True)
    ]
    np.testing.assert_allclose(StyleGram(alex).score(case).per_image["style_gram"], expected, atol=1e-5)
    features = [
        100
        * np.mean(
            [cosine(clip(y[None])[0], clip(t[None])[0]) - cosine(clip(y0[None])[0], clip(t[None])[0]) for t in targets]
        )
        for y, y0 in zip(case.images, case.baseline, strict=True)
    ]
    np.testing.assert_allclose(StyleClip(clip).score(case).per_image["style_clip"], features, atol=1e-3)


def test_raw_similarity_and_the_harmonic_mean_agree_with_loops(clip, evaluation):
    case = evaluation()
    targets = [pair.style.image for pair in case.dataset.pairs]
    near, both = [], []
    for y, q in zip(case.images, case.prompts, strict=True):
        b = np.mean([cosine(clip(y[None])[0], clip(t[None])[0]) for t in targets])
        a = cosine(clip(y[None])[0], clip.embed_text([q])[0])
        near.append(b)
        both.append(0.0 if a <= 0 or b <= 0 else 100 * 2 / (1 / a + 1 / b))
    np.testing.assert_allclose(RawCsd(clip).score(case).per_image["csd"], near, atol=1e-5)
    found = TextStyle(clip).score(case)
    np.testing.assert_allclose(found.per_image["text_style"], both, atol=1e-3)
    assert found.values["text_style"] == pytest.approx(np.mean(both), abs=1e-3)
    subject = evaluation(dataset=dataset(style_words=None))
    for metric in (RawCsd(clip), TextStyle(clip)):
        with pytest.raises(Impossible, match="is a subject"):
            metric.score(subject)


def test_the_right_style_is_closer_and_the_baseline_is_at_zero(alex, evaluation):
    assert StyleGram(alex).score(evaluation()).values["style_gram"] < -0.01
    baseline = scenes(4, 7)
    assert StyleGram(alex).score(evaluation(images=baseline, baseline=baseline)).values["style_gram"] == 0


def test_the_discrimination_gap_agrees_with_a_loop(clip, evaluation):
    case = evaluation()
    (target,) = (pair.style.image for pair in case.dataset.pairs)

    def near(images):
        return np.mean([100 * cosine(clip(image[None])[0], clip(target[None])[0]) for image in images])

    gap = near(case.dataset.reference_set()) - near(case.baseline)
    score = StyleClip(clip).score(case)
    assert score.values["style_clip_gap"] == pytest.approx(gap, abs=1e-3)


def test_without_a_reference_set_the_style_images_are_compared_with_each_other(alex, evaluation):
    references = tuple(Example(sepia(image), "a lamp", "lamp") for image in scenes(3, 50))
    case = evaluation(dataset=dataset(pairs=(), references=references, reference_set=None))

    def grams(image):
        (layers,) = list(embed(alex, "gram", image[None]))
        return np.concatenate([layer[0].double().numpy() for layer in layers])

    t, y0 = [grams(example.image) for example in references], [grams(image) for image in case.baseline]
    among = np.mean([np.linalg.norm(a - b) for i, a in enumerate(t) for j, b in enumerate(t) if i != j])
    apart = np.mean([np.linalg.norm(a - b) for a in y0 for b in t])
    values = StyleGram(alex).score(case).values
    assert values["style_gram_gap"] == pytest.approx(apart - among, abs=1e-4)
    one = StyleGram(alex).score(evaluation(dataset=dataset(reference_set=None)))
    assert set(one.values) == {"style_gram"} and "was not checked for discrimination" in one.notes[0]


def test_a_network_that_does_not_see_the_style_gives_no_score(alex, evaluation):
    blind = evaluation(dataset=dataset(reference_set=lambda: np.full((3, 3, 64, 64), 7, np.uint8)))
    score = StyleGram(alex).score(blind)
    assert set(score.values) == {"style_gram_gap"} and score.values["style_gram_gap"] < 0
    assert score.notes[0].startswith("style_gram left out: pictures in the style are no nearer")


# --- together ----------------------------------------------------------------------------------------------------


def configured(name):
    hydra = pytest.importorskip("hydra")
    from omegaconf import OmegaConf

    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(hydra.compose(overrides=[f"+metrics={name}"]).metrics)


@pytest.mark.parametrize("name", ["mini", "sd", "sd_legacy", "sd15", "sdxl", "sd_style", "libraries", "libraries_mini"])
def test_configured_metrics_are_built_without_weights_and_say_what_they_lack(name):
    metrics = build(configured(name))
    everywhere = {"clip_score", "lpips_leakage", "clip_text_leak", "clip_i", "div", "oracle"}
    assert everywhere | {"fid", "kid", "cmmd", "prdc", "vendi", "diversity"} <= set(metrics)
    for metric in metrics.values():
        missing = metric.missing()
        assert (
            missing is None or "type python -m bench.fetch" in missing or "exist" in missing or "type uv pip" in missing
        )
        assert all(isinstance(direction, bool) for direction in metric.higher_is_better.values())


@pytest.mark.parametrize("name", ["mini", "sd_style", "libraries", "libraries_mini"])
def test_no_two_metrics_of_a_config_give_the_same_id(name):
    ids = [key for metric in build(configured(name)).values() for key in metric.higher_is_better]
    assert len(ids) == len(set(ids))


def test_a_second_scoring_passes_no_image_through_a_network(alex, clip, evaluation, monkeypatch):
    case = evaluation()
    metrics = [ClipScore(clip), Oracle(alex), OracleClip(clip), StyleGram(alex), StyleClip(clip)]
    first = [metric.score(case).values for metric in metrics]
    feature_store.cache_clear()

    def refuse(*_):
        raise AssertionError("a network was run again")

    monkeypatch.setattr(networks.OpenClip, "forward", refuse)
    monkeypatch.setattr(networks.LpipsNet, "maps", refuse)
    assert [metric.score(case).values for metric in metrics] == first


def test_every_score_has_a_direction_a_network_and_finite_per_image_rows(alex, clip, evaluation):
    case = evaluation()
    assert isinstance(case, Evaluation)
    for metric in (ClipScore(clip), Oracle(alex), OracleClip(clip), StyleGram(alex), StyleClip(clip)):
        score = metric.score(case)
        assert set(score.values) <= set(metric.higher_is_better)
        assert {"metric", "n", "network", "weights", "preprocessing", "versions"} <= set(score.fingerprint)
        for name, values in score.per_image.items():
            assert values.shape == (8,) and np.isfinite(values).all()
            assert values.mean() == pytest.approx(score.values[name], rel=1e-9, abs=1e-12)


def test_missing_weights_stop_a_score_with_the_same_sentence(evaluation):
    metric = ClipScore(networks.OpenClip(name="gone", model="no/such/folder"))
    with pytest.raises(BenchError, match="no/such/folder"):
        metric.score(evaluation())
    assert "no/such/folder" in metric.missing()
