"""Datasets: every folder of datasets/ keeps the contract; pictures are decoded as a second implementation says."""

import io
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.contracts import BenchError, with_token
from bench.data import decoding, identity, loading, rendering, schema, sources
from bench.mini import scenes, styles
from bench.paths import ROOT

P = 16
needs_mirror = pytest.mark.skipif(
    "BENCH_MIRROR" not in os.environ, reason="the photographs are not here: no BENCH_MIRROR"
)
STYLES = [name for name in schema.names() if schema.describe(name)["rendered"]]
SUBJECTS = [name for name in schema.names() if name.startswith("dreambooth/")]


def picture(height=20, width=30, channels=3, seed=0) -> np.ndarray:
    """Smooth noise, uint8 (height, width, channels)."""
    rough = np.random.default_rng(seed).integers(0, 256, (5, 5, channels), np.uint8)
    mode = {3: "RGB", 4: "RGBA"}[channels]
    return np.asarray(Image.fromarray(rough, mode=mode).resize((width, height)))


def saved(path: Path, array: np.ndarray, **options) -> str:
    Image.fromarray(array).save(path, **options)
    return str(path)


def folder_spec(**changes) -> dict:
    return {**schema.describe("folder"), "controls": [], **changes}


def loaded(**changes):
    return loading.load(folder_spec(**changes), P)


# --- every dataset that ships ------------------------------------------------------------------------------------


def test_there_is_a_dataset_for_every_held_out_style_subject_and_special_case():
    assert {schema.describe(name)["oracle"] for name in STYLES} == set(styles.HELD_OUT) and len(STYLES) >= 8
    assert len(SUBJECTS) == 30
    assert {"parkhouse", "poster_duck", "folder"} < set(schema.names())


def test_datasets_hold_no_python():
    assert not list(schema.FOLDER.rglob("*.py"))


def test_style_prompts_are_canonical_captions_of_24_different_scenes():
    prompts = schema.describe("halftone")["prompts"]
    canonical = {
        f"a photo of {scenes._article(f'{colour} {thing}')} {places[0]}"
        for colour in scenes.COLOURS
        for thing in scenes.OBJECTS
        for places in scenes.PLACES.values()
    }
    assert len(prompts) == 24 and set(prompts) < canonical


@pytest.mark.parametrize("name", STYLES)
def test_style_words_are_those_of_the_style(name):
    spec = schema.describe(name)
    assert spec["style_words"] == f"in {styles.STYLE_WORDS[spec['oracle']]} style"
    assert spec["noun"] in spec["rendered"]["kept_for_pairs"]


def test_seeds_of_the_rendered_styles_differ():
    assert len({schema.describe(name)["rendered"]["seed"] for name in STYLES}) == len(STYLES)


@pytest.mark.parametrize("name", SUBJECTS)
def test_controls_of_a_subject_are_eight_photographs_of_other_things(name):
    spec = schema.describe(name)
    others = [schema.describe(other) for other in spec["controls"]]
    assert name not in spec["controls"] and not any(other["noun"] == "dog" == spec["noun"] for other in others)
    assert sum(count for _, count in sources.control_datasets(spec)) == schema.CONTROLS
    assert "unique" not in str(spec["prompts"]) and all("{noun}" in prompt for prompt in spec["prompts"])


def test_the_subjects_have_the_158_photographs_of_the_original():
    assert sum(len(schema.describe(name)["files"]["sha256"]) for name in SUBJECTS) == 158


@needs_mirror
def test_subject_prompts_and_class_words_are_those_of_the_original():
    text = (Path(os.environ["BENCH_MIRROR"]) / "dreambooth" / "prompts_and_classes.txt").read_text()
    classes = dict(re.findall(r"^(\w+),([\w ]+)$", text, re.MULTILINE))
    things, living = (re.findall(r"^'(a .*)'\.format", part, re.MULTILINE) for part in text.split("prompt_list")[1:])
    assert len(things) == len(living) == 25
    for name in SUBJECTS:
        spec = schema.describe(name)
        assert spec["noun"] == classes[name.partition("/")[2]]
        published = living if spec["noun"] in ("dog", "cat") else things
        assert [with_token(prompt.format(noun=spec["noun"]), spec["noun"], "sks") for prompt in spec["prompts"]] == [
            prompt.format("sks", spec["noun"]) for prompt in published
        ]


def test_every_subject_is_attributed():
    text = (schema.FOLDER / "dreambooth" / "ATTRIBUTION.md").read_text()
    assert all(f"**{name.partition('/')[2]}**" in text for name in SUBJECTS)


def test_addresses_are_pinned_to_a_whole_commit():
    for name in schema.names():
        for file in sources.files(schema.describe(name)):
            commit = file.url.split("/")[5]
            assert len(commit) == 40 and int(commit, 16), file.url


def test_nothing_heavy_is_imported_to_describe_and_identify():
    code = (
        "import sys; from bench.data import identity, schema; "
        "[identity.identity(schema.describe(n)) for n in schema.names()];"
        "assert not {'torch', 'numpy', 'PIL', 'pandas', 'bench.mini'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# --- descriptions ------------------------------------------------------------------------------------------------


def test_a_base_is_merged_mappings_deeply_and_the_rest_replaced(tmp_path):
    (tmp_path / "one.yaml").write_text("noun: a\nprompts: [x, y]\nrendered: {seed: 0, pairs: 1}\n")
    (tmp_path / "two.yaml").write_text("noun: b\n")
    (tmp_path / "own.yaml").write_text("base: [one.yaml, two.yaml]\nprompts: [z]\nrendered: {seed: 5}\n")
    assert schema._merged(tmp_path / "own.yaml") == {"noun": "b", "prompts": ["z"], "rendered": {"seed": 5, "pairs": 1}}


def test_an_unknown_dataset_is_a_sentence():
    with pytest.raises(BenchError, match="no dataset is called 'halftoen'; did you mean halftone"):
        schema.describe("halftoen")


def test_an_unknown_key_is_a_sentence():
    with pytest.raises(BenchError, match="dataset folder has the unknown key 'promts'; did you mean 'prompts'?"):
        loaded(promts=["a cat"])


def test_broken_yaml_is_a_sentence(tmp_path):
    (tmp_path / "broken.yaml").write_text("a: [1, 2\n")
    with pytest.raises(BenchError, match="broken.yaml cannot be read as YAML"):
        schema._merged(tmp_path / "broken.yaml")
    with pytest.raises(BenchError, match="nowhere.yaml cannot be read"):
        schema._merged(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"prompts": "a cat"}, "prompts: 'a cat'; a list is needed"),
        ({"prompts": []}, "a list is needed"),
        ({"seeds": [0, "one"]}, r"seeds: \[0, 'one'\]; a list is needed, type dataset.seeds="),
        ({"seeds": 3}, "a list is needed"),
        ({"noun": ""}, "has no class word; type dataset.noun=dog"),
        ({"pair": ["a.png"]}, r"two images are needed, type dataset.pair=\[plain.png,stylised.png\]"),
        ({"pair": "a.png"}, "two images are needed"),
        ({"pair": [["a.png", "b.png"], ["c.png"]]}, "two images are needed"),
        ({}, r"names no images; type dataset.pair=\[plain.png,stylised.png\] or dataset.references="),
    ],
)
def test_settings_of_the_wrong_kind_are_sentences(change, words):
    with pytest.raises(BenchError, match=words):
        loaded(**change)


# --- the user's own images ---------------------------------------------------------------------------------------


def test_a_pair_is_loaded_with_its_words(tmp_path):
    plain, drawn = (saved(tmp_path / f"{k}.png", picture(seed=k)) for k in range(2))
    dataset = loaded(pair=[plain, drawn], noun="dog", style_words="in ink style")
    (pair,) = dataset.pairs
    assert pair.content.caption == pair.style.caption == "a photo of a dog" and pair.content.noun == "dog"
    assert (pair.content.image == decoding.read(Path(plain), P)).all()
    assert (pair.style.image == decoding.read(Path(drawn), P)).all()
    assert dataset.provides == {"pairs", "class"} and dataset.oracle is None and dataset.reference_set is None
    assert dataset.styled("a cat") == "a cat in ink style"


def test_several_pairs_and_a_folder_of_references(tmp_path):
    paths = [saved(tmp_path / f"{k}.png", picture(seed=k)) for k in range(4)]
    (tmp_path / "notes.txt").write_text("not an image, left alone")
    dataset = loaded(pair=[paths[:2], paths[2:]], references=str(tmp_path))
    assert len(dataset.pairs) == 2 and len(dataset.references) == 4
    for example, path in zip(dataset.references, paths, strict=True):
        assert (example.image == decoding.read(Path(path), P)).all()
    assert len(loaded(references=paths[:3]).references) == 3


def test_controls_of_your_own_images_are_eight_plain_scenes_about_other_things(tmp_path):
    pair = [saved(tmp_path / f"{k}.png", picture(seed=k)) for k in range(2)]
    images = loading.load({**schema.describe("folder"), "pair": pair, "noun": "cat"}, P).controls
    assert len(images) == 8 and len({image.tobytes() for image in images}) == 8
    drawn = [
        rendering._scene(0, rendering.CONTROL, k, only=[o for o in scenes.OBJECTS if o != "cat"]) for k in range(8)
    ]
    assert len({scene.object for scene in drawn} - {"cat"}) == 8


def test_subject_prompts_take_the_class_word(tmp_path):
    dataset = loaded(references=[saved(tmp_path / "a.png", picture())], noun="cat", prompts=["a {noun} in the snow"])
    assert dataset.prompts == ("a cat in the snow",) and dataset.style_words is None
    assert dataset.styled("a cat") == "a cat"


def test_pair_of_different_sizes(tmp_path):
    pair = [saved(tmp_path / "a.png", picture(20, 30)), saved(tmp_path / "b.png", picture(20, 31))]
    with pytest.raises(
        BenchError, match=r"pair of different sizes: .*a.png has 30 x 20 pixels and .*b.png has 31 x 20"
    ):
        loaded(pair=pair)


def test_missing_file(tmp_path):
    spec = folder_spec(pair=[saved(tmp_path / "a.png", picture()), str(tmp_path / "b.png")])
    assert "b.png, which is no file here; correct the path" in sources.missing(spec)
    with pytest.raises(BenchError, match="b.png, which is no file here"):
        loading.load(spec, P)
    with pytest.raises(BenchError, match="b.png does not exist"):
        decoding.decode(tmp_path / "b.png")


def test_empty_folder(tmp_path):
    spec = folder_spec(references=str(tmp_path))
    assert "is empty: it holds no images" in sources.missing(spec)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(BenchError, match="is empty: it holds no images .*put some there or name another folder"):
        loading.load(spec, P)


def test_a_folder_that_is_none_and_a_folder_in_the_place_of_an_image(tmp_path):
    with pytest.raises(BenchError, match="nowhere, which is not a folder; type dataset.references=/path"):
        loaded(references=str(tmp_path / "nowhere"))
    with pytest.raises(BenchError, match="is a folder where an image is needed"):
        decoding.decode(tmp_path)


def test_what_is_no_image(tmp_path):
    (tmp_path / "a.png").write_text("this is text")
    with pytest.raises(BenchError, match="a.png cannot be read as an image"):
        loaded(references=str(tmp_path))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_truncated_image_of_any_kind_is_a_sentence_at_any_length(tmp_path, kind):
    buffer = io.BytesIO()
    Image.fromarray(picture(40, 40)).save(buffer, kind)
    whole, path, refused = buffer.getvalue(), tmp_path / "cut", 0
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:length])
        try:
            decoding.read(path, P)
        except BenchError as error:
            assert "cut cannot be read as an image, it is truncated" in str(error)
            refused += 1
    assert refused > 20


# --- decoding ----------------------------------------------------------------------------------------------------


def test_the_camera_s_orientation_is_honoured(tmp_path):
    array = picture(24, 24)
    for orientation, turned in [(1, array), (3, np.rot90(array, 2)), (6, np.rot90(array, -1)), (8, np.rot90(array))]:
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = saved(tmp_path / f"{orientation}.png", array, exif=exif)
        assert (decoding.read(Path(path), 24) == turned.transpose(2, 0, 1)).all()


def test_sizes_of_a_pair_are_compared_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pair = [saved(tmp_path / "a.png", picture(20, 30)), saved(tmp_path / "b.png", picture(30, 20), exif=exif)]
    assert len(loaded(pair=pair).pairs) == 1


def test_transparency_lies_on_white(tmp_path):
    array = picture(P, P, 4)
    read = decoding.read(Path(saved(tmp_path / "a.png", array)), P).astype(int)
    for y in range(P):
        for x in range(P):
            alpha = array[y, x, 3] / 255
            for c in range(3):
                assert abs(read[c, y, x] - (alpha * array[y, x, c] + (1 - alpha) * 255)) <= 1


def test_a_palette_with_a_transparent_colour_lies_on_white(tmp_path):
    image = Image.new("P", (P, P), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "a.png", transparency=1)
    read = decoding.read(tmp_path / "a.png", P)
    assert read[:, 0, 0].tolist() == [255, 0, 0] and (read[:, 1:, 1:] == 255).all()


def test_grey_becomes_rgb_and_sixteen_bits_are_scaled(tmp_path):
    grey = picture(P, P)[..., 0]
    eight = decoding.read(Path(saved(tmp_path / "8.png", grey)), P)
    sixteen = decoding.read(Path(saved(tmp_path / "16.png", grey.astype(np.uint16) * 257)), P)
    assert (eight == grey).all() and (sixteen == grey).all() and eight.shape == (3, P, P)


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (P, P), (0, 0, 0, 0)).save(tmp_path / "a.jpg")
    assert (decoding.read(tmp_path / "a.jpg", P) >= 254).all()


@pytest.mark.parametrize("height, width", [(64, 96), (96, 64), (64, 64), (16, 16)])
def test_short_side_then_centre(height, width):
    image = Image.fromarray(picture(height, width))
    scale = 16 / min(height, width)
    small = image.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    left, top = (small.width - 16) // 2, (small.height - 16) // 2
    expected = np.asarray(small.crop((left, top, left + 16, top + 16))).transpose(2, 0, 1)
    assert (
        np.abs(decoding.fit(image, 16).astype(int) - expected).max() <= 2
    )  # PIL rounds once more where it resizes twice


def test_shrinking_is_antialiased():
    checks = np.indices((256, 256)).sum(0)[..., None].repeat(3, -1) % 2 * np.uint8(255)
    assert np.ptp(decoding.fit(Image.fromarray(checks.astype(np.uint8)), 16).astype(int)) <= 2


# --- identity ----------------------------------------------------------------------------------------------------


def test_identity_follows_contents_not_paths(tmp_path):
    (tmp_path / "x").mkdir()
    pairs = [[saved(tmp_path / place / f"{k}.png", picture(seed=k)) for k in range(2)] for place in (".", "x")]
    first, second = (identity.identity(folder_spec(pair=pair)) for pair in pairs)
    assert first == second
    saved(tmp_path / "x" / "1.png", picture(seed=7))
    assert identity.identity(folder_spec(pair=pairs[1])) != first
    assert identity.identity(folder_spec(pair=pairs[0][::-1])) != first
    assert identity.identity(folder_spec(references=pairs[0])) != first


@pytest.mark.parametrize(
    "key, value, same",
    [("licence", "x", True), ("source", "x", True), ("version", 2, False), ("prompts", ["a cat"], False)]
    + [("seeds", [0, 1, 2], False), ("noun", "boat", False), ("style_words", "in x style", False)],
)
def test_identity_follows_every_setting_that_images_depend_on(key, value, same):
    spec = schema.describe("halftone")
    assert (identity.identity({**spec, key: value}) == identity.identity(spec)) == same


def test_identity_of_a_rendered_style_follows_the_source_that_draws_it(monkeypatch):
    before = {name: identity.identity(schema.describe(name)) for name in ("halftone", "poster_duck", "dreambooth/cat")}
    monkeypatch.setattr(identity, "drawing_source", lambda: "another")
    changed = [name for name, old in before.items() if identity.identity(schema.describe(name)) != old]
    assert changed == ["halftone", "poster_duck"]


@needs_mirror
def test_a_pinned_dataset_has_its_identity_before_it_is_staged(monkeypatch, tmp_path):
    staged = identity.identity(schema.describe("dreambooth/duck_toy"))
    monkeypatch.delenv("BENCH_MIRROR")
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    assert sources.missing(schema.describe("dreambooth/duck_toy")) is not None
    assert identity.identity(schema.describe("dreambooth/duck_toy")) == staged


# --- staged photographs ------------------------------------------------------------------------------------------


def test_photographs_that_are_not_staged_are_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    sentence = sources.missing(schema.describe("parkhouse"))
    for words in ("parkhouse/real/dog.png", "none that covers redistribution", "python -m bench.fetch parkhouse"):
        assert words in sentence
    assert "BENCH_MIRROR" in sentence
    with pytest.raises(BenchError, match="are not on this machine"):
        loading.load(schema.describe("parkhouse"), P)


def test_wrong_checksum(monkeypatch, tmp_path):
    monkeypatch.setenv("BENCH_MIRROR", str(tmp_path))
    (tmp_path / "dreambooth" / "duck_toy").mkdir(parents=True)
    spec = {**schema.describe("dreambooth/duck_toy"), "controls": []}
    for file in sources.files(spec):
        saved(tmp_path / file.path, picture())
    assert sources.missing(spec) is None
    with pytest.raises(BenchError, match=r"00.jpg has the wrong checksum.*python -m bench.fetch dreambooth/duck_toy"):
        loading.load(spec, P)


@needs_mirror
def test_a_subject_is_its_photographs():
    dataset = loading.load(schema.describe("dreambooth/duck_toy"), P)
    assert dataset.provides == {"references", "class"} and dataset.style_words is None
    assert [example.caption for example in dataset.references] == ["a photo of a toy"] * 4
    assert len(dataset.controls) == 8 and dataset.prompts[0] == "a toy in the jungle" and len(dataset.prompts) == 25
    path = Path(os.environ["BENCH_MIRROR"]) / "dreambooth" / "duck_toy" / "02.jpg"
    assert (dataset.references[2].image == decoding.read(path, P)).all()


@needs_mirror
def test_the_poster_pair_is_a_photograph_and_its_posterised_self():
    dataset = loading.load(schema.describe("poster_duck"), 64)
    (pair,) = dataset.pairs
    path = Path(os.environ["BENCH_MIRROR"]) / "dreambooth" / "duck_toy" / "00.jpg"
    assert (pair.content.image == decoding.read(path, 64)).all()
    assert (pair.style.image == dataset.oracle(pair.content.image)).all()
    assert len(np.unique(pair.style.image.reshape(3, -1), axis=1).T) <= 8
    assert dataset.references == () and len(dataset.controls) == 8


# --- rendered styles ---------------------------------------------------------------------------------------------


def rendered(name="halftone", **plan) -> dict:
    """The style with few pictures."""
    spec = schema.describe(name)
    few = {"references": 3, "auxiliary": 3, "reference_set": 5, **plan}
    return {**spec, "controls": [], "rendered": {**spec["rendered"], **few}}


def same(ours, theirs) -> bool:
    return all(a.caption == b.caption and (a.image == b.image).all() for a, b in zip(ours, theirs, strict=True))


def test_a_style_provides_what_the_issue_asks_for():
    plan = schema.describe("halftone")["rendered"]
    assert {key: plan[key] for key in ("pairs", "references", "auxiliary", "reference_set")} == {
        "pairs": 1, "references": 20, "auxiliary": 20, "reference_set": 512,
    }  # fmt: skip
    dataset = loading.load(rendered(), 64)
    assert dataset.provides == {"pairs", "references", "auxiliary", "class", "oracle"}


def test_the_stylised_half_is_the_oracle_of_the_plain_one():
    dataset = loading.load(rendered("blueprint", pairs=3), 64)
    for pair in dataset.pairs:
        assert (dataset.oracle(pair.content.image) == pair.style.image).all()
        drawn = styles.HELD_OUT["blueprint"](pair.content.image.transpose(1, 2, 0).copy())
        assert (drawn == pair.style.image.transpose(1, 2, 0)).all()
        assert pair.content.noun == "house" and "house" in pair.content.caption
    again = pickle.loads(pickle.dumps(dataset.oracle))
    assert (again(dataset.pairs[0].content.image) == dataset.pairs[0].style.image).all()


def test_pictures_are_the_same_each_time_and_more_leave_the_earlier_ones():
    once, again, more = (loading.load(rendered(**plan), 64) for plan in ({}, {}, {"references": 4, "auxiliary": 5}))
    assert same(once.references, again.references) and same(once.auxiliary, again.auxiliary)
    assert same(once.references, more.references[:3]) and same(once.auxiliary, more.auxiliary[:3])
    assert once.content_hash == again.content_hash != more.content_hash
    assert len({example.image.tobytes() for example in more.references + more.auxiliary}) == 9


def test_no_reference_shows_what_a_prompt_asks_for():
    spec = schema.describe("halftone")
    captions = {
        scenes.plain_caption(rendering._scene(spec["rendered"]["seed"], role, k, unlike=spec["prompts"]))
        for role in (rendering.REFERENCES, rendering.AUXILIARY)
        for k in range(20)
    }
    assert not captions & set(spec["prompts"]) and len(captions) > 30
    first = scenes.plain_caption(rendering._scene(1, rendering.REFERENCES, 0))
    assert scenes.plain_caption(rendering._scene(1, rendering.REFERENCES, 0, unlike=[first])) != first


def test_auxiliary_pictures_are_in_known_styles_by_turns():
    dataset = loading.load(rendered(auxiliary=2), 64)
    scene = rendering._scene(
        schema.describe("halftone")["rendered"]["seed"], rendering.AUXILIARY, 1, unlike=dataset.prompts
    )
    manner = sorted(styles.KNOWN)[1]
    assert (dataset.auxiliary[1].image.transpose(1, 2, 0) == styles.KNOWN[manner](scenes.render(scene))).all()


def test_styles_are_drawn_at_the_resolution_asked_for():
    dataset = loading.load(rendered(references=1, auxiliary=1), 96)
    assert dataset.pairs[0].style.image.shape == (3, 96, 96)
    assert (dataset.oracle(dataset.pairs[0].content.image) == dataset.pairs[0].style.image).all()


def test_the_reference_set_is_drawn_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    dataset = loading.load(rendered(), 64)
    assert not (tmp_path / "reference_sets").exists()  # not before a metric asks
    images = dataset.reference_set()
    assert images.shape == (5, 3, 64, 64) and images.dtype == np.uint8
    others = loading.load(rendered("blueprint"), 64).reference_set
    monkeypatch.setattr(rendering, "_draw", None)
    assert (dataset.reference_set() == images).all()
    assert others().shape == images.shape  # another style of the same scenes: nothing is rendered again


def test_the_reference_set_is_the_oracle_of_scenes_about_no_training_object(monkeypatch, tmp_path):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    dataset, plan = loading.load(rendered(), 64), rendered()["rendered"]
    others = [name for name in scenes.OBJECTS if name not in plan["kept_for_pairs"]]
    for k, image in enumerate(dataset.reference_set()):
        scene = rendering._scene(plan["reference_seed"], rendering.REFERENCE_SET, k, only=others)
        assert scene.object not in plan["kept_for_pairs"]
        assert (image == dataset.oracle(scenes.render(scene).transpose(2, 0, 1))).all()


def test_a_damaged_reference_set_is_drawn_again(monkeypatch, tmp_path):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    make = loading.load(rendered(), 64).reference_set
    images = make()
    for path in (tmp_path / "reference_sets").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert (make() == images).all()


def test_an_unknown_style_is_a_sentence():
    with pytest.raises(BenchError, match="has oracle: 'halftoon', no style of bench/mini/styles.py; known are"):
        loading.load({**rendered(), "oracle": "halftoon"}, P)
    with pytest.raises(BenchError, match="rendered but names no style"):
        loading.load({**rendered(), "oracle": None}, P)


# --- evaluation prompts from a table -----------------------------------------------------------------------------

CONCEPTS = [name for name in schema.names() if name.startswith("sliders/")]
TABLE = 'case,prompt,seed\n0,a {cat},3\n1,a {cat},11\n2,"a car, parked",3\n3,a {cat},3\n'


def tabled(tmp_path, text=TABLE, ending="csv", **table):
    path = tmp_path / f"prompts.{ending}"
    path.write_text(text)
    return folder_spec(prompts={"file": str(path), "column": "prompt", "seeds": "seed", **table})


def test_a_table_gives_each_prompt_its_own_seeds_and_braces_stay(tmp_path):
    from bench.sampling.sampler import shots

    dataset = loading.load(tabled(tmp_path), P)
    assert dataset.prompts == ("a {cat}", "a car, parked") and dataset.own_seeds == ((3, 11), (3,))
    assert [(shot.index, shot.prompt, shot.seed) for shot in shots(dataset)] == [
        (0, "a {cat}", 3), (0, "a {cat}", 11), (1, "a car, parked", 3)
    ]  # fmt: skip
    assert not dataset.pairs and not dataset.references


def test_without_a_column_of_seeds_the_seeds_of_the_dataset_serve_all_prompts(tmp_path):
    from bench.sampling.sampler import shots

    dataset = loading.load(
        tabled(tmp_path, "Prompt\tKind\na cat\t1\na car\t2\n", "tsv", column="Prompt", seeds=None), P
    )
    assert [(shot.prompt, shot.seed) for shot in shots(dataset)] == [
        (prompt, seed) for prompt in ("a cat", "a car") for seed in (0, 1)
    ]


def test_the_content_of_a_table_names_the_dataset_and_its_place_does_not(tmp_path):
    (tmp_path / "moved").mkdir()
    first, moved = tabled(tmp_path), tabled(tmp_path / "moved")
    assert identity.identity(first) == identity.identity(moved)
    assert identity.identity(tabled(tmp_path / "moved", TABLE.replace("11", "12"))) != identity.identity(first)
    assert identity.identity(tabled(tmp_path, seeds=None)) != identity.identity(first)


@pytest.mark.parametrize(
    "text, table, words",
    [
        (TABLE, {"column": "text"}, "has no column 'text', only case, prompt, seed"),
        (TABLE, {"columns": "prompt"}, r"a list is needed, or a table as in prompts: \{file"),
        (TABLE, {"column": None}, "or a table as in"),
        (TABLE + "4,a dog,\n", {}, "line 6 of .* has the seed ''; a whole number is needed"),
        ("prompt,seed\n", {}, "holds no prompts"),
    ],
)
def test_damaged_tables_are_sentences(tmp_path, text, table, words):
    with pytest.raises(BenchError, match=words):
        loading.load(tabled(tmp_path, text, **table), P)


def test_a_table_that_is_not_there_is_a_sentence():
    with pytest.raises(BenchError, match="names nowhere.csv, which is no file here"):
        loaded(prompts={"file": "nowhere.csv", "column": "prompt"})


@needs_mirror
@pytest.mark.parametrize("name", CONCEPTS)
def test_the_images_of_a_slider_concept_are_the_published_rows_in_order(name):
    from bench.sampling.sampler import shots

    dataset = loading.load(schema.describe(name), P)
    lines = (Path(os.environ["BENCH_MIRROR"]) / "sliders" / f"prompts-{dataset.noun}.csv").read_text().splitlines()
    published = [(line.split(",")[1], int(line.split(",")[2])) for line in lines[1:]]
    assert [(shot.prompt, shot.seed) for shot in shots(dataset)] == published and len(published) == 500
    assert len(dataset.prompts) == 25 and {len(seeds) for seeds in dataset.own_seeds} == {20}


def test_there_is_a_dataset_for_every_published_concept():
    assert CONCEPTS == [f"sliders/{concept}" for concept in ("car", "food", "person", "room", "sky")]
