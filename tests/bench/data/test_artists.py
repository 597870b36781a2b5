"""Datasets of one artist's drawings, from their yaml: roles, truth, identity, and larger pictures from SVG files."""

import json

import numpy as np
import pytest
from PIL import Image

from bench.contracts import BenchError
from bench.data import artists, emoji, identity, loading, schema
from bench.mini import drawings, pictures
from bench.paths import ROOT

NAMES = [f"emoji/{artist}" for artist in drawings.HELD_OUT_SETS]
P = 64


@pytest.fixture(scope="module")
def openmoji():
    return loading.load(schema.describe("emoji/openmoji"), P)


@pytest.mark.parametrize("name", NAMES)
def test_the_yaml_names_its_folders_artist_and_a_known_near_one(name):
    spec = schema.describe(name)
    assert spec["drawings"]["artist"] == name.split("/")[1] != spec["drawings"]["near"]
    assert spec["style_words"] == pictures.artist_words(spec["drawings"]["artist"])
    assert drawings.sheet(spec["drawings"]["artist"]).package in spec["source"]
    assert tuple(spec["prompts"]) == emoji.prompts()


def test_the_file_of_tuning_prompts_is_the_tuning_role():
    lines = (ROOT / "datasets" / "emoji" / "tuning.txt").read_text().splitlines()
    assert tuple(lines) == emoji.prompts("tuning")


def test_each_role_is_there(openmoji):
    assert openmoji.provides == {"pairs", "references", "auxiliary", "class", "oracle"}
    assert openmoji.counts == {"pairs": 1, "references": 20, "auxiliary": 20, "reference_set": 512}
    assert len(openmoji.controls) == 8 and not openmoji.aligned
    assert {example.noun for example in openmoji.references if example.person} == {"tiger", "horse", "bee"}
    (pair,) = openmoji.pairs
    white = pair.content.image.min(0) == 255  # the ground of both halves
    assert white[0].all() and (pair.style.image[:, 0] == 255).all()
    assert pair.content.caption == pair.style.caption == "a penguin on a white background"


def test_the_truth_of_a_prompt_is_the_sheets_drawing_on_its_background(openmoji):
    """Composed here by hand: the drawing's pixels where it is opaque, the background's where nothing is drawn."""
    for role in ("evaluation", "tuning"):
        for prompt, thing in list(zip(emoji.prompts(role), getattr(emoji.split(), role), strict=True))[:3]:
            found = openmoji.truth(prompt)
            cell = Image.fromarray(drawings.sheet("openmoji").drawing(thing)).convert("RGBa")
            small = np.asarray(cell.resize((56, 56), Image.Resampling.LANCZOS)).astype(int)
            inside = found.images[0][:, 4:60, 4:60].transpose(1, 2, 0).astype(int)
            opaque = small[..., 3] == 255
            assert opaque.any() and np.abs(inside[opaque] - small[opaque][:, :3]).max() <= 1
            behind = pictures.draw_background(emoji.background(thing, role), P) * 255
            ring = np.ones((P, P), bool)
            ring[4:60, 4:60] = False
            assert np.abs(found.images[0].transpose(1, 2, 0)[ring] - behind[ring]).max() <= 1
            assert found.classes["thing"] == thing and found.classes["artist"] == "openmoji"
            assert len(found.images) == 27
    assert openmoji.truth("a photo of a dog") is None


def test_other_prompts_than_its_own_have_no_truth():
    spec = {**_few("emoji/openmoji"), "prompts": ["a rabbit on a green background", "a photo of a dog"]}
    dataset = loading.load(spec, P)
    assert dataset.truth is None and "oracle" not in dataset.provides
    spec["prompts"] = list(emoji.prompts("tuning"))
    assert loading.load(spec, P).truth is not None


def test_aligned_artists_are_called_so():
    said = {name for name in NAMES if loading.load(_few(name), P).aligned}
    assert said == {"emoji/fluent-emoji-flat", "emoji/fluent-emoji-high-contrast"}


def test_the_identity_follows_the_artist_and_not_the_folder_of_packages(monkeypatch):
    spec = schema.describe("emoji/openmoji")
    elsewhere = {**spec, "drawings": {**spec["drawings"], "packages": "/elsewhere"}}
    near = {**spec, "drawings": {**spec["drawings"], "near": "noto"}}
    assert identity.identity(spec) == identity.identity(elsewhere) != identity.identity(near)


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("artist", "openmojo", "has artist: 'openmojo'; known are fluent-emoji"),
        ("references", 21, "has references: 21; type a number from 0 to 20"),
        ("pairs", "1", "has pairs: '1'; type a number from 0 to 4"),
    ],
)
def test_what_cannot_be_served_is_refused(key, value, said):
    with pytest.raises(BenchError, match=said):
        loading.load(_few("emoji/openmoji", **{key: value}), P)


def test_large_pictures_need_the_svg_files():
    with pytest.raises(BenchError, match="requested at 512 pixels, but its sheets serve up to 128"):
        loading.load(_few("emoji/openmoji"), 512)
    with pytest.raises(BenchError, match="holds no icons.json; type npm install"):
        loading.load(_few("emoji/openmoji", packages="/nowhere"), 512)


def test_large_pictures_are_drawn_from_the_svg_files(tmp_path):
    """A red rectangle instead of the drawing fills the left half of its place."""
    pytest.importorskip("resvg_py")
    version = drawings.sheet("openmoji").package.split()[-1]
    folder = tmp_path / "openmoji"
    folder.mkdir()
    body = '<rect width="8" height="16" fill="#f00"/>'
    (folder / "icons.json").write_text(json.dumps({"icons": {"penguin": {"body": body}}}))
    (folder / "info.json").write_text("{}")
    (folder / "package.json").write_text(json.dumps({"version": version}))
    drawn = emoji.image(emoji.picture("penguin", "openmoji", "pairs"), 256, str(tmp_path))
    assert drawn.shape == (3, 256, 256)
    assert (drawn[:, 20:236, 20:124] == np.array([255, 0, 0])[:, None, None]).all() and (drawn[:, :, 140:] == 255).all()
    (folder / "package.json").write_text(json.dumps({"version": "0.0.1"}))
    drawings._package.cache_clear()
    with pytest.raises(BenchError, match="holds @iconify-json/openmoji 0.0.1, but the sheet was drawn from"):
        drawings.scaled("openmoji", "penguin", 200, str(tmp_path))


def _few(name, **changed):
    spec = schema.describe(name)
    return {**spec, "drawings": {**spec["drawings"], "references": 1, "auxiliary": 1, **changed}}


def test_the_sheets_serve_up_to_their_own_size():
    assert artists.LARGEST == drawings.sheet("openmoji").side
