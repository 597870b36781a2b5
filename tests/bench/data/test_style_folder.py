"""A style as a folder of folders: roles, who shows a person, and what is told when the folders make no sense."""

import os

import numpy as np
import pytest
from PIL import Image

from bench.contracts import BenchError
from bench.data import identity, loading, rendering, schema, sources

P = 16


@pytest.fixture
def style(tmp_path):
    """Make a style folder: `style("references", "auxiliary")`, three pictures in each."""
    seeds = iter(range(100))

    def make(*roles, count=3):
        for role in roles:
            (tmp_path / role).mkdir(parents=True)
            for k in range(count):
                pixels = np.random.default_rng(next(seeds)).integers(0, 256, (P, P, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / role / f"{k}.png")
        return tmp_path

    return make


def spec(root, **changes):
    plain = {**schema.describe("folder"), "prompts": ["a cat"], "controls": [], "style_words": "in anime style"}
    return {**plain, "root": str(root), **changes}


def pictures(folder):
    return [np.asarray(Image.open(path)).transpose(2, 0, 1) for path in sorted(folder.iterdir())]


def test_each_folder_is_its_role(style):
    root = style("references", "auxiliary", "reference_set")
    dataset = loading.load(spec(root), P)
    for role in ("references", "auxiliary"):
        assert np.array_equal([example.image for example in getattr(dataset, role)], pictures(root / role))
    assert np.array_equal(dataset.reference_set(), pictures(root / "reference_set"))
    assert {"references", "auxiliary"} <= dataset.provides and dataset.styled("a cat") == "a cat in anime style"
    assert not any(example.person for example in dataset.references)


@pytest.mark.skipif("BENCH_MIRROR" not in os.environ, reason="PartiPrompts is not here: no BENCH_MIRROR")
def test_the_dataset_for_such_folders_asks_for_the_published_prompts(style):
    root = style("references", "auxiliary")
    dataset = loading.load({**schema.describe("styleforge"), "root": str(root), "controls": []}, P)
    assert len(dataset.prompts) * len(dataset.seeds) == 9372
    assert len(dataset.references) == len(dataset.auxiliary) == 3 and dataset.reference_set is None


def test_divided_references_know_who_shows_a_person(style):
    root = style("person", "background", "auxiliary")
    references = loading.load(spec(root), P).references
    shown = [example.image for example in references]
    assert np.array_equal(shown, pictures(root / "person") + pictures(root / "background"))
    assert [example.person for example in references] == [True] * 3 + [False] * 3


def test_a_role_can_be_named_beside_the_root(style, tmp_path):
    root = style("references", "elsewhere/art")
    other = root.parent / f"{root.name}_art"
    (root / "elsewhere" / "art").rename(other)
    (root / "elsewhere").rmdir()
    dataset = loading.load(spec(root, auxiliary=str(other)), P)
    assert np.array_equal([example.image for example in dataset.auxiliary], pictures(other))


def test_identity_follows_images_and_their_division_not_the_place(style, tmp_path):
    root = style("person", "background", "auxiliary")
    first = identity.identity(spec(root))
    moved = root.rename(root.parent / f"{root.name}_moved")
    assert identity.identity(spec(moved)) == first
    (moved / "person").rename(moved / "swap")
    (moved / "background").rename(moved / "person")
    (moved / "swap").rename(moved / "background")
    assert identity.identity(spec(moved)) != first


@pytest.mark.parametrize(
    "roles, words",
    [
        (["refernces"], "folder refernces, which means nothing here; did you mean references?"),
        (["auxiliary"], "holds no references/; make it and put images of the style there"),
        (["person"], "holds no background/; make it"),
        (["background", "auxiliary"], "holds no person/; make it"),
        (["references", "person", "background"], r"holds references/ and person/; keep references/, or person/"),
    ],
)
def test_folders_that_make_no_sense_are_sentences(style, roles, words):
    root = style(*roles)
    for ask in (sources.missing, identity.identity, lambda requested: loading.load(requested, P)):
        with pytest.raises(BenchError, match=words):
            ask(spec(root))


def test_an_empty_folder_and_one_that_is_none_are_sentences(style, tmp_path):
    root = style("references")
    (root / "auxiliary").mkdir()
    assert "of dataset.auxiliary is empty" in sources.missing(spec(root))
    with pytest.raises(BenchError, match="which is not a folder; type dataset.root=/path/to/a/style"):
        sources.missing(spec(tmp_path / "nowhere"))
    assert "or dataset.root=/path/to/a/style" in sources.missing({**schema.describe("folder"), "controls": []})


def test_an_image_that_is_trained_on_and_compared_with_is_a_sentence(style):
    root = style("references", "reference_set")
    assert sources.missing(spec(root)) is None
    (root / "reference_set" / "copy.png").write_bytes((root / "references" / "1.png").read_bytes())
    assert "copy.png of the reference set is trained on, too" in sources.missing(spec(root))


def test_the_twins_of_mini_hold_both_kinds_of_references():
    for name in schema.names():
        described = schema.describe(name)
        if described["rendered"]:
            seed, prompts = described["rendered"]["seed"], described["prompts"]
            scenes = [rendering._scene(seed, rendering.REFERENCES, k, unlike=prompts) for k in range(20)]
            living = sum(scene.object in {"person", "dog", "cat", "bird", "fish"} for scene in scenes)
            assert described["person_nouns"] and 1 <= living <= 19, (name, living)


def test_a_drawn_reference_says_whether_it_shows_a_person(monkeypatch):
    described = schema.describe("halftone")
    plan = {**described["rendered"], "references": 8, "auxiliary": 0, "pairs": 0}
    references = loading.load({**described, "rendered": plan, "controls": []}, 8).references
    assert [example.person for example in references] == [
        example.noun in ("person", "dog", "cat", "bird", "fish") for example in references
    ]
    assert len({example.person for example in references}) == 2
