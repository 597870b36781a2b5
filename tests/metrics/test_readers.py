"""The readers as a metric: shares of right answers, counted here by hand over a network whose answers are known."""

import numpy as np
import pytest
import torch
from metric_cases import dataset

from bench.contracts import Evaluation, Impossible, Truth
from bench.mini.readers import Readers
from metrics.networks import ReadersNet
from metrics.readers import Reads

CLASSES = {"thing": ["bell", "dog", "ship"], "artist": ["noto", "openmoji"], "background": ["plain white"]}
PROMPTS = ["a dog", "a ship"] * 3


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readers")
    torch.manual_seed(0)
    Readers(CLASSES).save(folder, {"thing": 0.925, "artist": 0.99})
    return ReadersNet(folder=str(folder))


def case(tmp_path, artist="openmoji", prompts=PROMPTS):
    shown = {"a dog": "dog", "a ship": "ship"}

    def truth(prompt):
        return Truth(np.zeros((1, 3, 64, 64), np.uint8), {"thing": shown[prompt], "artist": artist, "background": ""})

    images = np.random.default_rng(1).integers(0, 256, (len(prompts), 3, 64, 64), np.uint8)
    seeds = [0] * len(prompts)
    return Evaluation(images, images, prompts, prompts, seeds, dataset(oracle=None, truth=truth), tmp_path)


@pytest.mark.parametrize("artist", CLASSES["artist"])
def test_shares_are_those_of_a_loop(network, tmp_path, artist):
    evaluation = case(tmp_path, artist)
    score, model = Reads(network).score(evaluation), Readers.load(network.files()[0].parent)
    said = [model.read(torch.from_numpy(image[None])) for image in evaluation.images]
    things = [100.0 * (s["thing"] == [p.removeprefix("a ")]) for s, p in zip(said, PROMPTS, strict=True)]
    artists = [100.0 * (s["artist"] == [artist]) for s in said]
    assert score.per_image["reads_content"].tolist() == things and score.per_image["reads_style"].tolist() == artists
    assert score.values["reads_style"] == pytest.approx(np.mean(artists))
    assert score.notes == ["the readers' own accuracy on real drawings that they were not trained on: "
                           "thing 92.5%, artist 99.0%"]  # fmt: skip


def test_other_artists_and_datasets_without_drawings_are_told(network, tmp_path):
    with pytest.raises(Impossible, match="know no artist called 'rembrandt'"):
        Reads(network).score(case(tmp_path, "rembrandt"))
    bare = case(tmp_path)
    object.__setattr__(bare, "dataset", dataset())
    with pytest.raises(Impossible, match="sepia does not say which thing by which artist 'a dog' shows"):
        Reads(network).score(bare)


def test_a_folder_without_weights_is_named(tmp_path):
    assert "holds no readers.safetensors" in ReadersNet(folder=str(tmp_path)).missing()
