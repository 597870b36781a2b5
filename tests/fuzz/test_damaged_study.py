"""Files of a study: a damaged answer is left out or refused, never turned into another vote; a damaged key is refused
or read; both without a crash.
"""

import copy
import json
import random

import pytest
from damage import WRONG, damage
from test_damaged_store import cases, limit  # noqa: F401

from bench.contracts import BenchError
from bench.study.answers import alpha, read
from bench.study.strengths import strengths

METHODS = ("one", "two", "three")


def side(k):
    return {"item": METHODS[k % 3], "run_id": f"{METHODS[k % 3]}-d-b-s0", "strength": 1.0}


def key():
    """Six comparisons, one of them repeated, and two checks."""
    trials = {
        f"c{k}": {"kind": "compare", "left": side(k), "right": side(k + 1), "dataset": "d", "prompt": f"p{k}"}
        for k in range(6)
    }
    trials["r0"] = {
        "kind": "repeat",
        "of": "c0",
        "left": side(1),
        "right": side(0),
        "dataset": "d",
        "prompt": "p0",
    }
    trials |= {f"x{k}": {"kind": "check", "answer": ("left", "right")[k]} for k in range(2)}
    return {"format": 1, "study": "s", "question": "Which?", "trials": trials}


def result(rater, trials):
    right = {"x0": "left", "x1": "right", "r0": "right"}
    answers = [{"trial": name, "choice": right.get(name, "left"), "ms": 9} for name in trials]
    return {"format": 1, "study": "s", "rater": rater, "session": 1, "answers": answers}


@pytest.fixture
def files(tmp_path):
    whole = key()
    for name, made in (("key", whole), ("a", result("anna", whole["trials"])), ("b", result("bert", whole["trials"]))):
        (tmp_path / f"{name}.json").write_text(json.dumps(made))
    return tmp_path


def votes(folder):
    """All that a study does with its files: rater -> {(trial, choice, winner)}."""
    found = read(folder / "key.json", [folder / "a.json", folder / "b.json"])
    alpha(found.votes)
    strengths(found.votes, found.items, draws=2)
    made = {}
    for vote in found.votes:
        made.setdefault(vote.rater, set()).add((vote.trial, vote.choice, vote.winner))
    return made


def test_whole_files_give_all_votes(files):
    expected = {(f"c{k}", "left", METHODS[k % 3]) for k in range(6)}
    assert votes(files) == {"anna": expected, "bert": expected}


@pytest.mark.parametrize("block", cases(2, 60))
def test_a_damaged_answer_file_invents_no_vote_and_changes_no_other_s(files, limit, block):  # noqa: F811
    whole, path = votes(files), files / "b.json"
    data = path.read_bytes()
    for n in range(10):
        limit()
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        path.write_bytes(data)
        how = damage(path, random.Random(f"answers {block} {n}"))
        try:
            found = votes(files)
        except BenchError as error:
            assert "\n" not in str(error), how
            continue
        assert found["anna"] == whole["anna"], how
        for rater, given in found.items():
            assert given <= whole["anna"], (how, rater)


@pytest.mark.parametrize("block", cases(2, 60))
def test_a_damaged_key_is_a_sentence_or_keeps_what_raters_chose(files, limit, block):  # noqa: F811
    path = files / "key.json"
    whole, data = {(trial, choice) for trial, choice, _ in votes(files)["anna"]}, path.read_bytes()
    for n in range(10):
        limit()
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        path.write_bytes(data)
        how = damage(path, random.Random(f"key {block} {n}"))
        try:
            found = votes(files)
        except BenchError as error:
            assert "\n" not in str(error), how
            continue
        assert all({(trial, choice) for trial, choice, _ in given} <= whole for given in found.values()), how


USED = {
    "compare": ("kind", "left", "right", "dataset", "prompt"),
    "repeat": ("kind", "of"),
    "check": ("kind", "answer"),
}
FREE = ("dataset", "prompt")  # any text will do
PLACES = [(name, field) for name, trial in key()["trials"].items() for field in USED[trial["kind"]]]


@pytest.mark.parametrize("name, field", PLACES)
def test_a_field_of_a_trial_that_is_wrong_or_gone_is_a_sentence(files, name, field):
    for value in [*WRONG, "gone"]:
        made = copy.deepcopy(key())
        if value == "gone":
            del made["trials"][name][field]
        elif isinstance(value, str) and field in FREE:
            continue
        else:
            made["trials"][name][field] = value
        (files / "key.json").write_text(json.dumps(made))
        with pytest.raises(BenchError, match="key.json") as error:
            votes(files)
        assert "\n" not in str(error.value)
