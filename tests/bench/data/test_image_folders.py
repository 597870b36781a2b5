"""A folder of images: what Pillow decodes is used, the rest is named, captions of single images are read."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from bench.contracts import BenchError
from bench.data import identity, loading, schema
from bench.data.captions import captions_of
from bench.data.image_folder import image_folder
from bench.data.pixel_limit import endings

P = 16
WRITTEN = ["png", "jpg", "JPG", "jfif", "jpe", "webp", "avif", "gif", "bmp", "tif", "jp2", "j2k", "ppm", "tga", "qoi"]
WRITTEN += ["ico", "pcx", "sgi", "dds", "apng", "icns"]


def picture(seed=0, size=32) -> Image.Image:
    rough = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(rough).resize((size, size))


def spec(folder, **changes) -> dict:
    return {**schema.describe("folder"), "controls": [], "references": str(folder), "noun": "dog", **changes}


def loaded(folder, **changes):
    return loading.load(spec(folder, **changes), P)


def captions(dataset) -> list[str]:
    return [example.caption for example in dataset.references]


# --- which files are used ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", WRITTEN)
def test_every_format_that_pillow_decodes_is_used(tmp_path, ending):
    shape = picture(1).convert("P") if ending == "gif" else picture(1)
    shape.save(tmp_path / f"a.{ending}")
    dataset = loaded(tmp_path)
    expected = np.asarray(picture(1).resize((P, P), Image.Resampling.LANCZOS)).transpose(2, 0, 1).astype(int)
    assert dataset.counts == {"references": 1} and dataset.notes == ()
    assert np.abs(dataset.references[0].image - expected).mean() < 12


ODD = [
    "IMG.JPG",
    "a b.PNG",
    "#1.jpg",
    "100%.Jpeg",
    "n\u00e4me \u2603.Png",
    "-x.WEBP",
    "'q'.webp",
    "a.b.c.JPEG",
    "[1].png",
    "x=1,y.bmp",
]


def test_names_in_capitals_and_of_odd_letters_are_used(tmp_path):
    for shade, name in enumerate(ODD):
        Image.new("L", (32, 32), 25 * shade).save(tmp_path / name)
    dataset = loaded(tmp_path)
    assert dataset.counts == {"references": len(ODD)} and dataset.notes == ()
    shades = {name: example.image.mean() for name, example in zip(sorted(ODD), dataset.references, strict=True)}
    assert all(abs(shades[name] - 25 * shade) < 2 for shade, name in enumerate(ODD))
    assert all(dataset.references[i].caption == "a photo of a dog" for i in range(len(ODD)))


def test_the_first_frame_of_a_moving_picture_is_used(tmp_path):
    for kind in ("gif", "webp", "apng", "tif", "avif"):
        first, second = Image.new("RGB", (32, 32), "white"), Image.new("RGB", (32, 32), "black")
        first.save(tmp_path / f"a.{kind}", save_all=True, append_images=[second])
    dataset = loaded(tmp_path)
    assert len(dataset.references) == 5 and all((e.image > 250).all() for e in dataset.references)


def test_what_is_passed_over_is_named_and_what_systems_leave_is_skipped(tmp_path):
    for name in ("b.png", "a.avif", "c.jfif"):
        picture().save(tmp_path / name)
    for name in ("._b.png", ".DS_Store", ".hidden.jpg"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    for name in ("d.heic", "e.txt", "noending", "f.eps"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "more").mkdir()
    picture().save(tmp_path / "more" / "g.png")
    os.symlink(tmp_path / "nowhere.png", tmp_path / "h.png")
    os.symlink(tmp_path / "b.png", tmp_path / "i.png")
    os.mkfifo(tmp_path / "j.png")
    dataset = loaded(tmp_path)
    assert dataset.counts == {"references": 4}
    (note,) = dataset.notes
    assert note.startswith("dataset.references: 4 images used, 7 entries passed over: d.heic, e.txt, f.eps, ")
    assert set(image_folder(tmp_path).passed_over) == {
        "d.heic", "e.txt", "noending", "f.eps", "more (a folder)", "h.png (a broken link)", "j.png"
    }  # fmt: skip


def test_every_role_is_counted_and_its_folder_looked_at(tmp_path):
    for k, role in enumerate(("references", "auxiliary", "reference_set")):
        (tmp_path / role).mkdir()
        for i in range(k + 1):
            picture(10 * k + i).save(tmp_path / role / f"{i}.png")
        (tmp_path / role / "notes.md").write_text("x")
    dataset = loaded(None, references=None, root=str(tmp_path))
    assert dataset.counts == {"references": 1, "auxiliary": 2, "reference_set": 3}
    assert [note.split(":")[0] for note in dataset.notes] == [
        "dataset.references", "dataset.auxiliary", "dataset.reference_set"
    ]  # fmt: skip


def test_a_rendered_style_is_counted_too():
    counts = loading.load(schema.describe("halftone"), P).counts
    assert counts == {"pairs": 1, "references": 20, "auxiliary": 20, "reference_set": 512}


@pytest.mark.parametrize("names", [[], ["._a.png", ".b.jpg"], ["a.heic"], ["a.txt"]])
def test_a_folder_without_an_image_is_a_sentence(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BenchError, match="is empty: it holds no images"):
        loaded(tmp_path)


def test_the_endings_are_those_of_formats_with_pixels():
    assert {".avif", ".jfif", ".gif", ".jp2", ".webp", ".mpo", ".tif"} <= set(endings())
    assert not {".eps", ".ps", ".pdf", ".mpg", ".h5", ".wmf", ".txt", ".csv"} & set(endings())


# --- captions ----------------------------------------------------------------------------------------------------


def three(folder) -> None:
    for k, name in enumerate(("a.png", "b.JPG", "c.d.webp")):
        picture(k).save(folder / name)


def jsonl(key):
    return "\n".join(json.dumps({"file_name": name, key: f"{name}, {{noun}}"}) for name in ("a.png", "b.JPG")) + "\n\n"


def table(key):
    return f'\ufefffile_name;{key}\r\na.png;"a.png, {{noun}}"\r\n\r\nb.JPG;b.JPG, {{noun}}\r\n'


@pytest.mark.parametrize("key", ["text", "caption", "prompt"])
@pytest.mark.parametrize("name, text", [("metadata.jsonl", jsonl), ("metadata.csv", table)])
def test_captions_of_a_table_are_read_literally(tmp_path, key, name, text):
    three(tmp_path)
    (tmp_path / name).write_text(text(key))
    dataset = loaded(tmp_path)
    assert captions(dataset) == ["a.png, {noun}", "b.JPG, {noun}", "a photo of a dog"]
    assert dataset.notes == (
        "2 of 3 training images have a caption of their own; the others have 'a photo of a {noun}'",
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_captions_beside_images_are_read(tmp_path, encoding):
    three(tmp_path)
    for name in ("a", "b", "c.d"):
        (tmp_path / f"{name}.txt").write_bytes(f"\r\n  a dog called {name}, café \r\n".encode(encoding))
    dataset = loaded(tmp_path)
    assert captions(dataset) == [f"a dog called {name}, café" for name in ("a", "b", "c.d")]
    assert dataset.notes == ("3 of 3 training images have a caption of their own",)


def test_captions_serve_listed_images_and_both_halves_of_a_pair(tmp_path):
    three(tmp_path)
    (tmp_path / "a.txt").write_text("a dog indoors")
    listed = loaded(tmp_path, references=[str(tmp_path / "b.JPG"), str(tmp_path / "a.png")])
    assert captions(listed) == ["a photo of a dog", "a dog indoors"]
    (pair,) = loaded(None, references=None, pair=[str(tmp_path / "a.png"), str(tmp_path / "b.JPG")]).pairs
    assert pair.content.caption == pair.style.caption == "a dog indoors"


def test_captions_are_part_of_the_identity_and_their_form_is_not(tmp_path):
    three(tmp_path)
    plain = identity.identity(spec(tmp_path))
    (tmp_path / "a.txt").write_text("a dog")
    beside = identity.identity(spec(tmp_path))
    (tmp_path / "a.txt").write_text("a cat")
    other = identity.identity(spec(tmp_path))
    (tmp_path / "a.txt").unlink()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a dog"}')
    assert identity.identity(spec(tmp_path)) == beside
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.JPG", "text": "a dog"}')
    assert len({plain, beside, other, identity.identity(spec(tmp_path))}) == 4


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.txt", "", "a.txt holds no caption"),
        ("a.txt", "one\ntwo\n", "a.txt has 2 lines; a caption is one line"),
        ("a.txt", b"caf\xe9", "line 1 of .*a.txt is not UTF-8 text"),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "x"}\n{"file_name"',
            "line 2 of .*metadata.jsonl is no JSON",
        ),
        ("metadata.jsonl", '{"file_name": "a.png"}', "line 1 of .* has no caption; it must be like"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": " "}', "line 1 of .* has no caption"),
        ("metadata.jsonl", '{"text": "x"}', "line 1 of .* has no caption"),
        ("metadata.jsonl", '{"file_name": 3, "text": "x"}', "line 1 of .* has no caption"),
        ("metadata.jsonl", "[" * 100_000, "line 1 of .* is no JSON"),
        ("metadata.jsonl", "[1]", "line 1 of .* has no caption"),
        ("metadata.jsonl", '{"file_name": "z.png", "text": "x"}', "line 1 of .* names z.png, which is not there"),
        ("metadata.csv", "file_name,text\na.png,x\na.png,y\n", "line 3 of .* has a second caption for a.png"),
        ("metadata.csv", "file_name,words\na.png,x\n", "no column 'text', only file_name, words"),
        ("metadata.csv", "file_name,text\na.png\n", "line 2 of .* has no text"),
        ("metadata.csv", "file_name,text\na.png,one, two\n", "line 2 of .* has 3 fields and the header 2"),
    ],
)
def test_unclear_captions_are_refused_with_file_and_line(tmp_path, name, text, words):
    three(tmp_path)
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BenchError, match=words):
        loaded(tmp_path)


def test_two_captions_of_one_image_are_refused_unless_they_agree(tmp_path):
    three(tmp_path)
    (tmp_path / "a.txt").write_text("a dog")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a dog"}')
    assert captions_of([tmp_path / "a.png"]) == {tmp_path / "a.png": "a dog"}
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cat"}')
    with pytest.raises(BenchError, match="a.png has two captions, 'a dog' in its .txt file and 'a cat'"):
        loaded(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a dog\n")
    with pytest.raises(BenchError, match=r"holds metadata.jsonl and metadata.csv"):
        loaded(tmp_path)


def test_a_text_file_without_an_image_is_passed_over_by_name(tmp_path):
    three(tmp_path)
    (tmp_path / "z.txt").write_text("a dog")
    dataset = loaded(tmp_path)
    assert captions(dataset) == ["a photo of a dog"] * 3 and dataset.notes[0].endswith("1 entries passed over: z.txt")
