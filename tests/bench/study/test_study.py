"""The study: balance, blindness, and its reading against closed forms, second implementations and simulated raters."""

import base64
import io
import itertools
import json
import math
import random
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from report_records import METHODS, NASTY, STYLES, TRUTH, study_of
from scipy.optimize import minimize

from bench.contracts import BenchError
from bench.report.gallery import galleries
from bench.store.record import Store
from bench.study.__main__ import main
from bench.study.answers import Vote, alpha, read
from bench.study.make import Wishes, make
from bench.study.strengths import PRIOR, fit, metrics_agree, strengths, with_metrics
from bench.study.trials import trials


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return study_of(tmp_path_factory.mktemp("study") / "results", seeds=(0,))


@pytest.fixture(scope="module")
def made(results, tmp_path_factory):
    """(page text, its data, key) of a study of 18 comparisons, 4 checks and 3 repeats."""
    page, key = make(Wishes(results, trials=18, checks=4, repeats=3), tmp_path_factory.mktemp("made"))
    html = page.read_text()
    data = json.loads(html.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])
    return html, data, json.loads(key.read_text()), key


# --- the page


def test_methods_datasets_and_sides_are_balanced(results):
    shown = galleries(list(Store(results).records()), results, [])
    for seed in range(5):
        requested = [t for t in trials(shown, 33, 4, 3, seed) if t.kind == "compare"]
        pairs = Counter(frozenset((t.left.item, t.right.item)) for t in requested)
        assert len(pairs) == 3 and max(pairs.values()) - min(pairs.values()) <= 1
        for pair in pairs:
            a, _ = sorted(pair)
            own = [t for t in requested if {t.left.item, t.right.item} == pair]
            left = sum(t.left.item == a for t in own)
            assert abs(2 * left - len(own)) <= 1
            places = Counter(t.gallery for t in own)
            assert len(places) == 2 and max(places.values()) - min(places.values()) <= 1
        shots = Counter((t.gallery, t.prompt, t.seed, frozenset((t.left.item, t.right.item))) for t in requested)
        assert max(shots.values()) == 1
    assert trials(shown, 9, 2, 1, 3) == trials(shown, 9, 2, 1, 3) != trials(shown, 9, 2, 1, 4)


def test_both_sides_have_one_prompt_and_one_noise_and_repeats_are_exchanged(results):
    shown = galleries(list(Store(results).records()), results, [])
    requested = {t.id: t for t in trials(shown, 12, 3, 4, 0)}
    for trial in requested.values():
        if trial.kind != "check":
            assert trial.left.path.name == trial.right.path.name and trial.left.run_id != trial.right.run_id
    again = [t for t in requested.values() if t.kind == "repeat"]
    assert len(again) == 4 and all((t.left, t.right) == (requested[t.of].right, requested[t.of].left) for t in again)
    assert sorted(t.answer for t in requested.values() if t.kind == "check") == ["left", "left", "right"]


def test_too_many_comparisons_are_refused_with_the_number_there_is(results, tmp_path):
    with pytest.raises(BenchError, match="the records give 72; type --trials 72"):
        make(Wishes(results, trials=100), tmp_path)
    with pytest.raises(BenchError, match="No two methods"):
        make(Wishes(results, ["method=alpha"]), tmp_path)


def test_the_page_names_nothing(made, results):
    html, data, key, _ = made
    secrets = {*METHODS, *STYLES, *(path.name for path in results.iterdir())} - {"dots"}
    assert not [secret for secret in secrets if secret in html]
    kinds = {"compare", "repeat", "check", "answer", "strength", "dots", *METHODS}
    plain = json.dumps({**data, "trials": [{**trial, "prompt": ""} for trial in data["trials"]], "pictures": {}})
    assert not [kind for kind in kinds if kind in plain]
    assert {frozenset(trial) for trial in data["trials"]} == {frozenset(("id", "prompt", "left", "right", "example"))}
    assert [trial["id"] for trial in data["trials"]] == list(key["trials"])
    assert list(data["pictures"]) == sorted(data["pictures"])  # not in the order of methods
    for text in data["pictures"].values():
        with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
            assert not picture.info.get("exif") and not picture.info.get("xmp")
    assert any(NASTY in trial["prompt"] for trial in data["trials"]) and NASTY not in html


def test_the_key_knows_whose_each_picture_is(made, results):
    _, data, key, _ = made
    checked = 0
    for trial in data["trials"]:
        secret = key["trials"][trial["id"]]
        for side in ("left", "right") if secret["kind"] != "check" else ():
            whose = secret[side]
            folder = results / whose["run_id"] / "images" / f"strength={whose['strength']:g}"
            brightness = 60 + 29.5 + 130 * TRUTH[whose["item"]]  # of report_records.pictures
            with Image.open(io.BytesIO(base64.b64decode(data["pictures"][trial[side]]))) as picture:
                assert folder.is_dir() and abs(np.asarray(picture).mean() - brightness) < 4
            checked += 1
    assert checked == 2 * 21


# --- its reading


def answer(made, path, rater, chooses, checks=True):
    """Write a result file; `chooses(secret)` gives left, right or none for comparisons and repeats."""
    _, data, key, _ = made
    answers = []
    for trial in data["trials"]:
        secret = key["trials"][trial["id"]]
        right = secret.get("answer") if checks else "none"
        answers.append(
            {"trial": trial["id"], "choice": right if secret["kind"] == "check" else chooses(secret), "ms": 9}
        )
    text = {"format": 1, "study": key["study"], "rater": rater, "session": len(rater), "answers": answers}
    path.write_text(json.dumps(text))
    return path


def better(secret):
    """The method that is truly better."""
    return "left" if TRUTH[secret["left"]["item"]] > TRUTH[secret["right"]["item"]] else "right"


def test_careless_raters_are_left_out_and_careful_ones_counted(made, tmp_path):
    good = answer(made, tmp_path / "a.json", "anna", better)
    lazy = answer(made, tmp_path / "b.json", "bert", lambda secret: "left", checks=False)
    found = read(made[3], [good, lazy])
    anna, bert = found.raters
    assert (anna.kept, anna.checks, anna.missed, anna.repeats, anna.consistent) == (True, 4, 0, 3, 3)
    assert (bert.kept, bert.missed, bert.consistent, bert.left) == (False, 4, 0, 18)
    assert bert.reason == "missed 4 of 4 attention checks"
    assert {vote.rater for vote in found.votes} == {"anna"} and len(found.votes) == 18
    assert {vote.rater for vote in read(made[3], [good, lazy], most_missed=4).votes} == {"anna", "bert"}


def test_files_that_do_not_belong_are_told(made, tmp_path):
    good = answer(made, tmp_path / "a.json", "anna", better)
    with pytest.raises(BenchError, match="'anna' is in several"):
        read(made[3], [good, answer(made, tmp_path / "b.json", "anna", better)])
    known = next(iter(made[2]["trials"]))
    changes = {
        "answers study x": {"study": "x"},
        "no file of a study of format 1": {"format": 7},
        "does not know, to trial x": {"answers": [{"trial": "x", "choice": "left"}]},
        f"does not know, to trial {known}": {"answers": [{"trial": known, "choice": "up"}]},
    }
    for words, change in changes.items():
        bad = tmp_path / "bad.json"
        bad.write_text(json.dumps(json.loads(good.read_text()) | change))
        with pytest.raises(BenchError, match=words):
            read(made[3], [bad])
    with pytest.raises(BenchError, match="cannot be read as JSON"):
        read(tmp_path / "no.json", [good])


def naive_alpha(table):
    """Krippendorff 2011: 1 - observed / expected disagreement, from pairs of values within and across units."""
    units = [[v for v in column if v is not None] for column in zip(*table, strict=True)]
    units = [unit for unit in units if len(unit) > 1]
    values = [v for unit in units for v in unit]
    n = len(values)
    observed = sum(sum(a != b for a, b in itertools.permutations(u, 2)) / (len(u) - 1) for u in units) / n
    expected = sum(a != b for a, b in itertools.permutations(values, 2)) / (n * (n - 1))
    return 1 - observed / expected


def test_alpha_equals_its_definition():
    rng = random.Random(0)
    table = [[rng.choice(["left", "left", "right", "none", None]) for _ in range(15)] for _ in range(4)]
    cells = [(r, t, choice) for r, row in enumerate(table) for t, choice in enumerate(row) if choice is not None]
    votes = [Vote(f"r{r}", f"t{t}", choice, "a", "b", "u") for r, t, choice in cells]
    assert alpha(votes) == pytest.approx(naive_alpha(table))
    assert alpha([vote for vote in votes if vote.rater == "r0"]) != alpha(votes)
    assert math.isnan(alpha([vote for vote in votes if vote.rater == "r0"])) and math.isnan(alpha([]))
    same = [Vote(r, f"t{t}", "left" if t % 2 else "right", "a", "b", "u") for r in "xy" for t in range(6)]
    assert alpha(same) == pytest.approx(1)


def test_two_methods_have_the_closed_form():
    votes = [
        Vote("r", f"t{k}", choice, "a", "b", f"u{k}")
        for k, choice in enumerate(["left"] * 7 + ["right"] * 2 + ["none"] * 3)
    ]
    found = strengths(votes, ["a", "b"], draws=50).set_index("item")
    wins, losses = 7 + 1.5 + PRIOR, 2 + 1.5 + PRIOR
    assert found.strength["a"] == pytest.approx(math.log(wins / losses) / 2, abs=1e-7)
    assert found.strength["a"] == -found.strength["b"]
    assert found.win_rate["a"] == pytest.approx(8.5 / 12) and found.comparisons.tolist() == [12, 12]
    assert found.low["a"] < found.strength["a"] < found.high["a"]


def test_strengths_maximise_the_likelihood():
    rng = np.random.default_rng(0)
    wins = rng.integers(0, 9, (5, 5)).astype(float)
    np.fill_diagonal(wins, 0)
    counts = wins + PRIOR * (1 - np.eye(5))

    def loss(s):
        return sum(counts[i, j] * math.log1p(math.exp(s[j] - s[i])) for i in range(5) for j in range(5) if i != j)

    best = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-8}).x
    assert np.allclose(fit(wins), best - best.mean(), atol=1e-5)
    assert np.isfinite(fit(np.array([[0, 5.0], [0, 0]]))).all()  # a method that always won


def simulated(rng, true, raters, prompts):
    """Votes of raters on prompts between random pairs, by the model itself."""
    votes = []
    for r, p in itertools.product(range(raters), range(prompts)):
        i, j = rng.choice(len(true), 2, replace=False)
        wins = rng.random() < 1 / (1 + math.exp(true[j] - true[i]))
        votes.append(Vote(f"r{r}", f"t{p}-{i}-{j}", "left" if wins else "right", f"m{i}", f"m{j}", f"p{p}"))
    return votes


def test_a_known_truth_is_found():
    true = np.array([1.0, 0.3, -0.3, -1.0])
    votes = simulated(np.random.default_rng(0), true, 40, 60)
    found = strengths(votes, ["m0", "m1", "m2", "m3"], draws=60)
    assert found["item"].tolist() == ["m0", "m1", "m2", "m3"]
    assert np.abs(found.strength.to_numpy() - true).max() < 0.15
    assert (found.low < true).all() and (true < found.high).all()


@pytest.mark.slow
def test_intervals_cover_the_truth():
    true, rng = np.array([0.6, 0.0, -0.6]), np.random.default_rng(1)
    hits = []
    for seed in range(60):
        found = strengths(simulated(rng, true, 10, 20), ["m0", "m1", "m2"], draws=99, seed=seed).set_index("item")
        hits += [found.low[f"m{k}"] <= true[k] <= found.high[f"m{k}"] for k in range(3)]
    assert 0.92 <= np.mean(hits) <= 1.0  # the pigeonhole bootstrap errs on the wide side


def test_one_rater_and_one_prompt_have_no_spread_between_them():
    votes = [Vote("r", "t", "left", "a", "b", "u")]
    found = strengths(votes, ["a", "b"], draws=10)
    assert (found.low == found.high).all()


# --- joined to the metrics


def test_metrics_are_joined_and_judged(made, results, tmp_path):
    images = {
        p.parent.name: pd.read_csv(p).set_index(["strength", "prompt", "seed"]) for p in results.glob("*/per_image.csv")
    }

    def brighter(secret):
        left, right = (images[secret[s]["run_id"]].quality[secret[s]["strength"], secret["prompt"], secret["seed"]]
                       for s in ("left", "right"))  # fmt: skip
        return "left" if left > right else "right"

    files = [answer(made, tmp_path / f"{name}.json", name, brighter) for name in ("anna", "bertha")]
    found = read(made[3], files)
    joined = with_metrics(strengths(found.votes, found.items, draws=20), found, results)
    assert joined["item"].tolist() == sorted(METHODS, key=TRUTH.get, reverse=True)
    for row in joined.itertuples(index=False):
        shown = [score["value"] for record in Store(results).records() for score in record.scores
                 if record.config["method"]["name"] == row.item and score["metric"] == "quality"
                 and score["strength"] == 2.0]  # fmt: skip
        assert row[joined.columns.get_loc("quality [net]")] == pytest.approx(np.mean(shown))
    judged = metrics_agree(found, results, joined).set_index("metric")
    assert judged.agreement["quality"] == 1 and judged.votes["quality"] == 36 and judged.over_methods["quality"] == 1
    agree = []
    for trial in found.key["trials"].values():
        if trial["kind"] == "compare":
            leaks = [
                images[trial[s]["run_id"]].leak[trial[s]["strength"], trial["prompt"], trial["seed"]]
                for s in ("left", "right")
            ]
            agree.append((leaks[0] < leaks[1]) == (brighter(trial) == "left"))
    assert judged.agreement["leak"] == pytest.approx(np.mean(agree)) and judged.over_methods["leak"] == -1
    assert judged.low["leak"] <= judged.agreement["leak"] <= judged.high["leak"]


def test_the_commands(results, tmp_path, capsys, made):
    main(["make", "--results", str(results), "--out", str(tmp_path / "s"), "--trials", "6", "--no-example"])
    assert "to give away" in capsys.readouterr().out
    files = [str(answer(made, tmp_path / f"{k}.json", f"r{k}", better)) for k in range(2)]
    main(["read", *files, "--key", str(made[3]), "--results", str(results), "--csv", str(tmp_path / "t.csv")])
    text = capsys.readouterr().out
    assert "2 of 2 raters kept, 36 votes; Krippendorff's alpha 1.000" in text
    assert pd.read_csv(tmp_path / "t.csv")["item"].tolist() == sorted(METHODS, key=TRUTH.get, reverse=True)
    with pytest.raises(BenchError, match="No answer of a person is left"):
        main(["read", str(answer(made, tmp_path / "x.json", "x", better, checks=False)), "--key", str(made[3])])
