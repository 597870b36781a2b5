"""DreamBooth's measures against loops over the networks' outputs."""

import dataclasses

import numpy as np
import pytest
from metric_cases import dataset, scenes, sepia

from bench.contracts import Example, Impossible
from metrics.perceptual import embed
from metrics.subject import ClipI, Dino, Dinov2, Div, Pres


def cosine(x, y):
    x, y = np.float64(x), np.float64(y)
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def subject(**changes):
    """Three photographs of one thing."""
    shown = tuple(Example(image, "a photo of a toy", "toy") for image in scenes(3, 40))
    return dataset(pairs=(), references=shown, style_words=None, noun="toy", oracle=None, **changes)


@pytest.mark.parametrize("metric", [ClipI, Dino, Dinov2])
def test_similarity_is_the_mean_cosine_of_all_pairs(metric, clip, evaluation):
    case = evaluation(dataset=subject())
    score = metric(clip).score(case)
    shown = [clip(example.image[None])[0] for example in case.dataset.references]
    expected = [np.mean([cosine(clip(y[None])[0], t) for t in shown]) for y in case.images]
    name = next(iter(metric.higher_is_better))
    np.testing.assert_allclose(score.per_image[name], expected, atol=1e-6)
    assert score.values == {name: pytest.approx(np.mean(expected), abs=1e-6)}


def test_on_a_style_similarity_has_another_name(clip, evaluation):
    case = evaluation()
    score = ClipI(clip).score(case)
    target = clip(case.dataset.pairs[0].style.image[None])[0]
    expected = np.mean([cosine(clip(y[None])[0], target) for y in case.images])
    assert score.values == {"style_clip_i": pytest.approx(expected, abs=1e-6)}


def test_pres_compares_other_members_of_the_class_with_the_subject(clip, evaluation):
    members = scenes(4, 41)
    case = dataclasses.replace(evaluation(dataset=subject()), class_images=lambda: members)
    shown = [example.image for example in case.dataset.references]
    pairs = [cosine(clip(x[None])[0], clip(t[None])[0]) for x in members for t in shown]
    assert Pres(clip).score(case).values == {"pres": pytest.approx(np.mean(pairs), abs=1e-6)}
    collapsed = dataclasses.replace(case, class_images=lambda: np.stack(shown[:1] * 4))
    assert Pres(clip).score(collapsed).values["pres"] > np.mean(pairs)


def test_pres_is_absent_for_a_style_and_where_nothing_can_be_drawn(clip, evaluation):
    with pytest.raises(Impossible, match="sepia is a style"):
        Pres(clip).score(evaluation())
    with pytest.raises(Impossible, match="none can be drawn"):
        Pres(clip).score(evaluation(dataset=subject()))


def test_div_is_the_mean_over_pairs_of_a_prompt_and_needs_two_seeds(alex, evaluation):
    case = evaluation(images=scenes(5, 42), baseline=scenes(5, 7))
    case = dataclasses.replace(case, prompts=["a dog", "a cat", "a dog", "a dog", "a boat"])

    def lpips(a, b):
        (x,), (y,) = (list(embed(alex, "phi", image[None])) for image in (a, b))
        return sum(float((p - q).double().square().sum()) for p, q in zip(x, y, strict=True))

    dogs = np.mean([lpips(case.images[i], case.images[j]) for i, j in ((0, 2), (0, 3), (2, 3))])
    score = Div(alex).score(case)
    np.testing.assert_allclose(score.per_image["div"], [dogs, np.nan, dogs, dogs, np.nan], rtol=1e-5)
    assert score.values == {"div": pytest.approx(dogs, rel=1e-5)}
    with pytest.raises(Impossible, match="two images of a prompt"):
        Div(alex).score(dataclasses.replace(case, prompts=list("abcde")))
    same = dataclasses.replace(case, images=np.stack([sepia(scenes(1, 1)[0])] * 5))
    assert Div(alex).score(same).values["div"] == pytest.approx(0, abs=1e-9)
