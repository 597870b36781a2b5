"""Paired comparisons against statistics.py and closed forms; comparisons at matched closeness on known sweeps."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from bench import table
from bench.analysis import (
    comparisons,
    formats,
    frames,
    layouts,
    matched,
    resampling,
    settings_in_words,
    shown_columns,
    statistics,
)
from bench.analysis.matched import Pair, StrengthSweep
from bench.contracts import BenchError, Impossible
from bench.store.record import Record, Store

PROMPTS = [f"a photo of thing {i}" for i in range(12)]
OWN = {"pair": 2.0, "lora": 1.0}
STRENGTHS = {"pair": (1.0, 2.0, 4.0), "lora": (0.5, 1.0, 1.5, 2.0)}
FLOOR = 0.8  # distance of the baseline to the oracle: closed = 1 - distance / FLOOR


def close(method, strength):
    """A bent sweep of the closeness over the strength."""
    return {"pair": 0.9 * strength / (strength + 1), "lora": 0.8 * strength / (strength + 0.4)}[method]


def leak(method, x):
    return {"pair": 0.1, "lora": 0.3}[method] + 1.5 * x


def world(methods=("pair", "lora"), datasets=("dots",), seeds=3, noise=0.0):
    """Records whose leak is a straight line of the closeness: at any closeness lora leaks 0.2 more than pair."""
    draw, records, lines = np.random.default_rng(0), [], []
    shift = dict(zip(PROMPTS, draw.normal(0, 0.02, len(PROMPTS)), strict=True))
    for method, dataset, seed in itertools.product(methods, datasets, range(seeds)):
        run_id, scores = f"{method}-{dataset}-s{seed}", []
        for strength in STRENGTHS[method]:
            x = close(method, strength) + noise * draw.normal(size=len(PROMPTS))
            distance = FLOOR * (1 - x) + [shift[p] for p in PROMPTS]
            y = leak(method, x) + noise * draw.normal(size=len(PROMPTS))
            closed = 1 - distance.mean() / FLOOR
            for name, value, up in (("closed", closed, True), ("leak", y.mean(), False), ("away", distance.mean(), 0)):
                scores.append({"strength": strength, "metric": name, "value": value, "higher_is_better": bool(up),
                               "network": "net", "fingerprint": {}})  # fmt: skip
            lines += [(run_id, strength, p, 0, a, b) for p, a, b in zip(PROMPTS, y, distance, strict=True)]
        config = {"method": {"name": method}, "dataset": {"name": dataset}, "backbone": {"name": "tiny"}, "seed": seed}
        config["requested"] = {"method": {"strength": OWN[method]}}
        records.append(Record(run_id, "done", None, config, scores=scores))
    return records, pd.DataFrame(lines, columns=["run_id", "strength", "prompt", "image_seed", "leak", "away"])


@pytest.fixture(autouse=True)
def lines_of_closed(monkeypatch):
    monkeypatch.setattr(shown_columns, "per_image", lambda: {"closed": "away"})


def requested(made, metric="leak", by=None):
    records, images = made
    configs = {record.run_id: record.config for record in records}
    return comparisons.requested(layouts.Source(frames.frame(records), images), configs, metric, by)


def by_pair(frame):
    return {(line["dataset"], line["a"], line["b"]): line for line in frame.to_dict("records")}


# --- paired


def test_every_pair_at_its_own_strength_on_each_dataset_and_over_all():
    made = world(datasets=("dots", "ink", "lines"), noise=0.02)
    found = by_pair(requested(made).frame())
    assert set(found) == {(d, "lora", "pair") for d in ("dots", "ink", "lines", "all 3")}
    images = made[1].assign(method=made[1].run_id.str.split("-").str[0], dataset=made[1].run_id.str.split("-").str[1],
                            seed=made[1].run_id.str[-1].astype(int))  # fmt: skip
    own = images[images.strength == images.method.map(OWN)]
    for (dataset, _, _), line in found.items():
        mine = own if dataset == "all 3" else own[own.dataset == dataset]
        expected = statistics.compare(mine, "leak", "lora", "pair")
        for key in ("difference", "low", "high", "effect", "p"):
            assert line[key] == pytest.approx(getattr(expected, key)), key
        assert line["p_holm"] == line["p"]  # a family of one
        gap = mine.groupby("method").leak.mean()
        assert line["difference"] == pytest.approx(gap["lora"] - gap["pair"])
        assert line["verdict"] == ("worse" if line["p"] < 0.05 else "inconclusive") and line["n"] == expected.n


def test_what_is_inconclusive_says_how_many_more_and_one_training_says_nothing():
    made = world(seeds=3, noise=0.6)
    (line,) = requested(made).frame().to_dict("records")
    images = made[1].assign(method=made[1].run_id.str.split("-").str[0], seed=made[1].run_id.str[-1].astype(int))
    own = images[images.strength == images.method.map(OWN)]
    more = statistics.more_seeds(own, "leak", "lora", "pair", abs(line["difference"]))
    assert line["verdict"] == "inconclusive" and (
        line["more"] == more.advised or (math.isnan(line["more"]) and more.advised is None)
    )
    shown = formats.text(requested(made).table_model())
    assert ("none" if more.advised is None else f"{more.advised} (") in shown
    undecided = {
        "verdict": "inconclusive",
        "difference": 0.1,
        "reason": "",
        "more": 1.0,
        "more_low": 1.0,
        "more_high": 1.0,
    }
    assert comparisons._needed({**undecided, "dataset": "all 4"}).text == "1 style"
    none = comparisons.More(0, 0, 0)
    assert comparisons._more(none, "inconclusive")["more"] == 1 and comparisons._more(none, "higher")["more"] == 0
    (single,) = requested(world(seeds=1)).frame().to_dict("records")
    assert single["verdict"] == "inconclusive" and single["reason"] == layouts.ONE and math.isnan(single["more"])


def test_settings_tell_apart_methods_of_one_name_and_several_networks_are_asked_about():
    keys = [("pair", "aa"), ("pair", "bb"), ("lora", "cc")]
    told = {"aa": {"method": {"name": "pair", "rank": 4}}, "bb": {"method": {"name": "pair", "rank": 8}}, "cc": {}}
    assert settings_in_words.labels(keys, told) == dict(zip(keys, ["pair rank=4", "pair rank=8", "lora"], strict=True))
    long = {name: {"method": {"recipe": name * 80}} for name in ("aa", "bb")}
    for unclear in ({}, long):
        assert list(settings_in_words.labels(keys, unclear).values()) == ["lora", "pair aa", "pair bb"]
    records, images = world(seeds=1)
    records[0].scores.append(records[0].scores[1] | {"network": "other"})
    with pytest.raises(BenchError, match=r"several networks; name one of leak \[net\], leak \[other\]"):
        requested((records, images))


# --- matched


def test_a_method_that_leaks_the_same_per_closeness_is_not_blamed_for_going_further():
    """Closed form: leak is a straight line of closeness with lora 0.2 above pair, wherever their strengths lie."""
    found = by_pair(requested(world(datasets=("dots", "ink"), noise=0.005), by="closed").frame())
    assert len(found) == 6
    for (dataset, a, b), line in found.items():
        truth = 0.2 if a == "lora" else -0.2
        assert line["difference"] == pytest.approx(truth, abs=0.005), (dataset, a)
        assert line["at"] == pytest.approx(close(b, OWN[b]), abs=0.02)
        assert line["low"] < truth < line["high"] and line["high"] - line["low"] < 0.05
        assert line["verdict"] == ("worse" if truth > 0 else "better")
    plain = by_pair(requested(world(noise=0.005)).frame())["dots", "lora", "pair"]["difference"]
    assert abs(plain - 0.2) > 0.03  # at their default strengths they are not equally close


def test_without_noise_it_is_the_truth_and_the_record_bears_out_the_straight_line():
    wanted = requested(world(), by="closed")
    line = by_pair(wanted.frame())["dots", "lora", "pair"]
    assert line["difference"] == pytest.approx(0.2, abs=1e-12)
    assert not wanted.closeness.of_sets  # closed per image, from its distance
    means = wanted.closeness.frame.groupby(["run_id", "strength"]).value.mean()
    stored = wanted.source.done[wanted.source.done.metric == "closed"].set_index(["run_id", "strength"]).value
    assert means.loc[stored.index].tolist() == pytest.approx(stored.tolist())


def test_a_closeness_that_is_no_straight_line_is_left_as_a_number_of_the_set():
    records, images = world(noise=0.01)
    for score in records[0].scores[:1]:
        score["value"] += 0.05
    assert requested((records, images), by="closed").closeness.of_sets
    line = by_pair(requested((records, images), by="closed").frame())["dots", "lora", "pair"]
    assert line["difference"] == pytest.approx(0.2, abs=0.05) and line["n"] == len(PROMPTS)


def test_nothing_is_extrapolated(monkeypatch):
    monkeypatch.setitem(OWN, "pair", 4.0)
    monkeypatch.setitem(STRENGTHS, "lora", (0.5, 1.0))
    found = by_pair(requested(world(), by="closed").frame())
    low, high = close("lora", 0.5), close("lora", 1.0)
    line = found["dots", "lora", "pair"]
    assert line["verdict"] == "absent" and math.isnan(line["difference"]) and math.isnan(line["p_holm"])
    moved = np.random.default_rng(0).normal(0, 0.02, len(PROMPTS)).mean() / FLOOR  # the prompts' part of the distance
    low, high, level = low - moved, high - moved, close("pair", 4.0) - moved
    assert line["reason"] == (
        f"B's closeness {level:.3g} is not on A's sweep, {low:.3g} to {high:.3g}: nothing is extrapolated"
    )
    assert found["dots", "pair", "lora"]["difference"] == pytest.approx(-0.2)
    monkeypatch.setitem(STRENGTHS, "lora", (1.0,))
    assert "one strength" in by_pair(requested(world(), by="closed").frame())["dots", "lora", "pair"]["reason"]


def parallel(seeds, prompts, draw, gap=0.0):
    """A sweep and a point that lie on lines y = x + c with c of each training and prompt: theta is a mean of c's."""
    base = draw.normal(size=(1, prompts)) + 0.3 * draw.normal(size=(seeds, 1))
    apart = gap + 0.5 * draw.normal(size=(1, prompts)) + 0.3 * draw.normal(size=(seeds, prompts))
    apart = apart + 0.4 * draw.normal(size=(seeds, 1))
    x = np.linspace(-9, 9, 4) + np.zeros((seeds, prompts, 1)) + 0.1 * draw.normal(size=(seeds, prompts, 1))
    point = 0.1 * draw.normal(size=(seeds, prompts, 1))
    pair = Pair(StrengthSweep(x, x + (base + apart)[..., None]), StrengthSweep(point, point + base[..., None]))
    return pair, apart


@pytest.mark.parametrize("seeds, prompts", [(3, 12), (4, 5), (1, 12), (6, 1)])
def test_on_parallel_lines_the_interval_is_that_of_the_mean_gap(seeds, prompts):
    pair, apart = parallel(seeds, prompts, np.random.default_rng(3))
    rows, columns = (codes.ravel() for codes in np.indices(apart.shape))
    expected = resampling.mean(apart.ravel(), rows, columns)
    found = matched.of_pair(pair)
    width = np.subtract(*expected.limits()[::-1])
    assert found.difference == pytest.approx(apart.mean())
    assert (found.low, found.high) == pytest.approx(expected.limits(), abs=0.05 * width)
    assert found.p == pytest.approx(expected.p_value(), abs=0.03)
    assert found.linear.variance == pytest.approx(expected.variance) and found.linear.free == expected.free
    assert found.effect == pytest.approx(apart.mean() / apart.std(ddof=1))


def test_a_resample_draws_both_curves_anew():
    """theta under weights is that of the sweeps whose rows are repeated as often as the weights say."""
    draw = np.random.default_rng(5)
    x = np.sort(draw.normal(size=(3, 6, 5)), axis=2) * 5
    pair = Pair(
        StrengthSweep(x, x**2 + draw.normal(size=x.shape)), StrengthSweep(0.2 * draw.normal(size=(3, 6, 1)), x[..., :1])
    )
    rows, columns = [0, 0, 2], [1, 1, 1, 4, 5, 0]
    counts = (np.bincount(columns, minlength=6) / 6)[None], (np.bincount(rows, minlength=3) / 3)[None]

    def again(values):
        return np.array([[values[g, p] for p in columns] for g in rows]).mean(axis=(0, 1))

    expected = np.interp(again(pair.b.x)[0], again(pair.a.x), again(pair.a.y)) - again(pair.b.y)[0]
    assert pair.theta(*counts)[0] == pytest.approx(expected)


def test_interpolation_is_numpys_and_takes_the_first_crossing():
    draw = np.random.default_rng(6)
    x, y = np.sort(draw.normal(size=(40, 5)), axis=1), draw.normal(size=(40, 5))
    level = draw.normal(size=40)
    expected = [np.interp(t, a, b, np.nan, np.nan) for t, a, b in zip(level, x, y, strict=True)]
    np.testing.assert_allclose(matched.interpolate(x, y, level), expected)
    bent = np.array([[0.0, 2.0, 1.0, 3.0]])
    assert matched.interpolate(bent, np.array([[0.0, 20.0, 30.0, 40.0]]), np.array([1.5]))[0] == 15.0
    falling = np.array([[3.0, 1.0]])
    assert matched.interpolate(falling, np.array([[0.0, 10.0]]), np.array([2.0]))[0] == 5.0


def test_the_linear_form_is_the_derivative():
    draw = np.random.default_rng(7)
    x = np.linspace(0, 1, 4) + 0.02 * draw.normal(size=(3, 8, 4))
    pair = Pair(
        StrengthSweep(x, np.sin(3 * x)),
        StrengthSweep(0.4 + 0.02 * draw.normal(size=(3, 8, 1)), draw.normal(size=(3, 8, 1))),
    )
    known = np.arange(8) < 5
    pair.a.y[:, ~known], pair.b.y[:, ~known] = np.nan, np.nan  # the metric is undefined for three prompts
    even = np.full((1, 8), 1 / 8), np.full((1, 3), 1 / 3)
    for p, step in itertools.product(range(8), (1e-6,)):
        moved = even[0] * (1 - step)
        moved[0, p] += step
        slope = (pair.theta(moved, even[1]) - pair.theta(*even))[0] / step
        assert slope == pytest.approx(pair.linear()[:, p].mean() - pair.theta(*even)[0], abs=1e-4)


def test_a_point_near_the_end_of_the_curve_has_a_number_but_no_interval():
    x = np.array([0.0, 1.0]) + np.zeros((3, 12, 1))
    point = 0.99 + 0.1 * np.random.default_rng(8).normal(size=(3, 12, 1))
    found = matched.of_pair(
        Pair(StrengthSweep(x, 2 * x), StrengthSweep(point - point.mean() + 0.999, np.zeros_like(point)))
    )
    assert found.difference == pytest.approx(2 * 0.999) and math.isnan(found.low) and found.p > 0.3
    with pytest.raises(Impossible, match="nothing is extrapolated"):
        matched.of_pair(Pair(StrengthSweep(x, x), StrengthSweep(point + 0.1, point)))


@pytest.mark.slow
def test_matched_intervals_cover_the_truth():
    """y bends at x = 1/2 on A, 0 on B, noise in both and in the closeness, 3 trainings, 12 prompts: theta is y(1/2)."""
    draw, hits, tries = np.random.default_rng(9), 0, 300
    for _ in range(tries):
        prompt, training = draw.normal(size=(4, 1, 12, 1)), draw.normal(size=(4, 3, 1, 1))
        noise = 0.05 * prompt + 0.03 * training + 0.05 * draw.normal(size=(4, 3, 12, 1))
        x = np.linspace(0, 1, 5) + np.zeros((3, 12, 1))
        pair = Pair(StrengthSweep(x + 0.3 * noise[0], x**2 + noise[1]), StrengthSweep(0.5 + 0.3 * noise[2], noise[3]))
        found = matched.of_pair(pair)
        hits += found.low < 0.25 < found.high
    assert 0.92 <= hits / tries <= 0.98, hits / tries


# --- the command


def test_the_command_prints_and_writes_comparisons(tmp_path, capsys):
    store, (records, images) = Store(tmp_path / "results"), world(datasets=("dots", "ink"), noise=0.01)
    for record in records:
        folder = store.work(record.run_id)
        mine = images[images.run_id == record.run_id].drop(columns="run_id").rename(columns={"image_seed": "seed"})
        mine.to_csv(folder / "per_image.csv", index=False)
        store.publish(record)
    command = ["--results", str(store.root), "--compare", "leak"]
    table.main([*command, "--matched", "closed", "--csv", str(tmp_path / "c.csv"), "--latex", str(tmp_path / "c.tex")])
    shown = capsys.readouterr().out
    written = by_pair(pd.read_csv(tmp_path / "c.csv"))
    assert written["all 2", "lora", "pair"]["difference"] == pytest.approx(0.2, abs=0.02)
    assert "worse" not in shown and "at matched closed [net]" in shown and "effect" in (tmp_path / "c.tex").read_text()
    table.main(command)
    assert "Exploratory: no verdict" in capsys.readouterr().out
    with pytest.raises(BenchError, match="--compare METRIC"):
        table.main([*command[:2], "--matched", "closed"])


def test_where_the_ideal_is_a_value_the_nearer_one_is_better(monkeypatch):
    """A leak of -1 is worse than one of 0.1, though it is lower; matched or not."""
    from bench.analysis import table_model
    from bench.analysis.quantities import Heading

    made = world(seeds=3)
    by = {False: requested(made), True: requested(made, by="closed")}
    plain = {key: one.frame().set_index(["a", "b"]) for key, one in by.items()}
    monkeypatch.setattr(table_model.quantities, "heading", lambda name: Heading(name, ideal=IDEAL))
    for key, frame in plain.items():
        one = requested(made, by="closed") if key else requested(made)
        found = one.frame().set_index(["a", "b"])
        for pair, line in frame.iterrows():
            turned = {"better": "worse", "worse": "better"}
            expected = turned.get(line.verdict, line.verdict)
            assert found.verdict[pair] == expected and found.difference[pair] == line.difference
        assert "The ideal is 50" in formats.text(one.table_model())


IDEAL = 50.0  # far above all leaks: then the higher one is nearer
