"""Prompts from tables: the rebuilt list of StyleForge against the documented counts, the rule against a plain loop."""

import csv
import os
from collections import Counter

import pytest

from bench import data, prompt_lists
from bench.contracts import BenchError

needs_mirror = pytest.mark.skipif("BENCH_MIRROR" not in os.environ, reason="PartiPrompts is not here: no BENCH_MIRROR")


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@needs_mirror
def test_the_rebuilt_list_has_the_published_length_and_misses_the_documented_kinds():
    spec = data.describe("styleforge")
    path = data._place(spec, "PartiPrompts.tsv")
    rows, prompts = table(path), data._prompts(spec)
    assert len(rows) == 1632 and len(prompts) == len(set(prompts)) == 1562
    assert prompts == [row["Prompt"].strip() for row in rows if row["Prompt"].strip() in set(prompts)]
    missing = [row for row in rows if row["Prompt"].strip() not in set(prompts)]
    by = Counter(row["Category"] for row in missing)
    known = {"Abstract": 36, "Illustrations": 17, "Artifacts": 8, "Outdoor Scenes": 7}
    assert {key: by[key] for key in known} == known and sum(by.values()) == 70
    assert {row["Prompt"] for row in missing if row["Category"] == "Illustrations"} == {
        row["Prompt"] for row in rows if (row["Category"], row["Challenge"]) == ("Illustrations", "Writing & Symbols")
    }
    for row in missing:
        single = row["Challenge"] == "Basic" and " " not in row["Prompt"].strip()
        assert single or row["Challenge"] == "Writing & Symbols"
    assert len(data.describe("styleforge")["seeds"]) * len(prompts) == 9372


@needs_mirror
def test_another_version_of_the_list_is_a_sentence(monkeypatch, tmp_path):
    short = tmp_path / "parti.tsv"
    short.write_text("Prompt\tCategory\tChallenge\nlove\tAbstract\tBasic\n")
    rule = data.describe("styleforge")["prompt_list"]
    with pytest.raises(BenchError, match="has 1 rows of Category 'Abstract' and 36 are to be left out"):
        prompt_lists.read(short, rule)


def written(tmp_path, name="list.csv"):
    path = tmp_path / name
    rows = [("a", "x", "p"), ("b c", "x", "q"), ("d", "x", "q"), ("e", "y", "p"), ("f", "z", "q"), ("g", "x", "q")]
    path.write_text("\n".join(["prompt,group,kind", *(",".join(row) for row in rows)]) + "\n")
    return path


def test_the_rule_takes_conditions_in_their_order_and_rows_in_theirs(tmp_path):
    def left(counts, first):
        rule = {"column": "prompt", "left_out": {"by": "group", "counts": counts, "first": first}}
        return "".join(prompt_lists.read(written(tmp_path), rule))

    assert left({"x": 1}, [{"kind": "q"}]) == "adefg"  # "b c" is the first q of x
    assert left({"x": 1}, [{"kind": "q", "words": 1}]) == "ab cefg"
    assert left({"x": 3}, [{"kind": "q", "words": 1}, {"words": 2}]) == "aef"
    assert left({"x": 4, "others": 1}, [{"kind": "q"}]) == "e"
    assert left({"others": 2}, []) == "defg"  # no group is named, so all rows are others
    assert left({"x": 0, "others": 2}, [{"kind": "q"}]) == "ab cdg"


def test_commas_and_quotation_marks_of_a_csv_file_and_lines_of_a_text_file(tmp_path):
    (tmp_path / "list.csv").write_text('n,prompt\n1,"a cat, sleeping"\n2," a dog "\n')
    assert prompt_lists.read(tmp_path / "list.csv", {"column": "prompt"}) == ["a cat, sleeping", "a dog"]
    (tmp_path / "list.txt").write_text('a "quoted" cat\n\na dog, awake\n')
    assert prompt_lists.read(tmp_path / "list.txt", {}) == ['a "quoted" cat', "a dog, awake"]


def test_what_cannot_be_read_is_a_sentence(tmp_path):
    with pytest.raises(BenchError, match="column 'text'; its columns are prompt, group, kind; set prompt_list.column"):
        prompt_lists.read(written(tmp_path), {"column": "text"})
    with pytest.raises(BenchError, match="cannot be read .* correct prompt_list.file"):
        prompt_lists.read(tmp_path / "nowhere.tsv", {"column": "prompt"})
    (tmp_path / "twice.txt").write_text("a cat\na cat\n")
    with pytest.raises(BenchError, match="has the prompt 'a cat' twice"):
        prompt_lists.read(tmp_path / "twice.txt", {})


def test_prompts_win_over_the_list_which_is_then_not_needed():
    spec = {**data.describe("styleforge"), "prompts": ["a {noun}"], "controls": []}
    assert data._prompts(spec) == ["a person"] and data.files(spec) == []


def test_the_list_is_part_of_the_identity(tmp_path):
    spec = {**data.describe("folder"), "prompts": [], "prompt_list": {"file": str(tmp_path / "list.txt"), "column": ""}}
    names = set()
    for text in ("a cat\n", "a dog\n"):
        (tmp_path / "list.txt").write_text(text * 1)
        os.utime(tmp_path / "list.txt", ns=(len(names), len(names)))
        names.add(data.identity(spec))
    assert len(names) == 2
    (tmp_path / "list.txt").unlink()
    references = tmp_path / "images"
    references.mkdir()
    (references / "0.png").write_bytes(b"never read")
    assert "list.txt, which is no file here" in data.missing({**spec, "controls": [], "references": str(references)})
