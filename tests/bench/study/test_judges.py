"""A judge of a study: it reads the page, and its agreement with people is Krippendorff's alpha as defined."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from report_records import METHODS, TRUTH, study_of
from test_study import answer, better, naive_alpha

from bench.analysis import judges, layouts
from bench.contracts import BenchError, Judge
from bench.study import judge as judging
from bench.study.__main__ import main
from bench.study.agreement import agreements, beside
from bench.study.answers import CHOICES, Answers, Judged, Vote, read
from bench.study.judge import judge, read_page
from bench.study.make import Wishes, make


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return study_of(tmp_path_factory.mktemp("study") / "results", seeds=(0,))


@pytest.fixture(scope="module")
def made(results, tmp_path_factory):
    """(None, data of the page, key, path of the key) of a study of 18 comparisons, 4 checks and 3 repeats."""
    page, key = make(Wishes(results, trials=18, checks=4, repeats=3), tmp_path_factory.mktemp("made"))
    return None, read_page(page), json.loads(key.read_text()), key


class ByBrightness(Judge):
    """Better methods draw brighter pictures in these records; `place` is added for the picture shown on the left."""

    name, id = "by brightness", "0123456789abcdef"

    def __init__(self, place=0.0, lacking=None):
        self.place, self.lacking, self.seen = place, lacking, []

    def missing(self):
        return self.lacking

    def left_is_better(self, question, comparisons):
        self.seen += comparisons
        chances = [0.5 + 0.4 * np.sign(one.left.mean() - one.right.mean()) for one in comparisons]
        return np.array([[min(1, p + self.place), max(0, p - self.place)] for p in chances])


def test_the_judge_sees_what_raters_see_and_its_file_is_read_like_theirs(made, tmp_path):
    program, page = ByBrightness(), made[3].parent / "study.html"
    assert judge(page, program, tmp_path / "judge.json") == 25
    assert all(c.left.shape[0] == 3 and c.left.dtype == np.uint8 for c in program.seen)
    assert [len(c.examples) for c in program.seen] == [len(trial["example"]) for trial in made[1]["trials"]]
    assert {c.prompt for c in program.seen} == {trial["prompt"] for trial in made[1]["trials"]}
    people = [answer(made, tmp_path / f"{name}.json", name, better) for name in ("anna", "bert")]
    found = read(made[3], [*people, tmp_path / "judge.json"])
    assert len(found.raters) == 2 and len(found.votes) == 36, "a judge is no person"
    (judged,) = found.judges
    assert (judged.name, judged.id, judged.steady) == ("by brightness", "0123456789abcdef", 1.0)
    right = {vote.trial: vote.choice for vote in found.votes}
    assert {vote.trial: vote.choice for vote in judged.votes} == right and len(right) == 18
    assert agreements(found, draws=20).alpha[0] == pytest.approx(1)


def test_a_judge_of_places_is_told_by_its_two_orders(made, tmp_path):
    judge(made[3].parent / "study.html", ByBrightness(place=0.45), tmp_path / "judge.json")
    people = answer(made, tmp_path / "anna.json", "anna", better)
    (judged,) = read(made[3], [people, tmp_path / "judge.json"]).judges
    assert judged.steady == 0
    assert all(vote.choice in ("left", "right") for vote in judged.votes)


def test_what_is_no_page_no_judge_and_no_answer_is_a_sentence(made, tmp_path):
    page = made[3].parent / "study.html"
    with pytest.raises(BenchError, match="the weights are elsewhere"):
        judge(page, ByBrightness(lacking="the weights are elsewhere"), tmp_path / "x.json")
    with pytest.raises(BenchError, match="is no page of a study"):
        judge(made[3], ByBrightness(), tmp_path / "x.json")
    broken = tmp_path / "broken.html"
    name = made[1]["trials"][0]["left"]
    broken.write_text(page.read_text().replace(made[1]["pictures"][name], "AAAA"))
    with pytest.raises(BenchError, match=f"The picture {name} of the study cannot be read"):
        judge(broken, ByBrightness(), tmp_path / "x.json")


@pytest.mark.parametrize("left", [None, [0.5], [0.5, 2.0], ["a", "b"], [math.nan, 0.5], 7])
def test_a_damaged_file_of_a_judge_is_left_out(made, tmp_path, caplog, left):
    path = tmp_path / "judge.json"
    judge(made[3].parent / "study.html", ByBrightness(), path)
    text = json.loads(path.read_text())
    text["answers"][3]["left"] = left
    path.write_text(json.dumps(text))
    people = answer(made, tmp_path / "anna.json", "anna", better)
    assert not read(made[3], [people, path]).judges and "answer.left" in caplog.text


# --- agreement


def random_answers(seed=0, raters=4, trials=25):
    rng = np.random.default_rng(seed)

    def votes(name, chance):
        return [Vote(name, f"t{t}", str(rng.choice(CHOICES, p=[0.5, 0.3, 0.2])) if rng.random() > chance else "left",
                     "a", "b", f"u{t // 2}") for t in range(trials) if rng.random() < 0.8]  # fmt: skip

    people = [vote for r in range(raters) for vote in votes(f"r{r}", 0.3)]
    key = {"trials": {}, "study": "s", "question": "q"}
    return Answers(key, people, [], [Judged("j", "id", votes("j", 0.5), 0.5)])


def test_both_alphas_are_their_definitions():
    answers = random_answers()
    found = agreements(answers, draws=30).iloc[0]
    own = {vote.trial: vote.choice for vote in answers.judges[0].votes}
    pairs = [(vote.choice, own[vote.trial]) for vote in answers.votes if vote.trial in own]
    assert found.alpha == pytest.approx(naive_alpha(list(zip(*pairs, strict=True)))) and found.votes == len(pairs)
    people = [(a.choice, b.choice) for a, b in itertools.combinations(answers.votes, 2)
              if a.trial == b.trial and a.rater != b.rater]  # fmt: skip
    assert found["people alpha"] == pytest.approx(naive_alpha(list(zip(*people, strict=True))))
    assert found.low < found.alpha < found.high and found["people low"] < found["people alpha"] < found["people high"]


def test_intervals_are_wider_with_fewer_raters_and_nan_without_people():
    widths = [(found := agreements(random_answers(3, raters), draws=200)).high[0] - found.low[0] for raters in (2, 20)]
    assert widths[0] > widths[1] > 0
    alone = agreements(random_answers(0, raters=1), draws=5).iloc[0]
    assert math.isnan(alone["people alpha"]) and not math.isnan(alone.alpha)


# --- the commands and the tables


def table(results):
    from bench.analysis import frames

    scored = frames.load(results)
    return layouts.metrics(layouts.Source(scored, frames.images(results), root=results), ["quality"])


def as_judge(results, id):
    """The records, with the numbers of `quality` by this judge."""
    for path in results.glob("*/record.json"):
        record = json.loads(path.read_text())
        for score in record["scores"]:
            if score["metric"] == "quality":
                score["fingerprint"] = {**(score.get("fingerprint") or {}), "judge": id}
        record.pop("checksum", None)
        path.write_text(json.dumps(record))


def test_tables_say_whether_the_judge_agrees_with_people(tmp_path, capsys, monkeypatch):
    results = study_of(tmp_path / "results", seeds=(0,))
    assert not any("judge" in note for note in table(results).notes)
    as_judge(results, ByBrightness.id)
    unknown = [note for note in table(results).notes if "judge" in note]
    assert len(unknown) == 1 and "was not measured; type python -m bench.study judge" in unknown[0]
    study = tmp_path / "study"
    make(Wishes(results, trials=18, checks=4, repeats=3), study)
    monkeypatch.setattr(judging, "configured", lambda model: ByBrightness())
    main(["judge", "--page", str(study / "study.html"), "--out", str(tmp_path / "judge.json")])
    made = None, read_page(study / "study.html"), json.loads((study / "key.json").read_text()), study / "key.json"
    people = [str(answer(made, tmp_path / f"r{k}.json", f"r{k}", better)) for k in range(2)]
    arguments = ["read", *people, str(tmp_path / "judge.json"), "--key", str(study / "key.json")]
    main([*arguments, "--results", str(results)])
    assert judges.measured(results) == {}
    main([*arguments, "--results", str(results), "--keep"])
    printed = capsys.readouterr().out
    assert "25 answers in" in printed and "by brightness strength" in printed and "judges.json" in printed
    (note,) = [note for note in table(results).notes if "judge" in note]
    assert "alpha with 2 people is 1.00 (1.00 to 1.00), people with each other 1.00; the question was: Which" in note
    (results / judges.FILE).write_text('{"0123456789abcdef": {"study": 3}}')
    assert [note for note in table(results).notes if "judge" in note] == unknown


def test_strengths_stand_side_by_side(made, tmp_path):
    from bench.study.strengths import strengths

    people = answer(made, tmp_path / "anna.json", "anna", better)
    judge(made[3].parent / "study.html", ByBrightness(), tmp_path / "judge.json")
    found = read(made[3], [people, tmp_path / "judge.json"])
    both = beside(strengths(found.votes, found.items, draws=20), found, draws=20)
    assert both["item"].tolist() == sorted(METHODS, key=TRUTH.get, reverse=True)
    pd.testing.assert_series_equal(both["by brightness strength"], both.strength, check_names=False)


def test_a_model_of_ones_own_is_the_judge_of_its_folder(tmp_path):
    own = judging.configured(str(tmp_path))
    assert own.name == tmp_path.name and ".safetensors files, but 0 weight files" in own.missing()
    assert "Qwen3-VL-2B-Instruct are not on this machine" in judging.configured(None).missing()
