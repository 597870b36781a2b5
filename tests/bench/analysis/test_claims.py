"""Claims of an experiment: what is refused when they are read, and answers on records whose truth is known."""

import math
import os
import subprocess
import sys

import pytest
import yaml
from claim_records import answers, claim
from report_records import study_of

from bench import paths
from bench.analysis import claim_answers, claim_text
from bench.analysis.claims import Claim, cells_of, declared, overrides, shared, with_claims
from bench.claims import main
from bench.contracts import BenchError

ROOT = paths.ROOT
STRENGTHS = (0.5, 1.0, 2.0, 3.0, 4.0)
SOURCE = {"id": "x", "sentence": "A is better.", "source": "arXiv 0000.00000, section 1", "reached": "paper"}
GOOD = SOURCE | {"metric": "clip_t", "a": "method=pair", "b": "method=dreambooth", "datasets": ["halftone"]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Quality falls away from strength 2 and is 1, 0.5, 0 by method; leak is 0.1 strength + 0.2 quality's truth."""
    return study_of(tmp_path_factory.mktemp("claims"), seeds=(0, 1, 2), strengths=STRENGTHS, side=8)


def of(root, one, **more):
    return answers(root, one, **more)[0].answer


# --- answers


@pytest.mark.parametrize("direction, status", [("higher", "shown"), ("lower", "opposite shown")])
def test_a_true_gap_is_shown_in_its_direction(root, direction, status):
    found = of(root, claim(b="beta", direction=direction))
    assert found.status == status and abs(found.estimate - 0.5) < 0.05 and found.low < 0.5 < found.high
    assert 0 < found.detectable < 0.2


def test_a_leak_that_is_nearer_to_zero_is_shown(root):
    found = of(root, claim(a="beta", b="alpha", metric="leak", direction="nearer"))
    assert found.status == "shown" and abs(found.estimate + 0.1) < 0.03


def test_claims_over_strengths(root):
    over = {"strengths": STRENGTHS}
    assert of(root, claim(kind="monotone", metric="leak"), strengths=(1.0, 2.0, 3.0)).status == "shown"
    assert of(root, claim(kind="monotone"), **over).status != "shown"  # quality falls above strength 2
    slope = of(root, claim(kind="slope", metric="leak"), **over)
    assert slope.status == "shown" and abs(slope.estimate - 0.1) < 0.02


def test_bounds_and_equivalence(root):
    assert of(root, claim(kind="bound", margin=0.7)).status == "shown"
    leak = {"b": "beta", "metric": "leak", "kind": "equivalence"}
    assert of(root, claim(**leak, margin=0.2)).status == "shown"
    assert of(root, claim(**leak, margin=0.05)).status == "opposite shown"


def test_matched_claims_compare_at_equal_closeness(root):
    """Beta leaks 0.3 at its default strength, as alpha at 1, where alpha has the quality 0.8: 0.3 more."""
    found = of(root, claim(b="beta", matched="leak"))
    assert found.status == "shown" and abs(found.estimate - 0.3) < 0.1
    beyond = of(root, claim(b="gammai", matched="leak"))  # gamma leaks 0.2: less than alpha at any strength
    assert beyond.status == "not shown" and "nothing is extrapolated" in beyond.reason


def test_several_styles_are_the_units_of_a_pooled_claim(root):
    found = of(root, claim(b="beta", datasets=("dots", "linesco")))
    assert found.units["dataset"] == 2 and "dataset" in found.covers and abs(found.estimate - 0.5) < 0.05


def test_nothing_is_decided_while_cells_are_missing(root):
    found = of(root, claim(b="beta", datasets=("dots", "nowhere")))
    assert found.status == "not shown" and "missing" in found.reason and abs(found.estimate - 0.5) < 0.05


def test_holm_runs_over_the_declared_claims_alone_and_counts_those_without_an_answer(root):
    alone = of(root, claim(b="beta"))
    first, absent = answers(root, claim(b="beta"), claim("y", a="nobody", b="beta"))
    assert first.answer.p == alone.p and first.answer.p_holm == pytest.approx(min(1, 2 * alone.p))
    assert absent.answer.status == "not shown" and "no finished cell of A" in absent.answer.reason
    assert math.isnan(absent.answer.p_holm)


def test_one_training_shows_nothing(root):
    found = of(root, claim(b="beta"), seeds=(0,))
    assert found.status == "not shown" and "one training" in found.reason


def test_missing_cells_are_named_with_their_command(root):
    (found,) = answers(root, claim(b="beta"), seeds=(0, 1, 7))
    assert found.missing == [
        "python -m bench -m method=alpha dataset=dots seed=7",
        "python -m bench -m method=beta dataset=dots seed=7",
    ]
    (whole,) = answers(root, claim(b="beta"))
    assert (
        not whole.missing and "missing" not in claim_text.text([whole]) and "cells: python" in claim_text.text([whole])
    )
    (weak,) = answers(root, claim(b="beta"), strengths=(2.0, 9.0))
    assert len(weak.missing) == 2  # no cell has strength 9


def test_a_small_gap_is_said_to_be_within_the_margin(root):
    (found,) = answers(root, claim(b="beta", metric="leak", margin=0.5))
    assert "within the margin of 0.5" in claim_text.text([found])
    (found,) = answers(root, claim(b="beta", margin=0.1))
    assert "within the margin" not in claim_text.text([found])


def test_the_frame_has_the_numbers_of_the_answers(root):
    found = answers(root, claim(b="beta"), claim("y", b="beta", metric="leak"))
    made = claim_text.frame(found)
    assert list(made.claim) == ["x", "y"] and list(made.estimate) == [one.answer.estimate for one in found]


# --- what is read


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes claims as an experiment of the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)

    def write(claims):
        text = "# @package _global_\n" + yaml.safe_dump({"group": "mine", "claims": claims})
        (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(text)
        return "mine"

    return write


@pytest.mark.parametrize(
    "change, said",
    [
        ({"metric": "clip_tt"}, "names the metric clip_tt"),
        ({"kind": "bigger"}, "write one of difference"),
        ({"direction": "up"}, "write one of higher, lower, nearer"),
        ({"reached": "hearsay"}, "write one of paper, abstract, code"),
        ({"a": "method=nobody"}, "method=nobody, which is no method"),
        ({"a": "dataset=halftone"}, "without a method"),
        ({"datasets": ["nowhere"]}, "names the dataset nowhere"),
        ({"datasets": []}, "no datasets"),
        ({"seeds": ["a"]}, "write a list such as seeds"),
        ({"kind": "equivalence"}, "give one above 0"),
        ({"kind": "slope", "matched": "clip_t"}, "only difference and equivalence"),
        ({"kind": "bound", "direction": "nearer"}, "nearer is for a difference"),
        ({"b": None}, "has no b"),
        ({"b": "method=pair method=dreambooth"}, "without a method"),
        ({"colour": "red"}, "has the key colour"),
        ({"sentence": ""}, "no sentence"),
        ({"margin": True}, "write a number"),
        ({"near": "yes please"}, "write true or false"),
    ],
)
def test_a_wrong_claim_is_one_sentence(own, change, said):
    with pytest.raises(BenchError, match="^Claim") as raised:
        declared(own([GOOD | change]))
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_claims_that_are_no_claims(own):
    for wrong, said in (([GOOD, GOOD], "the id x"), ({"a": 1}, "no list"), (["text"], "no mapping")):
        with pytest.raises(BenchError, match=said):
            declared(own(wrong))
    with pytest.raises(BenchError, match="list experiments"):
        declared("nowhere")
    assert "mine" in with_claims()


def test_the_command_wants_one_experiment_with_claims(own):
    for words, said in ((["seed=1"], "one experiment=NAME"), (["experiment=first"], "declares no claims")):
        with pytest.raises(BenchError, match=said):
            main(words)


SHIPPED = [file.stem for file in sorted((paths.CONF / "experiment").glob("*.yaml"))]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_claims_can_be_read(name):
    assert bool(declared(name)) == (name in with_claims())


def test_cells_of_a_claim_are_those_that_its_command_makes(tmp_path):
    """Cells are composed once for each method; a second implementation composes each."""
    from bench.compose import from_overrides

    one = Claim(**GOOD | {"datasets": ("halftone", "duotone"), "seeds": (0, 3)})
    wanted = claim_answers.sides(one, tmp_path)["a"]
    each = [from_overrides("method=pair", f"dataset={d}", f"seed={s}") for d in ("halftone", "duotone") for s in (0, 3)]
    assert [cell.run_id for cell in wanted.cells] == [cell.run_id for cell in each]
    assert wanted.missing(set()) == ["python -m bench -m method=pair dataset=halftone,duotone seed=0,3"]


# --- sweeps


def test_the_cells_of_claims_are_those_of_both_sides_each_once():
    one = Claim(**GOOD | {"datasets": ("halftone",), "seeds": (0, 1)})
    swept = Claim(**GOOD | {"id": "y", "datasets": ("halftone",), "seeds": (0, 1), "matched": "clip_t"})
    made = overrides([one, one, swept])
    assert [words for words in made if "strength=sweep" in words] == [
        ["method=pair", "strength=sweep", "dataset=halftone", f"seed={seed}"] for seed in (0, 1)
    ]
    assert len(made) == 6 and cells_of([one]) == {("pair", "halftone"), ("dreambooth", "halftone")}


def test_what_is_set_for_a_sweep_holds_for_the_cells_of_claims_unless_they_say_it_themselves():
    words = ["experiment=x", "method=pair", "method.rank=2", "seed=0,1", "plan=true", "results=r", "sampler.steps=5",
             "backbone=sd15", "sweep.poll_s=1", "+trainer.x=1", "tracker=none"]  # fmt: skip
    assert shared(words) == ["sampler.steps=5", "backbone=sd15", "+trainer.x=1"]


def command(results, *words, cwd):
    light = ["sweep.runner=light.run_light", "sweep.poll_s=0.05", "tracker=none", "metrics=mini"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    line = [sys.executable, "-m", "bench", f"results={results}", *light, *words]
    return subprocess.run(
        line, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )


def test_a_sweep_of_an_experiment_with_claims_runs_their_cells_and_ends_with_them(own, tmp_path):
    name = own([GOOD | {"a": "method=zero_shot", "b": "method=copy", "datasets": ["ink"], "seeds": [0, 1]}])
    file = tmp_path / "conf" / "experiment" / f"{name}.yaml"
    file.write_text(file.read_text() + "hydra: {mode: MULTIRUN}\n")
    process = command(tmp_path / "results", f"experiment={name}", cwd=tmp_path)
    text = process.stdout
    assert process.returncode == 0 and "4 done" in text, text
    assert "Claims of experiment=mine" in text and "x: not shown" in text, text
    assert "no finished cell of it has clip_t" in text, text
