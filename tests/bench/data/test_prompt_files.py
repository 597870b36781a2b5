"""Files of prompts as users save them: read as meant, or refused with file and line."""

import csv
import io
import os
import random
import subprocess
import sys

import pytest
from PIL import Image

from bench.contracts import BenchError
from bench.data import dataset_yaml, evaluation, identity, loading, schema, templates
from bench.data.text_tables import rows_of
from bench.paths import ROOT

P = 16
PROMPTS = ["a dog on the moon", 'a sign, "open", on a door', "a {noun} in a café", "ein Hund; groß"]


def spec(prompts, **changes) -> dict:
    return {**schema.describe("folder"), "controls": [], "noun": "dog", "prompts": prompts, **changes}


def table(rows, delimiter=",", end="\r\n") -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, lineterminator=end).writerows([["prompt", "seed"], *rows])
    return file.getvalue()


# --- what is read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("ending, delimiter", [("csv", ","), ("CSV", ","), ("csv", ";"), ("csv", "\t"), ("TSV", "\t")])
def test_a_table_is_read_in_every_encoding_line_end_and_delimiter(tmp_path, encoding, end, ending, delimiter):
    path = tmp_path / f"prompts.{ending}"
    path.write_bytes(table([(text, i) for i, text in enumerate(PROMPTS)], delimiter, end).encode(encoding))
    described = spec({"file": str(path), "column": "prompt", "seeds": "seed"})
    assert evaluation.prompts(described) == tuple(PROMPTS)
    assert loading.load(described, P).own_seeds == ((0,), (1,), (2,), (3,))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["txt", "TXT"])
def test_a_text_file_holds_a_prompt_per_line(tmp_path, encoding, ending):
    path = tmp_path / f"prompts.{ending}"
    path.write_bytes("\r\n".join(["", *PROMPTS, "  ", f"  {PROMPTS[0]} ", ""]).encode(encoding))
    assert evaluation.prompts(spec(str(path))) == tuple(PROMPTS)
    assert evaluation.image_count(spec(str(path))) == 2 * len(PROMPTS)
    assert evaluation.prompts(spec({"file": str(path)})) == tuple(PROMPTS)
    assert "1 of 5 rows of prompts" in evaluation.repeated_prompts(schema.completed(spec(str(path))))


def test_a_table_on_the_command_line_has_the_column_prompt_in_any_capitals(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text("\ufeff Prompt ,Kind\na dog,1\n\n,,\na cat\n")
    assert evaluation.prompts(spec(str(path))) == ("a dog", "a cat")


def test_the_content_of_a_text_file_names_the_dataset_and_its_place_does_not(tmp_path):
    (tmp_path / "moved").mkdir()
    for name, text in [("a.txt", "a dog\n"), ("moved/b.txt", "a dog\n"), ("c.txt", "a cat\n")]:
        (tmp_path / name).write_text(text)
    first, moved, other = (identity.identity(spec(str(tmp_path / name))) for name in ("a.txt", "moved/b.txt", "c.txt"))
    assert first == moved != other


@pytest.mark.parametrize("dataset", ["folder", "styleforge"])  # whose prompts are a list, and a table
def test_the_command_line_takes_a_text_file(tmp_path, dataset):
    (tmp_path / "my prompts.txt").write_text("a dog on the moon\na {dog}, running\n")
    code = (
        "import sys; from hydra import compose, initialize_config_dir\n"
        "import bench.runs as m; import bench.compose as c\n"
        "c.register_datasets(); m.register_launchers()\n"
        "from bench.compose import cell; from bench.data.evaluation import prompts\n"
        "with initialize_config_dir(m.CONF, version_base='1.3'):\n"
        f"    made = cell(compose('config', ['dataset={dataset}', 'dataset.prompts=\"my prompts.txt\"']))\n"
        "assert prompts(made.dataset) == ('a dog on the moon', 'a {dog}, running'), prompts(made.dataset)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data, words",
    [
        ("prompt,seed\na dog,1\nein Hündchen,2\n".encode("cp1252"), "line 3 of .* is not UTF-8 text"),
        ("prompt,seed\na dog,1\n".encode("utf-16-le"), "line 1 of .* holds a zero byte"),
        (b"prompt,seed\na dog,1\n,2\n", "line 3 of .* has no prompt"),
        (b"prompt,seed\na dog,1\n   ,2\n", "line 3 of .* has no prompt"),
        (b"seed,prompt\n1,a dog\n2\n", "line 3 of .* has no prompt"),
        (b"prompt,seed\na dog,1\n\na cat\n", "line 4 of .* has the seed ''"),
        (b"prompt,seed\na dog,1\na dog, running,1\n", "line 3 of .* has 3 fields and the header 2"),
        (b'prompt,seed\na dog,1\n"a cat,2\na bird,3\n', "line 3 of .* has a field of several lines"),
        (b'note,prompt,seed\nx,a dog,1\n"y,a cat,2\nz,a bird,3\n', "line 3 of .* has a field of several lines"),
        (b"prompt,seed,prompt\na dog,1,a cat\n", "several columns 'prompt'"),
        (b"text,seed\na dog,1\n", "no column 'prompt', only text, seed"),
        (b"prompt,number\na dog,1\n", "no column 'seed', only prompt, number"),
        (b"prompt,seed\na dog,1.5\n", "line 2 of .* has the seed '1.5'"),
        (b"prompt,seed\n" + b"a" * 200_000 + b",1\n", "line 2 of .* cannot be read as a table"),
        (b"", "no column 'prompt'"),
        (b"\n\n", "no column 'prompt'"),
        (b"prompt,seed\n", "holds no prompts"),
    ],
)
def test_what_is_unclear_in_a_table_is_refused_with_its_line(tmp_path, data, words):
    path = tmp_path / "prompts.csv"
    path.write_bytes(data)
    with pytest.raises(BenchError, match=words):
        loading.load(spec({"file": str(path), "column": "prompt", "seeds": "seed"}), P)


@pytest.mark.parametrize(
    "data, words", [(b"", "holds no prompt;"), (b" \n", "holds no prompt;"), (b"a\nb\xff\n", "line 2")]
)
def test_what_is_unclear_in_a_text_file_is_refused(tmp_path, data, words):
    path = tmp_path / "prompts.txt"
    path.write_bytes(data)
    with pytest.raises(BenchError, match=words):
        loading.load(spec(str(path)), P)


@pytest.mark.parametrize("prompts", ["a photo of a cat", {"file": "a.txt", "seeds": "seed"}, {"file": "a.csv"}, {}])
def test_prompts_that_are_neither_a_list_nor_a_file_are_a_sentence(prompts):
    with pytest.raises(BenchError, match=r"dataset folder has prompts: .*prompts.txt"):
        evaluation.prompts(spec(prompts))


def test_a_text_file_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(BenchError, match="nowhere.txt, which is no file here"):
        loading.load(spec("nowhere.txt"), P)


def test_mutated_tables_are_read_or_refused_in_one_sentence(tmp_path):
    """400 tables with up to three random changes of bytes: rows are those of csv.DictReader, or a BenchError."""
    rng, path = random.Random(0), tmp_path / "prompts.csv"
    whole, read = table([(text, i) for i, text in enumerate(PROMPTS)]).encode(), 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(data))
            data[place : place + rng.randint(0, 2)] = rng.choice([b"", b'"', b",", b"\n", b"\xff", b"\0", b"x", b"\t"])
        path.write_bytes(data)
        try:
            rows = rows_of(path, ["prompt", "seed"])
        except BenchError as error:
            assert "prompts.csv" in str(error) and len(str(error).splitlines()) == 1
            continue
        plain = csv.DictReader(io.StringIO(data.decode(), newline=""), delimiter=",")
        expected = [row for row in plain if any((row[key] or "").strip() for key in ("prompt", "seed"))]
        if plain.fieldnames == ["prompt", "seed"]:
            assert [(row["prompt"], row["seed"]) for _, row in rows] == [(r["prompt"], r["seed"]) for r in expected]
            read += 1
    assert read > 50


# --- templates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, read",
    [
        ("a {noun}", "a dog"),
        ("{noun} and {noun}", "dog and dog"),
        ("a {cat}", "a {cat}"),
        ("{", "{"),
        ("}{", "}{"),
        ("{}", "{}"),
        ("{0}", "{0}"),
        ("{0.__class__}", "{0.__class__}"),
        ('{"a": {noun}}', '{"a": dog}'),
        ("{cat.__class__}", "{cat.__class__}"),
        ("{ noun }", "{ noun }"),
        ("{style_words}", "{style_words}"),
    ],
)
def test_the_class_word_is_filled_in_and_every_other_brace_is_literal(text, read):
    assert templates.filled(text, noun="dog", style_words=None) == read
    assert evaluation.prompts(spec([text])) == (read,)


@pytest.mark.parametrize("tail", [".__class__", ".__init__.__globals__", "[0]", "!r", ":>1000000000", ":d"])
@pytest.mark.parametrize("key", ["prompts", "caption"])
def test_attributes_conversions_and_formats_are_refused(tmp_path, tail, key):
    text = f"a {{noun{tail}}}"
    Image.new("RGB", (P, P)).save(tmp_path / "a.png")
    described = spec(["a"], references=str(tmp_path)) | {key: [text] if key == "prompts" else text}
    with pytest.raises(BenchError, match="only the word itself is filled in"):
        loading.load(described, P)


@pytest.mark.parametrize(
    "text",
    [
        "prompts: ['${oc.env:HOME}']",
        "caption: a ${noun}",
        "source: {a: [{b: '${oc.decode:1}'}]}",
        'prompts: ["\\x24{oc.env:HOME}"]',
        "${oc.env:HOME}: 1",
    ],
)
def test_interpolation_in_a_dataset_s_yaml_is_refused_wherever_it_stands(tmp_path, text):
    (tmp_path / "base.yaml").write_text(text)
    (tmp_path / "dataset.yaml").write_text("base: base.yaml\nnoun: dog\n")
    with pytest.raises(BenchError, match=r"base.yaml holds .*write the value in place"):
        dataset_yaml.merged(tmp_path / "dataset.yaml")


def test_a_yaml_that_holds_itself_ends(tmp_path):
    (tmp_path / "dataset.yaml").write_text("prompts: &a [*a]\n")
    with pytest.raises(BenchError, match="cannot be read as YAML"):
        schema.completed({"name": "x", "noun": "dog", **dataset_yaml.merged(tmp_path / "dataset.yaml")})
