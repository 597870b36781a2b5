"""Sheets against loops over the same values, and the refusal to put unlike numbers into one column."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from bench.analysis import fingerprints, frames, layouts, pairing, statistics
from bench.contracts import BenchError
from bench.store.record import Record

PROMPTS = [f"a photo of thing {i}" for i in range(12)]
LEVEL = {"one": 5.0, "two": 0.0, "three": 0.0}


def score(metric, value, network="net-a", strength=1.0, **about):
    return {"strength": strength, "metric": metric, "value": value, "higher_is_better": metric.startswith("up"),
            "network": network, "fingerprint": {"metric": f"{metric} 1", "n": len(PROMPTS), **about}}  # fmt: skip


def cell(method, dataset, seed, scores, steps=5, **more):
    config = {"method": {"name": method, "recipe": {"steps": steps, "lr": 0.1}}, "dataset": {"name": dataset}}
    run_id = f"{method}-{dataset}-{steps}-s{seed}"
    return Record(run_id, "done", None, config | {"backbone": {"name": "tiny"}, "seed": seed},
                  {"train_s": 10.0 + seed}, scores=scores, **more)  # fmt: skip


def world(methods=("one", "two", "three"), datasets=("dots", "lines"), seeds=3):
    """Records and per-image values: up_a is the mean of its images, low_set is a number of the whole set."""
    draw, records, lines = np.random.default_rng(0), [], []
    prompt = dict(zip(PROMPTS, draw.normal(size=len(PROMPTS)), strict=True))
    for method, dataset, seed in itertools.product(methods, datasets, range(seeds)):
        values = {p: LEVEL[method] + prompt[p] + 0.1 * draw.normal() for p in PROMPTS}
        scores = [score("up_a", np.mean(list(values.values()))), score("low_set", 10 - LEVEL[method] + draw.normal())]
        records.append(cell(method, dataset, seed, scores))
        lines += [(records[-1].run_id, 1.0, p, 0, x) for p, x in values.items()]
    return records, pd.DataFrame(lines, columns=["run_id", "strength", "prompt", "image_seed", "up_a"])


@pytest.fixture(scope="module")
def source():
    records, images = world()
    return layouts.Source(frames.frame(records), images)


def by_key(model, *names):
    return {tuple(row.key[name] for name in names): row for row in model.rows}


def test_every_value_is_the_interval_of_its_own_images(source):
    model = layouts.metrics(source, ["up_a", "low_set"])
    rows = by_key(model, "method", "dataset")
    assert len(rows) == 6 and [column.full for column in model.columns] == ["up_a [net-a]", "low_set [net-a]"]
    head = source.scores.drop_duplicates("run_id").set_index("run_id")[["method", "dataset", "seed"]]
    images = source.images.join(head, on="run_id")
    sets = source.scores[source.scores.metric == "low_set"]
    for (method, dataset), row in rows.items():
        of_images, of_sets = (
            pairing.Rows(dict(iter(part[part.dataset == dataset].groupby("method"))), name, levels).row(method)
            for part, name, levels in ((images, "up_a", ("seed", "prompt")), (sets, "value", ("seed",)))
        )
        for value, found in zip(row.values, (of_images, of_sets), strict=True):
            interval = statistics.interval_of(found)
            assert (value.mean, value.low, value.high) == pytest.approx((interval.mean, interval.low, interval.high))
        assert row.values[0].covers == ("dataset", "seed", "prompt")[1:] and row.values[1].covers == ("seed",)


def test_bold_is_decided_within_a_dataset(source):
    model = layouts.metrics(source, ["up_a", "low_set"])
    assert {key: row.values[0].bold for key, row in by_key(model, "method", "dataset").items()} == {
        (method, dataset): method == "one" for method in LEVEL for dataset in ("dots", "lines")
    }
    assert any("Bold" in line and "dataset" in line for line in model.legend)


def test_numbers_whose_images_do_not_average_to_them_are_numbers_of_sets(source):
    other = layouts.Source(source.scores, source.images.assign(up_a=source.images.up_a + 1e-3))
    assert layouts.numbers(other.done, other.images, "up_a [net-a]").levels == ("dataset", "seed")
    some = source.images[source.images.run_id != source.images.run_id[0]]
    assert layouts.numbers(source.done, some, "up_a [net-a]").of_sets
    assert not layouts.numbers(source.done, source.images, "up_a [net-a]").of_sets


def test_the_standard_error_in_the_record_widens_the_interval():
    records = [cell("one", "dots", s, [score("low_k", 2.0), score("low_k_se", 0.5)]) for s in range(3)]
    model = layouts.metrics(layouts.Source(frames.frame(records), pd.DataFrame()), ["low_k", "low_k_se"])
    value, error = model.rows[0].values
    assert (value.low, value.high) == pytest.approx((2 - 0.98, 2 + 0.98), abs=0.01)
    assert [column.up for column in model.columns] == [False, None]  # nobody wins in standard errors


def test_pooled_rows_generalise_over_datasets(source):
    model = layouts.metrics(source, ["up_a"], pool=True)
    assert set(by_key(model, "method")) == {("one",), ("two",), ("three",)} and "dataset" not in model.keys
    for (method,), row in by_key(model, "method").items():
        mine = source.images[source.images.run_id.str.startswith(f"{method}-")]
        assert row.values[0].mean == pytest.approx(mine.up_a.mean())
        assert row.values[0].covers == ("dataset", "seed", "prompt")
    part = layouts.Source(source.scores[source.scores.run_id != "x"], source.images)
    lacking = part.scores[~((part.scores.method == "two") & (part.scores.dataset == "dots"))]
    found = layouts.metrics(layouts.Source(lacking, source.images), ["up_a"], pool=True)
    assert found.notes[by_key(found, "method")["two",].marks[0] - 1].startswith("a mean over 1 of 2 datasets")


def test_one_training_is_marked_and_never_bold():
    records, images = world(seeds=1)
    model = layouts.metrics(layouts.Source(frames.frame(records), images), ["up_a"])
    assert not any(row.values[0].bold for row in model.rows)
    assert all(model.notes[row.marks[-1] - 1].startswith("one training") for row in model.rows)
    assert any("Inconclusive" in line and "up_a [net-a]" in line for line in model.legend)


def test_one_training_beside_three_is_not_bold_and_does_not_take_it_from_them(source):
    alone = source.scores.method.eq("three") & source.scores.seed.ne(0)
    better = source.images.run_id.str.startswith("three-") * 9.0
    scores = source.scores.assign(value=source.scores.value + 9.0 * source.scores.method.eq("three"))
    images = source.images.assign(up_a=source.images.up_a + better)
    model = layouts.metrics(layouts.Source(scores[~alone], images), ["up_a"])
    rows = by_key(model, "method", "dataset")
    assert rows["three", "dots"].values[0].mean > rows["one", "dots"].values[0].mean
    assert [rows[name, "dots"].values[0].bold for name in ("one", "two", "three")] == [True, False, False]


def test_styles_stand_in_columns_with_their_mean_and_rank():
    records, images = world(datasets=("dots", "lines", "ink"))
    source = layouts.Source(frames.frame(records), images)
    model = layouts.styles(source, ["up_a"])
    assert [column.name for column in model.columns] == ["dots", "ink", "lines", "all 3", "mean rank"]
    flat = by_key(layouts.metrics(source, ["up_a"]), "method", "dataset")
    for (method,), row in by_key(model, "method").items():
        three = [flat[method, kind].values[0].mean for kind in ("dots", "ink", "lines")]
        assert [value.mean for value in row.values[:4]] == pytest.approx([*three, sum(three) / 3])
        others = [[flat[m, kind].values[0].mean for m in LEVEL] for kind in ("dots", "ink", "lines")]
        ranks = [sorted(found, reverse=True).index(x) + 1 for found, x in zip(others, three, strict=True)]
        assert row.values[4].mean == pytest.approx(sum(ranks) / 3)
    assert any("Friedman" in line for line in model.legend)
    with pytest.raises(BenchError, match="shows one metric"):
        layouts.styles(source, ["up_a", "low_set"])


def test_an_ablation_shows_what_differs_in_the_settings():
    records = [cell("one", "dots", s, [score("up_a", steps + s)], steps) for s in range(2) for steps in (5, 50)]
    configs = {record.run_id: record.config for record in records}
    model = layouts.ablation(layouts.Source(frames.frame(records), pd.DataFrame()), ["up_a"], configs)
    place = model.keys.index("steps")
    assert {row.labels[place]: row.values[0].mean for row in model.rows} == {"5": 5.5, "50": 50.5}
    assert "settings" not in model.keys and "lr" not in model.keys
    same = layouts.Source(frames.frame(records[::2]), pd.DataFrame())
    with pytest.raises(BenchError, match="same settings"):
        layouts.ablation(same, ["up_a"], configs)


def test_a_curve_holds_rows_with_several_strengths_in_order():
    records = [cell("one", "dots", s, [score("up_a", g + s, strength=g) for g in (2.0, 0.5, 10.0)]) for s in range(2)]
    records.append(cell("two", "dots", 0, [score("up_a", 9.0)]))
    source = layouts.Source(frames.frame(records), pd.DataFrame())
    model = layouts.sweep(source, ["up_a"])
    assert [(row.key["method"], row.key["strength"]) for row in model.rows] == [("one", g) for g in (0.5, 2.0, 10.0)]
    assert not any(value.bold for row in model.rows for value in row.values)
    with pytest.raises(BenchError, match="several strengths"):
        layouts.sweep(layouts.Source(source.scores[source.scores.method == "two"], pd.DataFrame()), ["up_a"])


def test_departures_failures_and_single_rows_are_told():
    records = [cell("one", "dots", 0, [score("up_a", 1.0)], notes=["fairness: 900 steps", "a note"])]
    records.append(Record("bad", "failed", "NaN at step 7", {"method": {"name": "two"}, "dataset": {"name": "dots"}}))
    model = layouts.metrics(layouts.Source(frames.frame(records), pd.DataFrame()), ["up_a"])
    assert model.notes == ["900 steps", layouts.SETS] and model.rows[0].marks == (1,)
    assert model.reasons == ["failed: two on dots: NaN at step 7"] and model.rows[1].values[0].text == "failed"
    assert math.isnan(model.rows[0].values[0].low)


# --- fingerprints


def unlike(**second):
    """Two methods on two datasets; the second method's numbers were measured otherwise."""
    about = {"weights": "aa", "versions": {"torch": "2.4"}, "reference": "r"}
    other = {**about, **second}
    records = [cell(m, d, 0, [score("up_a", 1.0, **(f | {"reference": f["reference"] + d}))])
               for m, f in (("one", about), ("two", other)) for d in ("dots", "lines")]  # fmt: skip
    return layouts.Source(frames.frame(records), pd.DataFrame())


def test_the_same_measure_on_datasets_with_their_own_references_shares_a_column():
    assert layouts.metrics(unlike(), ["up_a"]).notes == [layouts.SETS]


@pytest.mark.parametrize(
    "second, said",
    [
        ({"weights": "bb"}, "weights is aa in one-dots-5-s0 and bb in two-dots-5-s0"),
        ({"versions": {"torch": "2.9"}}, "versions.torch is 2.4 in one-dots-5-s0 and 2.9 in two-dots-5-s0"),
        ({"reference": "s"}, "reference is rdots in one-dots-5-s0 and sdots in two-dots-5-s0"),
        ({"crop": 3}, "crop is absent in one-dots-5-s0 and 3 in two-dots-5-s0"),
    ],
)
def test_unlike_fingerprints_are_refused_unless_asked_for(second, said):
    source = unlike(**second)
    with pytest.raises(BenchError, match="share the column up_a") as error:
        layouts.metrics(source, ["up_a"])
    assert said in str(error.value) and "--mix" in str(error.value)
    model = layouts.metrics(layouts.Source(source.scores, source.images, mix=True), ["up_a"])
    assert said in model.notes[model.columns[0].marks[0] - 1]


def test_a_cost_is_the_median_of_its_runs_without_an_interval(source):
    """One run that waited for the machine is no reason to believe that training may take less than no time."""
    slow = source.scores.assign(train_s=source.scores.train_s.where(source.scores.seed != 2, 1000.0))
    model = layouts.metrics(layouts.Source(slow, source.images), ["train_s", "up_a"])
    cost = by_key(model, "method", "dataset")["one", "dots"].values[0]
    assert (cost.mean, cost.n, cost.bold) == (11.0, 3, False) and np.isnan(cost.low) and np.isnan(cost.high)
    assert [model.notes[mark - 1] for mark in model.columns[0].marks] == [layouts.COSTS]
    assert layouts.COSTS not in [model.notes[mark - 1] for mark in model.columns[1].marks]


def test_what_was_only_observed_may_differ_and_columns_that_are_not_shown_too():
    layouts.metrics(unlike(truncated_captions=7), ["up_a"])
    layouts.metrics(unlike(weights="bb"), ["train_s"])


def test_a_recipe_may_not_change_from_one_dataset_to_the_next():
    lines = pd.DataFrame({"column": "a", "dataset": ["d", "e"], "run_id": ["x", "y"],
                          "fingerprint": ['{"metric": "a 1", "n": 4}', '{"metric": "a 2", "n": 9}']})  # fmt: skip
    assert fingerprints.check(lines, mix=True) == {"a": "metric is a 1 in x and a 2 in y"}


def test_numbers_that_are_not_fit_to_publish_say_so():
    records = [cell("one", "dots", 0, [score("up_a", 1.0, publishable=False), score("low_b", 1.0, publishable=True)])]
    model = layouts.metrics(layouts.Source(frames.frame(records), pd.DataFrame()), ["up_a", "low_b"])
    said = [[model.notes[i - 1] for i in column.marks] for column in model.columns]
    assert "do not publish" in said[0][0] and said[1] == [layouts.SETS]


@pytest.mark.parametrize("value, said", [(30.0, False), (5.0, True)])
def test_a_bias_that_is_small_against_the_number_is_no_reason(value, said):
    """The null is what a perfect set scores at this size: 1 of 30 is little, 1 of 5 is not."""
    records = [cell("one", "dots", 0, [score("up_a", value, publishable=False), score("up_a_null", 1.0)])]
    model = layouts.metrics(layouts.Source(frames.frame(records), pd.DataFrame()), ["up_a"])
    assert any("do not publish" in note for note in model.notes) == said
