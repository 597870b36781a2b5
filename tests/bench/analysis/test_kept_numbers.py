"""Numbers that are kept are those that would be made, and are made again when anything that they depend on changes."""

import json

import numpy as np
import pandas as pd
import pytest

from bench.analysis import kept_numbers, table_model
from bench.analysis.kept_numbers import Kept, digest
from bench.analysis.table_model import Numbers, cells

BY, BLOCKS = ["dataset", "method"], ["dataset"]
LEVELS = ("dataset", "seed", "prompt")


def numbers(draw, target=None):
    index = pd.MultiIndex.from_product([["x", "y"], list("abcd"), range(3), range(12)], names=[*BY, "seed", "prompt"])
    frame = pd.Series(draw.normal(size=len(index)), index, name="value").reset_index()
    frame["value"] += frame.method.map({"a": 3.0, "b": 0.0, "c": 0.1, "d": np.nan})
    frame["run_id"] = frame.dataset + frame.method + frame.seed.astype(str)
    return Numbers(frame, LEVELS, True, target=target)


@pytest.fixture
def calls(monkeypatch):
    """What was worked out, not read."""
    made, plain = [], table_model._block
    monkeypatch.setattr(table_model, "_block", lambda *block: made.append(block) or plain(*block))
    return made


def table(found, root, bold=True):
    kept = Kept(root)
    made = cells(found, BY, BLOCKS, bold, kept)
    kept.save()
    return repr(made)  # NaN is NaN, and every digit counts


def test_a_table_made_again_is_read_and_the_same(tmp_path, calls):
    found = numbers(np.random.default_rng(0))
    expected = repr(cells(found, BY, BLOCKS))
    assert "bold=True" in expected and "nan" in expected and len(calls) == 2
    assert table(found, tmp_path) == expected and len(calls) == 4
    assert table(found, tmp_path) == expected and len(calls) == 4


def test_only_the_block_that_changed_is_made_again(tmp_path, calls):
    found = numbers(np.random.default_rng(0))
    table(found, tmp_path)
    found.frame.loc[found.frame.index[0], "value"] += 1e-9  # of dataset x
    assert table(found, tmp_path) == repr(cells(found, BY, BLOCKS))
    assert [len(calls), len(calls[2:3])] == [5, 1]  # two blocks, one block again, and two without keeping


def test_blocks_that_changed_are_dropped_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_numbers, "OTHERS", 3)
    found = numbers(np.random.default_rng(0))
    for _ in range(5):
        found.frame["value"] += 1.0
        table(found, tmp_path)
    kept = json.loads((tmp_path / ".index" / "numbers.json").read_bytes()[kept_numbers.HEX :])
    assert len(kept) == 2 + 3  # of the last table, and of earlier ones


def test_what_was_asked_counts(tmp_path, calls):
    found = numbers(np.random.default_rng(0))
    assert "bold=True" in table(found, tmp_path) and "bold=True" not in table(found, tmp_path, bold=False)
    near = numbers(np.random.default_rng(0), target=0.0)
    assert table(near, tmp_path) == repr(cells(near, BY, BLOCKS)) != table(found, tmp_path)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data.replace(b"1", b"2"), lambda data: b""])
def test_a_damaged_file_is_made_again(tmp_path, calls, damage):
    found = numbers(np.random.default_rng(0))
    expected, path = table(found, tmp_path), tmp_path / ".index" / "numbers.json"
    path.write_bytes(damage(path.read_bytes()))
    assert table(found, tmp_path) == expected and len(calls) == 4
    assert table(found, tmp_path) == expected and len(calls) == 4


def test_the_digest_is_of_the_content():
    values, runs = np.arange(4.0), np.array([5, 5, 8, 8])
    block = {"a": {"value": values, "run_id": runs}, "b": {"value": values, "run_id": runs + 4}}
    first = digest(block, ("seed",))
    renamed = {"m": {"value": values, "run_id": runs + 1}, "n": {"value": values, "run_id": runs * 10}}
    shared = {"a": {"value": values, "run_id": runs}, "b": {"value": values, "run_id": runs}}  # the same trainings
    apart = {
        "a": {"value": values[:3], "run_id": runs[:3]},
        "b": {"value": np.r_[3.0, values], "run_id": runs[[1, *range(4)]]},
    }
    assert digest(renamed, ("seed",)) == first
    assert len({first, digest(block, ("prompt",)), digest(shared, ("seed",)), digest(apart, ("seed",))}) == 4


def test_other_sources_are_another_digest(monkeypatch):
    block = {"a": {"value": np.arange(4.0)}}
    first = digest(block, ())
    monkeypatch.setattr(kept_numbers, "_engine", lambda: "other")
    assert digest(block, ()) != first
