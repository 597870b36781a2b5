"""Leakage against direct distances in double loops, planted leaks, and the null."""

import dataclasses

import numpy as np
import pytest
from metric_cases import dataset, scenes, sepia

from bench.contracts import Example, Impossible, Pair
from metrics.feature_leakage import ClipImageLeak, ClipTextLeak, DinoLeak, DreamsimLeak
from metrics.features import FeatureStore
from metrics.leakage import Gaps, Sides, leak_fraction, leak_rate, leak_scores, over_training_images
from metrics.lpips_leakage import LpipsLeakage, standardised_distances
from metrics.perceptual import distances, embed
from metrics.training_images import related


def two_pairs():
    plain = scenes(2, 100)
    nouns = ("teapot", "lamp")
    return tuple(
        Pair(Example(p, f"a {n}", n), Example(sepia(p), f"a {n}", n)) for p, n in zip(plain, nouns, strict=True)
    )


def sides(dataset):
    c, t = (np.stack([getattr(pair, half).image for pair in dataset.pairs]) for half in ("content", "style"))
    return Sides(c, t, np.stack(dataset.controls))


def direct(network, a, b):
    """LPIPS of two standardised pictures, from their embeddings alone."""
    (x,), (y,) = (list(embed(network, "phi_standardised", image[None])) for image in (a, b))
    return sum(float((p - q).double().square().sum()) for p, q in zip(x, y, strict=True))


def test_leak_and_fraction_agree_with_the_definitions_in_double_loops(alex, evaluation):
    case = evaluation(dataset=dataset(pairs=two_pairs(), controls=tuple(scenes(8, 101))), baseline=scenes(3, 7))
    straight, _ = standardised_distances(FeatureStore(case.cache), alex, case, sides(case.dataset))
    d = {}

    def dn(a, b):
        key = (a.tobytes(), b.tobytes())
        d[key] = d[key] if key in d else direct(alex, a, b)
        return d[key]

    leak, full = np.empty((3, 2)), np.empty((3, 2))
    controls = case.dataset.controls
    for i, (ym, y0) in enumerate(zip(case.images, case.baseline, strict=True)):
        for k, pair in enumerate(case.dataset.pairs):
            c, t = pair.content.image, pair.style.image
            leak[i, k] = (dn(y0, c) - dn(ym, c)) - np.mean([dn(y0, u) - dn(ym, u) for u in controls])
            full[i, k] = (dn(y0, c) - dn(t, c)) - np.mean([dn(y0, u) - dn(t, u) for u in controls])
    np.testing.assert_allclose(straight.leak, leak, atol=1e-5)
    np.testing.assert_allclose(straight.full, full, atol=1e-5)


def test_leak_is_the_projection_of_the_shift(alex, evaluation):
    case = evaluation(baseline=scenes(3, 7))
    straight, _ = standardised_distances(FeatureStore(case.cache), alex, case, sides(case.dataset))

    def phi(images):
        rows = [np.concatenate([layer.numpy() for layer in b], axis=1) for b in embed(alex, "phi_standardised", images)]
        return np.concatenate(rows).astype(np.float64)

    direction = phi(case.dataset.pairs[0].content.image[None])[0] - phi(np.stack(case.dataset.controls)).mean(axis=0)
    projected = 2 * (phi(case.images) - phi(case.baseline)) @ direction
    np.testing.assert_allclose(straight.leak[:, 0], projected, atol=1e-5)


def leaked(evaluation, amount, picture=None, n=12):
    """Stylised baseline images blended with the training picture; nothing else of it is seen."""
    baseline = scenes(n, 7)
    picture = dataset().pairs[0].content.image if picture is None else picture
    images = [sepia(((1 - amount) * image + amount * picture).astype(np.uint8)) for image in baseline]
    return evaluation(images=np.stack(images), baseline=baseline)


def test_a_planted_leak_is_found_and_grows_with_the_dose(alex, evaluation):
    scores = [LpipsLeakage(alex).score(leaked(evaluation, amount)).values for amount in (0.0, 0.15, 0.3, 0.6, 1.0)]
    leak = [score["lpips_leak"] for score in scores]
    fraction = [score["lpips_leak_frac"] for score in scores]
    assert all(a < b for a, b in zip(leak, leak[1:], strict=False))
    assert abs(fraction[0]) < 6 and fraction[-1] == pytest.approx(100, abs=1e-3)  # the images are t_k itself
    assert scores[-1]["lpips_leak_rate"] == 1 and scores[-1]["lpips_leak_max"] >= scores[-1]["lpips_leak"] > 0


def test_the_styled_leak_compares_with_stylised_pictures_and_needs_the_style(alex, evaluation):
    case = evaluation(baseline=scenes(3, 7))
    score = LpipsLeakage(alex).score(case)
    t, controls = case.dataset.pairs[0].style.image, [sepia(u) for u in case.dataset.controls]

    def leak(ym, y0, flip):
        targets = [image[..., ::flip].copy() for image in (t, *controls)]
        moved = [direct(alex, y0, target) - direct(alex, ym, target) for target in targets]
        return moved[0] - np.mean(moved[1:])

    pairs = list(zip(case.images, case.baseline, strict=True))
    expected = max(np.mean([leak(ym, y0, flip) for ym, y0 in pairs]) for flip in (1, -1))
    assert score.values["lpips_leak_styled"] == pytest.approx(expected, abs=1e-5)
    whole = evaluation(images=np.stack([t] * 3), baseline=scenes(3, 7))
    assert LpipsLeakage(alex).score(whole).values["lpips_leak_styled_frac"] == pytest.approx(100, abs=1e-3)
    assert "lpips_leak_styled" not in LpipsLeakage(alex).score(evaluation(dataset=dataset(oracle=None))).values


def test_a_mirrored_leak_is_found_as_well(alex, evaluation):
    mirrored = dataset().pairs[0].content.image[..., ::-1]
    score = LpipsLeakage(alex).score(leaked(evaluation, 0.6, mirrored)).values
    straight = LpipsLeakage(alex).score(leaked(evaluation, 0.6)).values
    assert score["lpips_leak"] == pytest.approx(straight["lpips_leak"], rel=0.5) and score["lpips_leak_rate"] > 0.5


def test_unchanged_images_leak_exactly_nothing_and_keep_all_content(alex, evaluation):
    baseline = scenes(4, 7)
    values = LpipsLeakage(alex).score(evaluation(images=baseline, baseline=baseline)).values
    for name in ("lpips_content", "lpips_content_rel", "lpips_gap_raw", "lpips_leak_raw", "lpips_leak"):
        assert values[name] == pytest.approx(0, abs=1e-12)
    assert values["lpips_leak_frac"] == pytest.approx(0, abs=1e-9)


def test_the_raw_gap_is_the_plain_difference_of_distances(alex, evaluation, tmp_path):
    case = evaluation()
    values = LpipsLeakage(alex).score(case).values
    store, c = FeatureStore(tmp_path / "other"), case.dataset.pairs[0].content.image
    gap = [
        distances(store, alex, images, np.stack([c] * len(images))).mean() for images in (case.images, case.baseline)
    ]
    assert values["lpips_gap_raw"] == pytest.approx(gap[0] - gap[1], abs=1e-6)
    assert values["lpips_leak_raw"] == -values["lpips_gap_raw"]
    moved = distances(store, alex, case.images, case.baseline).mean()
    first, second = zip(*[(i, j) for i in range(8) for j in range(i) if (i - j) % 2 == 0], strict=True)  # of one prompt
    seeds = distances(store, alex, case.baseline[[*first]], case.baseline[[*second]]).mean()
    assert values["lpips_content"] == pytest.approx(moved)
    assert values["lpips_content_rel"] == pytest.approx(moved / seeds, rel=1e-5)


def exchangeable(rng, n=200, k=3, j=9):
    """No leak: training images and controls are draws from one distribution."""
    moved = rng.normal(size=(n, k + j)) * 0.1 + rng.normal(size=(n, 1))
    zeros = np.zeros((n, k + j))
    return Gaps(-moved[:, :k], zeros[:, :k], np.full(k, -1.0), -moved[:, k:], zeros[:, k:], np.zeros((k, j)))


def test_the_rate_is_five_percent_without_a_leak():
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(30):
        straight, mirrored = exchangeable(rng), exchangeable(rng)
        values, _ = leak_scores(straight, mirrored, np.zeros((200, 3), bool), "lpips_leak")
        rates.append(values["lpips_leak_rate"])
    assert np.mean(rates) == pytest.approx(0.05, abs=0.01)


def test_prompts_of_the_training_class_are_a_stratum_of_their_own():
    side = exchangeable(np.random.default_rng(0), n=4)
    same = np.zeros((4, 3), bool)
    same[0], same[1, 2] = True, True
    values, per_image = leak_scores(side, side, same, "lpips_leak")
    assert np.isnan(per_image["lpips_leak"][0]) and np.isnan(per_image["lpips_leak_max"][0])
    assert per_image["lpips_leak"][1] == pytest.approx(side.leak[1, :2].mean())
    assert values["lpips_leak"] == pytest.approx(np.mean([side.leak[1, :2].mean(), *side.leak[2:].mean(axis=1)]))
    assert values["lpips_leak_related"] == pytest.approx(np.mean([side.leak[0].mean(), side.leak[1, 2]]))
    only, _ = leak_scores(side, side, np.ones((4, 3), bool), "lpips_leak")
    assert (
        np.isnan(only["lpips_leak"]) and np.isnan(only["lpips_leak_rate"]) and np.isfinite(only["lpips_leak_related"])
    )


def test_classes_are_matched_as_whole_words():
    found = related(["a dog", "two Dogs", "a dogged man", "a red box", "boxes"], ["dog", "box", ""])
    assert found.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 1, 0]]


def test_the_fraction_is_undefined_when_a_full_copy_is_lost_in_noise():
    steady = np.full(20, 0.3)
    assert leak_fraction(np.full(20, 0.15), steady) == pytest.approx(50)
    assert np.isnan(leak_fraction(np.full(20, 0.01), np.full(20, 0.019)))
    assert np.isnan(leak_fraction(steady, np.random.default_rng(0).normal(0.3, 1.0, 20)))
    assert np.isnan(leak_fraction(np.array([0.1]), np.array([0.3])))


def test_means_skip_what_is_not_kept():
    values = np.array([[1.0, 3.0], [5.0, np.inf]])
    kept = np.array([[True, True], [True, False]])
    np.testing.assert_array_equal(over_training_images(values, kept), [2, 5])
    assert np.isnan(leak_rate(values, values, np.zeros((2, 2), bool)))


def test_style_only_datasets_use_their_references_and_say_so(alex, evaluation):
    references = tuple(Example(sepia(image), "a teapot", "teapot") for image in scenes(2, 100))
    score = LpipsLeakage(alex).score(evaluation(dataset=dataset(pairs=(), references=references)))
    assert score.fingerprint["style_confounded"] is True and "has no plain half" in score.notes[0]
    subject = LpipsLeakage(alex).score(evaluation(dataset=dataset(pairs=(), references=references, style_words=None)))
    assert subject.fingerprint["style_confounded"] is False and "lpips_leak" in subject.values
    with pytest.raises(Impossible, match="neither pairs nor references"):
        LpipsLeakage(alex).score(evaluation(dataset=dataset(pairs=())))


def test_without_controls_the_leak_is_absent_with_the_reason(alex, clip, evaluation):
    few = evaluation(dataset=dataset(controls=tuple(scenes(7, 1))))
    score = LpipsLeakage(alex).score(few)
    assert "lpips_leak" not in score.values and "lpips_content" in score.values
    assert score.notes == ["lpips_leak left out: lpips_leak needs 8 control images, the dataset sepia has 7."]
    with pytest.raises(Impossible, match="clip_leak needs 8 control images"):
        ClipImageLeak(clip).score(few)


def test_what_is_undefined_is_absent_with_the_reason(alex, evaluation):
    still = evaluation(images=np.full((2, 3, 64, 64), 128, np.uint8), baseline=np.full((2, 3, 64, 64), 90, np.uint8))
    score = LpipsLeakage(alex).score(dataclasses.replace(still, prompts=["a teapot", "two teapots"]))
    assert all(np.isfinite(value) for value in score.values.values())
    for name in ("lpips_leak", "lpips_leak_frac", "lpips_leak_rate", "lpips_leak_max", "lpips_content_rel"):
        assert name not in score.values and any(note.startswith(f"{name} left out: ") for note in score.notes)
    assert "lpips_leak_related" in score.values


def test_values_have_directions_and_do_not_depend_on_the_order(alex, evaluation):
    case = evaluation(dataset=dataset(pairs=two_pairs()))
    score = LpipsLeakage(alex).score(case)
    assert set(score.values) <= set(LpipsLeakage.higher_is_better)
    order = np.array([3, 0, 7, 5, 1, 2, 6, 4])
    shuffled = dataclasses.replace(
        case, images=case.images[order], baseline=case.baseline[order], prompts=[case.prompts[row] for row in order]
    )
    again = LpipsLeakage(alex).score(shuffled)
    for name in score.values:
        assert again.values[name] == pytest.approx(score.values[name], rel=1e-6), name
    np.testing.assert_allclose(again.per_image["lpips_leak"], score.per_image["lpips_leak"][order])


# --- companions --------------------------------------------------------------------------------------------------


def cosine(x, y):
    x, y = np.float64(x), np.float64(y)
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


@pytest.mark.parametrize("metric", [ClipImageLeak, DinoLeak, DreamsimLeak])
def test_the_leak_in_features_agrees_with_its_definition_in_loops(metric, clip, evaluation):
    case = evaluation(dataset=dataset(pairs=two_pairs()), baseline=scenes(3, 7))
    score = metric(clip).score(case)
    name = next(iter(metric.higher_is_better))

    def f(image):
        return clip(image[None])[0]

    def leak(ym, y0, c, flip):
        others = [f(u[..., ::flip]) for u in case.dataset.controls]
        nearer = cosine(ym, f(c[..., ::flip])) - cosine(y0, f(c[..., ::flip]))
        return nearer - np.mean([cosine(ym, u) - cosine(y0, u) for u in others])

    rows = [(f(ym), f(y0)) for ym, y0 in zip(case.images, case.baseline, strict=True)]
    both = [
        [np.mean([leak(ym, y0, pair.content.image, flip) for pair in case.dataset.pairs]) for ym, y0 in rows]
        for flip in (1, -1)
    ]
    expected = max(both, key=np.mean)
    np.testing.assert_allclose(score.per_image[name], expected, atol=1e-6)
    assert score.values[name] == pytest.approx(np.mean(expected), abs=1e-6)
    assert set(score.values) == {name, f"{name}_rate"}


def test_leaks_in_features_and_words_grow_with_the_dose_and_are_nothing_for_unchanged_images(clip, evaluation):
    def values(amount):
        return ClipImageLeak(clip).score(leaked(evaluation, amount)).values["clip_leak"]

    assert values(0.0) < values(0.5) < values(1.0)
    baseline = scenes(4, 7)
    still = evaluation(images=baseline, baseline=baseline, dataset=dataset(control_captions=("a tree", "a boat")))
    assert ClipImageLeak(clip).score(still).values["clip_leak"] == 0
    assert ClipTextLeak(clip).score(still).values["clip_text_leak"] == 0


def test_the_leak_of_meaning_agrees_with_its_definition_in_loops(clip, evaluation):
    captions = ("a red car", "a tree", "a tree", "a photo of a teapot")  # one twice, one that is the training image's
    case = evaluation(dataset=dataset(pairs=two_pairs(), control_captions=captions), baseline=scenes(3, 7))
    case = dataclasses.replace(case, prompts=["a lamp", "a dog", "a red house"])
    score = ClipTextLeak(clip).score(case)
    trained = [pair.content.caption for pair in case.dataset.pairs]
    assert trained == ["a teapot", "a lamp"]

    def moved(row, text):
        t = clip.embed_text([text])[0]
        return cosine(clip(case.images[row][None])[0], t) - cosine(clip(case.baseline[row][None])[0], t)

    def leak(row, caption):
        return 100 * (moved(row, caption) - np.mean([moved(row, u) for u in dict.fromkeys(captions)]))

    expected = [leak(0, "a teapot"), *(np.mean([leak(row, caption) for caption in trained]) for row in (1, 2))]
    np.testing.assert_allclose(score.per_image["clip_text_leak"], expected, atol=1e-4)
    assert score.values["clip_text_leak"] == pytest.approx(np.mean(expected), abs=1e-4)
    assert score.values["clip_text_leak_related"] == pytest.approx(leak(0, "a lamp"), abs=1e-4)


def test_captions_of_the_training_images_are_no_controls(clip, evaluation):
    case = evaluation(dataset=dataset(control_captions=("a photo of a teapot",)))
    with pytest.raises(Impossible, match="needs captions of control images, the dataset sepia has none"):
        ClipTextLeak(clip).score(case)
