"""Floors and ceilings: the truth of the metrics, training images in turn, and nothing drawn for either."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tiny import picture, tiny_dataset

from bench.contracts import BenchError, Evaluation, Example, Pair, Truth
from bench.sampling.sampler import shots
from bench.steps.sample import images
from bench.steps.work import Work
from methods.copy import Copy
from methods.oracle import Oracle
from methods.zero_shot import ZeroShot
from metrics.oracle import rms, truth

BASELINE = np.stack([picture(10 + i) for i in range(4)])
PROMPTS = [f"a photo of a {k}" for k in range(len(BASELINE))]


def examples(*seeds):
    return tuple(Example(picture(seed), "a photo of a dog", "dog") for seed in seeds)


def work_of(method, folder, dataset):
    """The parts that `steps.sample.images` uses, with a baseline that is there already."""
    work = Work(SimpleNamespace(run_id="a-cell"), folder)
    work.method, work.dataset, work.baseline, work.shots = method, dataset, BASELINE, shots(dataset)
    return work


def test_the_oracle_gives_what_the_metrics_call_the_truth(tmp_path):
    data = tiny_dataset()
    made = Oracle().from_baseline(BASELINE, PROMPTS, data)
    evaluation = Evaluation(made, BASELINE, ["p"] * 4, ["p"] * 4, [0] * 4, data, tmp_path)
    assert rms(made, truth(evaluation)).tolist() == [0.0] * 4
    assert rms(BASELINE, truth(evaluation)).min() > 0.1


def test_the_oracle_gives_the_true_picture_of_each_prompt_where_there_is_one():
    true = {prompt: Truth(np.stack([picture(50 + k), picture(60 + k)]), {}) for k, prompt in enumerate(PROMPTS)}
    data = tiny_dataset(oracle=None, truth=true.get)
    assert Oracle().lacks(data) is None
    made = Oracle().from_baseline(BASELINE, PROMPTS, data)
    assert all((made[k] == picture(50 + k)).all() for k in range(len(PROMPTS)))
    with pytest.raises(BenchError, match="no style function and knows no true picture of 'a cat'"):
        Oracle().from_baseline(BASELINE[:1], ["a cat"], data)


def test_the_copy_gives_the_style_halves_of_the_pairs_in_turn():
    plain, styled = examples(1, 2, 3), examples(4, 5, 6)
    data = tiny_dataset(pairs=tuple(map(Pair, plain, styled)), references=examples(7))
    made = Copy().from_baseline(BASELINE, PROMPTS, data)
    assert [image.tobytes() for image in made] == [styled[i].image.tobytes() for i in (0, 1, 2, 0)]


def test_without_pairs_the_copy_gives_the_references_in_turn():
    data = tiny_dataset(pairs=(), references=examples(7, 8))
    made = Copy().from_baseline(BASELINE, PROMPTS, data)
    assert [image.tobytes() for image in made] == [data.references[i].image.tobytes() for i in (0, 1, 0, 1)]


def test_what_they_lack_has_a_name():
    assert Oracle().lacks(tiny_dataset()) is None and Oracle().lacks(tiny_dataset(oracle=None)) == "oracle"
    assert Copy().lacks(tiny_dataset()) is None
    assert Copy().lacks(tiny_dataset(pairs=(), references=())) == "references or pairs"


@pytest.mark.parametrize("method", [Oracle(), Copy()])
def test_their_images_are_stored_like_all_others_and_nothing_is_drawn(method, tmp_path, monkeypatch):
    def forbidden(*args):
        raise AssertionError("an image was drawn")

    monkeypatch.setattr("bench.steps.sample.draw", forbidden)
    work = work_of(method, tmp_path, tiny_dataset())
    assert np.array_equal(images(work, 1.0), method.from_baseline(BASELINE, PROMPTS, tiny_dataset()))
    stored = [np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("images/strength=1/*.png"))]
    assert np.array_equal(np.stack(stored).transpose(0, 3, 1, 2), images(work, 1.0))


def test_other_methods_are_drawn_and_what_trains_nothing_once_for_all_seeds(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    drawn = []

    def draw(bank, requests, sampler, label, heed):
        drawn.append(label)
        return [255 - BASELINE]

    monkeypatch.setattr("bench.steps.sample.drawn", draw)
    works = [work_of(ZeroShot(), tmp_path / str(seed), tiny_dataset()) for seed in range(2)]
    for seed, work in enumerate(works):
        work.cell.identity, work.bank, work.sampler = {"seed": seed, "method": "zero_shot"}, None, None
        assert np.array_equal(images(work, 1.0), 255 - BASELINE)
    assert len(drawn) == 1 and not works[0].notes and "another training seed" in works[1].notes[0]
    assert "sample_s" in works[0].cost and "sample_s" not in works[1].cost
    images(works[1], 2.0)
    assert len(drawn) == 2
