"""Rows left out of a table of prompts: StyleForge's rebuilt list against what is documented of it, the rule by hand."""

import csv
import os
from collections import Counter

import pytest

from bench.contracts import BenchError
from bench.data import evaluation, identity, schema, sources
from bench.data.prompt_lists import left_out

needs_mirror = pytest.mark.skipif("BENCH_MIRROR" not in os.environ, reason="PartiPrompts is not here: no BENCH_MIRROR")
TABLE = "prompt,group,kind\na,x,p\nb c,x,q\nd,x,q\ne,y,p\nf,z,q\ng,x,q\n"


@needs_mirror
def test_the_rebuilt_list_has_the_published_length_and_misses_the_documented_kinds():
    spec = schema.describe("styleforge")
    prompts, own_seeds = evaluation.evaluation_prompts(spec)
    with open(sources.image_place(spec, "PartiPrompts.tsv"), encoding="utf-8", newline="") as file:
        rows = list(
            csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        )  # as it stands, quotation marks and all
    assert len(rows) == 1632 and len(prompts) == len(set(prompts)) == 1562
    assert len(prompts) * len(spec["seeds"]) == 9372 and not own_seeds
    assert [row["Prompt"] for row in rows if row["Prompt"] in set(prompts)] == [p for p in prompts if p[:3] != "G I"]
    (unquoted,) = set(prompts) - {row["Prompt"] for row in rows}
    assert unquoted.startswith("G I G G L E painted in") and unquoted.endswith("exploding white paint.")

    missing = [row for row in rows if row["Prompt"] not in set(prompts)]  # the quoted one is among them, as documented
    by, known = Counter(row["Category"] for row in missing), {"Abstract": 36, "Illustrations": 17, "Artifacts": 8}
    known["Outdoor Scenes"] = 7
    assert {key: by[key] for key in known} == known and sum(by.values()) == 71
    written = {"Category": "Illustrations", "Challenge": "Writing & Symbols"}.items()
    assert [row for row in missing if row["Category"] == "Illustrations"] == [r for r in rows if written <= r.items()]
    for row in missing:
        single = row["Challenge"] == "Basic" and len(row["Prompt"].split()) == 1
        assert single or row["Challenge"] == "Writing & Symbols"


def requested(tmp_path, text=TABLE, **rule):
    path = tmp_path / "list.csv"
    path.write_text(text)
    table = {"file": str(path), "column": "prompt", "left_out": {"by": "group", **rule}}
    return evaluation.evaluation_prompts({**schema.describe("folder"), "prompts": table})[0]


def test_conditions_come_in_their_order_and_rows_in_theirs(tmp_path):
    def left(counts, *first, **rule):
        return "".join(requested(tmp_path, counts=counts, first=list(first), **rule))

    assert left({"x": 1}, {"kind": "q"}) == "adefg"  # "b c" is the first q of x
    assert left({"x": 1}, {"kind": "q", "words": 1}) == "ab cefg"
    assert left({"x": 3}, {"kind": "q", "words": 1}, {"words": 2}) == "aef"
    assert left({"x": 4, "others": 1}, {"kind": "q"}) == "e"
    assert left({"x": 0, "others": 2}, {"kind": "q"}) == "ab cdg"
    assert left({"others": 2}) == "defg"  # no group is named, so all rows are others
    assert left({"x": 2}, {"kind": "q"}, kept=["b c"]) == "ab cef"


def test_without_a_rule_nothing_is_left_out(tmp_path):
    assert left_out([{"prompt": "a"}], "prompt", None, tmp_path) == set()


@pytest.mark.parametrize(
    "rule, words",
    [
        ({"counts": {"x": 5}}, "has 4 rows of group 'x' and 5 are to be left out; is it another version of the list"),
        ({"counts": {"x": 1}, "kept": ["h"]}, "does not hold 'h', which prompts.left_out keeps"),
        ({"counts": {"x": 1}, "first": [{"sort": "q", "words": 1}]}, "has no column 'sort', which prompts.left_out"),
        ({"counts": {"x": 1}, "by": "category"}, "has no column 'category', which prompts.left_out names"),
    ],
)
def test_a_table_that_does_not_fit_its_rule_is_a_sentence(tmp_path, rule, words):
    with pytest.raises(BenchError, match=words):
        requested(tmp_path, **rule)


def test_the_rule_and_the_table_are_part_of_the_identity(tmp_path):
    def named(text=TABLE, **rule):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.csv"
        path.write_text(text)
        table = {"file": str(path), "column": "prompt", "left_out": {"by": "group", **rule}}
        return identity.identity({**schema.describe("folder"), "prompts": table})

    names = [named(counts={"x": 1}), named(counts={"x": 2}), named(TABLE + "h,x,q\n", counts={"x": 1})]
    assert len(set(names)) == 3 and named(counts={"x": 1}) == names[0]
