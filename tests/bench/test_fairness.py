"""The fairness contract: each rule catches its departure, none changes a run id, and the table carries footnotes."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from bench import fairness
from bench import run as order
from bench.analysis import frames, layouts, plain_text
from bench.compose import cell, register_datasets
from bench.contracts import CONVENTION, BenchError
from bench.fairness import PREFIX, contract
from bench.paths import CONF
from bench.run import run
from bench.store.record import Record, Store


def composed(*overrides):
    register_datasets()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return cell(compose("config", ["tracker=none", *overrides]))


@pytest.fixture(scope="module")
def requested(tmp_path_factory):
    """A cell of Pair Customization without metrics; it would be found finished as soon as it has a record."""
    return replace(composed("method=pair"), metrics={}, results=tmp_path_factory.mktemp("results"))


def under(requested, **rules):
    return replace(requested, fairness=rules)


def departures(requested, cost=None, **rules):
    made = under(requested, **rules)
    return contract(made).deviations(made, cost or {})


def changed(requested, part, **values):
    return replace(requested, **{part: {**getattr(requested, part), **values}})


RULES = {
    "steps": ({"budget": {"steps": 749}}, {"budget": {"steps": 750}}, "750 training steps, the budget is 749"),
    "images": ({"budget": {"images": 700}}, {"budget": {"images": 750}},
               "750 training images seen, the budget is 700"),
    "late start": ({"start_t": 700}, {"start_t": 800}, "guidance starts at timestep 800 instead of 700"),
    "latent cache": ({"same": {"trainer": {"resample": False}}}, {"same": {"trainer": {"resample": True}}},
                     "trainer.resample is True instead of False"),
    "backbone": ({"same": {"backbone": {"name": "sdxl"}}}, {"same": {"backbone": {"name": "mini"}}},
                 "backbone.name is mini instead of sdxl"),
    "resolution": ({"same": {"backbone": {"resolution": 32}}}, {"same": {"backbone": {"resolution": 64}}},
                   "backbone.resolution is 64 instead of 32"),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_is_kept_or_its_departure_is_told(requested, rule):
    broken, kept, sentence = RULES[rule]
    assert departures(requested, **broken) == [sentence] and departures(requested, **kept) == []


@pytest.mark.parametrize("key, value", [("prompts", ["a cat"]), ("seeds", [0]), ("rendered", {"seed": 9})])
def test_another_prompt_seed_or_image_than_published_is_a_departure(requested, key, value):
    other = changed(requested, "dataset", **{key: value})
    assert departures(requested, published_dataset=True) == []
    assert departures(other, published_dataset=True) == [f"dataset.{key} is not the published one"]
    assert departures(other) == []


def test_the_samplers_late_start_overrides_the_methods(requested):
    assert departures(changed(requested, "sampler", start_t=600), start_t=600) == []
    assert departures(changed(requested, "sampler", start_t=0), start_t=800) == [
        "guidance starts at timestep 0 instead of 800"
    ]


def test_images_seen_are_steps_times_batch_and_no_recipe_costs_nothing(requested):
    recipe = {**requested.method["recipe"], "batch_size": 4}
    assert departures(changed(requested, "method", recipe=recipe), budget={"images": 2999}) == [
        "3000 training images seen, the budget is 2999"
    ]
    assert departures(composed("method=zero_shot"), budget={"steps": 0, "images": 0}) == []


def test_seconds_are_told_afterwards(requested):
    rules = {"budget": {"train_s": 60}}
    assert departures(requested, **rules) == [] == departures(requested, {"train_s": 60.0}, **rules)
    assert departures(requested, {"train_s": 61.0}, **rules) == ["training took longer than the budget of 60 s"]


def test_no_rule_changes_the_run_id(requested):
    rules = {"same": {"trainer": {"resample": False}}, "start_t": 1, "budget": {"steps": 1}, "strict": True}
    declared = changed(requested, "method", deviations=["full fine-tuning"])
    assert replace(declared, fairness=rules).run_id == requested.run_id
    assert departures(declared) == ["full fine-tuning"]


def test_a_rule_that_means_nothing_is_told(requested):
    for rules in ({"budgett": {}}, {"budget": {"step": 5}}, {"same": {"tracker": {"mode": "online"}}}):
        with pytest.raises(
            BenchError, match="fairness.budgett was|fairness.budget.step was|The fairness contract fixes"
        ):
            contract(under(requested, **rules))


def test_strict_refuses_before_anything_runs_and_leaves_a_row(requested, monkeypatch):
    strict = under(replace(requested, seed=1), strict=True, budget={"steps": 5, "images": 7})
    for step in ("baseline.untouched", "slots.training_job", "sample.draw", "score.measure"):
        monkeypatch.setattr(f"bench.steps.{step}", lambda *args: pytest.fail("something ran"))
    record = run(strict)
    assert record.status == "skipped" and record.reason == (
        "fairness: refused: 750 training steps, the budget is 5; 750 training images seen, the budget is 7. "
        "To run it with a footnote: fairness.strict=false."
    )
    assert [found.status for found in Store(requested.results).records() if found.run_id == strict.run_id] == [
        "skipped"
    ]
    monkeypatch.setattr(order, "run_together", lambda *args, **more: ["it runs"])
    assert run(replace(strict, fairness={"budget": {"steps": 5}})) == "it runs"


def test_a_finished_cell_is_judged_anew_without_running(requested, monkeypatch):
    monkeypatch.setattr(order, "run_together", lambda *args, **more: pytest.fail("it ran"))
    store, noted = Store(requested.results), ["metric fid left out", f"{PREFIX}of an earlier contract"]
    store.publish(Record(requested.run_id, "done", None, {"scored": []}, {"train_s": 9.0}, notes=noted))
    for rules in ({"budget": {"steps": 700, "train_s": 8}}, {"start_t": 1, "strict": True}, {}):
        judged = run(under(requested, **rules))
        expected = [PREFIX + sentence for sentence in departures(requested, {"train_s": 9.0}, **rules)]
        assert judged.notes == ["metric fid left out", *expected] == store.read(requested.run_id).notes
    assert not expected


def record_of(method, seed, *deviations):
    config = {"method": {"name": method}, "dataset": {"name": "dots"}, "backbone": {"name": "tiny"}, "seed": seed}
    score = {"strength": 1.0, "metric": "up_a", "value": 1.0, "higher_is_better": True, "network": "net"}
    notes = ["a note that is no footnote", *(PREFIX + text for text in deviations)]
    return Record(f"{method}-{seed}", "done", None, config, {}, scores=[score], notes=notes)


@pytest.mark.parametrize("style", ["simple", "pipe"])
def test_the_table_marks_methods_and_says_below_how_they_depart(style):
    records = [record_of("lora", 0), record_of("lora", 1)]
    records += [record_of("full", 0, "full fine-tuning"), record_of("full", 1, "full fine-tuning", "too slow")]
    records += [record_of("more", s, "2000 training steps, the budget is 750") for s in (0, 1)]
    text = plain_text.render(frames.summary(frames.frame(records)), ["up_a"], style)
    lines = text.splitlines()
    methods = {word for line in lines for word in line.strip("| ").split()[:1]}
    assert {"lora", "full¹", "more²"} <= methods
    start = "- " if style == "pipe" else ""
    assert f"{start}¹ full fine-tuning; too slow" in lines
    assert f"{start}² 2000 training steps, the budget is 750" in lines
    assert "no footnote" not in text and text.count("¹") == text.count("²") == 2


def test_rows_of_unlike_conventions_have_unlike_footnotes():
    def noted(method, how):
        record = record_of(method, 0)
        record.notes.append(f"{CONVENTION}flux: time sampling ({how})")
        return record

    records = [noted("lora", "uniform"), noted("full", "logit-normal"), noted("more", "uniform"), record_of("none", 0)]
    text = plain_text.render(frames.summary(frames.frame(records)), ["up_a"])
    marks = {line.split()[0] for line in text.splitlines() if line.split()}
    assert {"full¹", "lora²", "more²", "none"} <= marks
    assert "¹ flux: time sampling (logit-normal)" in text and "² flux: time sampling (uniform)" in text
    source = layouts.Source(frames.frame(records), pd.DataFrame(columns=["run_id", "strength", "prompt", "image_seed"]))
    model = layouts.metrics(source, ["up_a"])
    notes = {row.key["method"]: [model.notes[mark - 1] for mark in row.marks if "flux" in model.notes[mark - 1]]
             for row in model.rows}  # fmt: skip
    assert notes["full"] == ["flux: time sampling (logit-normal)"] and notes["none"] == []
    assert notes["lora"] == notes["more"] == ["flux: time sampling (uniform)"]


def test_each_run_keeps_its_own_departures_in_the_files():
    rows = frames.wide(frames.frame([record_of("full", 0, "a"), record_of("full", 1, "a", "b"), record_of("lora", 0)]))
    assert dict(zip(rows.run_id, rows.deviations, strict=True)) == {"full-0": "a", "full-1": "a; b", "lora-0": ""}


def test_an_experiments_cells_keep_its_rules():
    for method in ("pair", "dreambooth", "zero_shot", "oracle", "copy"):
        made = composed("experiment=mini", f"method={method}", "dataset=ink")
        assert contract(made).deviations(made, {}) == [] and contract(made).budget.steps == 750
        assert made.sampler["start_t"] == 800 and list(made.strengths) == list(made.method["strength_sweep"])
    over = composed("experiment=mini", "method=dreambooth", "method.recipe.steps=1000")
    assert fairness.contract(over).deviations(over, {}) == [
        "1000 training steps, the budget is 750", "1000 training images seen, the budget is 750"
    ]  # fmt: skip


def test_a_glob_over_the_group_is_every_method():
    register_datasets()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        (override,) = parser.parse_overrides(["method=glob(*)"])
        found = set(override.sweep_string_iterator())
    assert found == {path.stem for path in (Path(CONF) / "method").glob("*.yaml")} and "oracle" in found
    for name in found:
        assert yaml.safe_load((Path(CONF) / "method" / f"{name}.yaml").read_text())["name"] == name
