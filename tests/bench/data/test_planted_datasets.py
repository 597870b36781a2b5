"""The dataset of docs/extending.md, with images for it, passes the inherited tests from any folder; mistakes planted
into it are caught. Its paths start at its yaml.
"""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import test_dataset_contract as contract
from PIL import Image

from bench.contracts import BenchError
from bench.data import decoding, loading, schema
from bench.mini import scenes, styles

GUIDE = (Path(__file__).parents[3] / "docs" / "extending.md").read_text()
SECTION = GUIDE[GUIDE.index("## Add a dataset") : GUIDE.index("## Add a metric")]
(BLOCK,) = re.findall(r"```yaml\n(.*?)```", SECTION, re.S)
NAME = "copper"
YAML = BLOCK + "reference_set: [more/9.png, more/10.png]\n"
INHERITED = [test for name, test in vars(contract).items() if name.startswith("test_")]


def copper(image):
    """uint8 (P, P, 3) -> the same in one warm colour on dark paper."""
    grey = image.mean(2, keepdims=True) / 255
    return (grey * np.array([230, 150, 90]) + 10).astype(np.uint8)


def scene(k):
    return scenes.render(scenes.sample_scene(np.random.default_rng(k), pairs=0.0))


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Its folder, the only one. The command is given elsewhere."""
    folder = tmp_path / "datasets" / NAME
    for place in ("prints", "more"):
        (folder / place).mkdir(parents=True)
    Image.fromarray(scene(0)).save(folder / "plain.png")
    Image.fromarray(copper(scene(0))).save(folder / "stylised.png")
    for k, place in ((1, "prints"), (2, "prints"), (9, "more"), (10, "more")):
        Image.fromarray(copper(scene(k))).save(folder / place / f"{k}.png")
    (folder / "dataset.yaml").write_text(YAML)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(schema, "FOLDER", tmp_path / "datasets")
    schema.names.cache_clear()
    yield folder
    schema.names.cache_clear()


def failing(tmp_path, monkeypatch, named=""):
    """Names of the inherited tests, of those whose names hold `named`, that fail, and of those that are skipped."""
    failed = set()
    for test in [test for test in INHERITED if named in test.__name__]:
        given = {"name": NAME, "tmp_path": tmp_path, "monkeypatch": monkeypatch}
        try:
            test(**{key: given[key] for key in test.__code__.co_varnames[: test.__code__.co_argcount]})
        except (AssertionError, BenchError):
            failed.add(test.__name__)
        except pytest.skip.Exception:
            failed.add(f"{test.__name__} skipped")
    return failed


def test_it_passes_and_nothing_is_skipped(mine, tmp_path, monkeypatch):
    assert failing(tmp_path, monkeypatch) == set()


def test_its_paths_start_at_its_yaml(mine):
    dataset = loading.load(schema.describe(NAME), 64)
    assert [len(dataset.pairs), len(dataset.references), len(dataset.reference_set())] == [1, 2, 2]
    assert (dataset.pairs[0].style.image == decoding.read(mine / "stylised.png", 64)).all()


def test_paths_of_the_command_line_start_where_it_is_given(mine):
    shutil.copy(mine / "prints" / "1.png", "mine.png")  # in the current folder
    dataset = loading.load({**schema.describe(NAME), "references": ["mine.png"]}, 64)
    assert (dataset.references[0].image == decoding.read(mine / "prints" / "1.png", 64)).all()


def test_paths_of_a_base_start_at_the_base_and_a_root_is_anchored_too(mine):
    (mine.parent / "base").mkdir()
    shutil.copytree(mine / "prints", mine.parent / "base" / "style" / "references")
    (mine.parent / "base.yaml").write_text("noun: house\nprompts: {file: p.csv, column: text}\nroot: base/style\n")
    (mine.parent / "p.csv").write_text("text\na cup\n")
    (mine / "dataset.yaml").write_text("base: ../base.yaml\nlicence: x\nsource: x\ncontrols: []\n")
    spec = schema.describe(NAME)
    dataset = loading.load(spec, 64)
    assert dataset.prompts == ("a cup",) and len(dataset.references) == 2
    assert spec["root"] == str(mine.parent / "base/style")


def test_staged_names_are_no_paths():
    spec = schema.describe("poster_duck")
    assert spec["pair"] == ["00.jpg"] and schema.describe("dreambooth/duck_toy")["references"] == "all"


PLANTED = {  # mistake: a change of the yaml, or of the files; and who catches it
    "a prompt twice": (("a photo of a dog in the snow]", "a photo of a red tree]"), "evaluation"),
    "a seed twice": (("seeds: [0, 1]", "seeds: [1, 1]"), "evaluation"),
    "style words in a prompt": (("a photo of a dog in the snow]", "a dog in copper print style]"), "evaluation"),
    "a prompt about the pair": (("a photo of a dog in the snow]", "a small house by the sea]"), "object_of_its_pair"),
    "no style words": (("style_words: in copper print style\n", ""), "object_of_its_pair"),
    "no licence": (("licence: CC0-1.0\n", ""), "in_full"),
    "another dataset's command": (("dataset=copper", "dataset=ink"), "in_full"),
    "halves swapped": (("[plain.png, stylised.png]", "[stylised.png, plain.png]"), "second_half"),
    "compared with a training image": (("more/9.png", "prints/1.png"), "compare_with"),
    "compared with the pair": (("more/9.png", "stylised.png"), "compare_with"),
    "a path that is not there": (("references: prints", "references: drawings"), "images_are_whole"),
    "the same half twice": (("[plain.png, stylised.png]", "[plain.png, plain.png]"), "second_half"),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_mistake_in_its_yaml_is_caught(mistake, mine, tmp_path, monkeypatch):
    (right, wrong), catches = PLANTED[mistake]
    assert YAML.count(right) == 1
    (mine / "dataset.yaml").write_text(YAML.replace(right, wrong))
    (name,) = failing(tmp_path, monkeypatch, catches)
    assert "skipped" not in name


@pytest.mark.parametrize("moved", [(8, 0), (0, -10), (6, 6)])
def test_a_pair_that_is_not_aligned_is_caught(moved, mine, tmp_path, monkeypatch):
    Image.fromarray(np.roll(copper(scene(0)), moved, (0, 1))).save(mine / "stylised.png")
    assert failing(tmp_path, monkeypatch, "test_the_halves_of_a_pair_are_the_same_picture") == {
        "test_the_halves_of_a_pair_are_the_same_picture"
    }


def test_a_blank_image_is_caught(mine, tmp_path, monkeypatch):
    Image.new("RGB", (64, 64), "white").save(mine / "prints" / "2.png")
    assert failing(tmp_path, monkeypatch, "test_its_images_are_whole_and_the_same_each_time") == {
        "test_its_images_are_whole_and_the_same_each_time"
    }


def test_an_oracle_that_is_not_the_style_of_the_pair_is_caught(mine, tmp_path, monkeypatch):
    assert "ink" in styles.HELD_OUT
    (mine / "dataset.yaml").write_text(YAML + "oracle: ink\n")
    assert failing(tmp_path, monkeypatch, "test_the_second_half_of_a_pair_is_the_stylised_one") == {
        "test_the_second_half_of_a_pair_is_the_stylised_one"
    }
