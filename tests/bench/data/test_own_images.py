"""Images of one's own: words that a method needs are asked for; a staged pair gives a row."""

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image
from tiny import picture

from bench.compose import cell, register_datasets
from bench.contracts import Impossible
from bench.errors import Unavailable
from bench.paths import CONF
from bench.run import run
from bench.steps.load import words_needed
from bench.steps.work import Work

SMALL = ["sampler.steps=1", "method.recipe.steps=2", "method.content_steps=1", "method.rank=2", "tracker=none"]
SMALL += ["dataset.prompts=[a photo of a red tree on a beach]", "dataset.seeds=[0]"]
SMALL += [f"~metrics.{name}" for name in ("fid", "kid", "cmmd", "prdc")]


def composed(results, *overrides):
    register_datasets()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return cell(compose("config", [f"results={results}", *overrides]))


@pytest.fixture
def pair(tmp_path):
    for name, image in (("plain", picture(3)), ("styled", 255 - picture(3))):
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(tmp_path / f"{name}.png")
    return f"dataset.pair=[{tmp_path}/plain.png,{tmp_path}/styled.png]"


NOUN, WORDS = "dataset.noun=dog", "'dataset.style_words=in ink style'"


@pytest.mark.parametrize(
    ("method", "given", "asked"),
    [
        ("pair", [], [NOUN, WORDS]),
        ("pair", [NOUN], [WORDS]),
        ("pair", [WORDS.strip("'")], [NOUN]),
        ("pair", [NOUN, WORDS.strip("'")], []),
        ("dreambooth", [], [NOUN]),
        ("dreambooth", [NOUN], []),
        ("zero_shot", [], []),
        ("ip_adapter", [], []),
    ],
)
def test_words_that_a_method_trains_with_are_asked_for(method, given, asked, pair, tmp_path):
    work = Work(composed(tmp_path, f"method={method}", "dataset=folder", pair, *given), tmp_path)
    if not asked:
        return words_needed(work)
    with pytest.raises(Impossible) as caught:
        words_needed(work)
    assert [word for word in (NOUN, WORDS) if word in str(caught.value)] == asked


def staged(folder):
    for name, image in (("real", picture(3)), ("styled", 255 - picture(3))):
        path = folder / "parkhouse" / name / "dog.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(path)


def test_the_cards_command_says_how_to_stage_the_pair_and_then_ends_in_a_row(tmp_path, monkeypatch):
    for name in ("BENCH_CACHE", "BENCH_MIRROR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    words = [tmp_path / "results", "method=pair", "dataset=parkhouse", *SMALL]
    with pytest.raises(Unavailable, match=r"needs 10 files .* type python -m bench\.fetch parkhouse"):
        run(composed(*words))
    staged(tmp_path / "BENCH_MIRROR")
    with pytest.raises(Unavailable, match=r"needs 8 files .* type dataset\.controls=\[scenes\]"):
        run(composed(*words))
    record = run(composed(*words, "dataset.controls=[scenes]"))
    assert record.status == "done" and {"clip_t", "lpips_leak"} <= {score["metric"] for score in record.scores}
