"""A metric of another version, settings or weights is scored again by itself, on stored images; all else stays."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from light import light_cell

from bench.analysis import frames
from bench.analysis.layouts import Source, metrics
from bench.cell import identity
from bench.contracts import BenchError, Metric, Score
from bench.data.schema import describe
from bench.run import run
from bench.steps.identify import complete
from bench.steps.sample import keep
from bench.steps.score import measure
from bench.steps.work import Work
from bench.store import scored
from bench.store.record import Record, Store, dumps


class Bright(Metric):
    """Version 2 is twice version 1, undefined for the first image, without `extra`, and notes something else."""

    higher_is_better = {"bright": True, "extra": True}

    def __init__(self, scale=1.0):
        self.scale = scale

    def missing(self):
        return None

    def score(self, evaluation):
        each = np.asarray(evaluation.images, dtype=np.float64).mean(axis=(1, 2, 3)) * self.scale * self.version / 3
        about = {"metric": f"bright {self.version}", "n": len(each)}
        if self.version == 1:
            return Score({"bright": each.mean(), "extra": 1.0}, {"bright": each, "extra": each}, about, ["one."])
        each[0] = math.nan
        return Score({"bright": np.nanmean(each)}, {"bright": each}, about, ["two."])


class Weights:
    """A part whose id is what its file holds."""

    def __init__(self, file):
        self.file = file

    @property
    def id(self):
        return f"weights {Path(self.file).read_text()}"


class Weighed(Metric):
    higher_is_better = {"weighed": True}

    def __init__(self, network):
        self.network = network

    def missing(self):
        try:
            _ = self.network.id
        except OSError as error:
            return f"{error}."
        return None

    def score(self, evaluation):
        factor = float(self.network.id.split()[1])
        each = factor * np.asarray(evaluation.images, dtype=np.float64).std(axis=(1, 2, 3)) / 7
        return Score({"weighed": each.mean()}, {"weighed": each}, {"metric": "weighed 1", "weights": f"{factor:g}"})


def requested(root, file, **changes):
    network = {"_target_": "test_scored.Weights", "file": str(file)}
    own = {"bright": {"_target_": "test_scored.Bright"},
           "weighed": {"_target_": "test_scored.Weighed", "network": network}}  # fmt: skip
    method = {"_target_": "methods.zero_shot.ZeroShot", "name": "one", "version": 1}
    dataset = describe("blueprint") | {"prompts": ["a photo of a cat"], "seeds": [0, 1]}
    usual = {"metrics": own, "strengths": (1.0, 0.3), "tracker": {"_target_": "bench.track.Silent"}}
    return light_cell(root, **{"method": method, "dataset": dataset} | usual | changes)


def pictures(seed):
    return np.random.default_rng(seed).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)


def finished(cell):
    """A cell as `bench.run` leaves it, its images drawn by dice."""
    store = Store(cell.results)
    work = Work(cell, store.work(cell.run_id), store=store)
    record = Record(cell.run_id, "done", cost={"train_s": 1.0}, notes=work.notes)
    for k, strength in enumerate(cell.strengths):
        keep(work, strength, pictures(k))
        record.scores += measure(work, strength, list(cell.metrics))
    record.config = work.config()
    store.publish(record)


def forbidden(*args, **kwargs):
    raise AssertionError("this was done already")


NEVER = ("steps.sample.drawn", "steps.sample.draw", "steps.slots.training_job", "steps.work.loaded_backbone")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A finished cell at two strengths, in a process that may neither train nor draw nor load the backbone."""
    file = tmp_path / "weights"
    file.write_text("3")
    identity.cache_clear()
    monkeypatch.setattr("bench.steps.baseline.untouched", lambda work, chosen, label: pictures(9))
    for step in NEVER:
        monkeypatch.setattr(f"bench.{step}", forbidden)
    finished(requested(tmp_path / "results", file))
    monkeypatch.setattr("bench.run.run_together", forbidden)
    yield tmp_path / "results", file
    identity.cache_clear()


def raised(monkeypatch, version=2):
    monkeypatch.setattr(Bright, "version", version)
    identity.cache_clear()


def of(record, group):
    return [json.dumps(entry) for entry in record.scores if entry["group"] == group]


def columns(root, record, *names):
    """The texts of some columns of per_image.csv, as they are in the file."""
    table = pd.read_csv(root / record.run_id / "per_image.csv", dtype=str, keep_default_na=False)
    return table[[*names]].to_dict("list")


def test_a_raised_version_scores_that_metric_again_and_moves_nothing_else(place, monkeypatch):
    root, file = place
    cell = requested(root, file)
    before, bits = Store(root).read(cell.run_id), columns(root, cell, "strength", "prompt", "seed", "weighed", "bright")
    raised(monkeypatch)
    assert not complete(before, cell)
    after = run(cell)
    assert of(after, "weighed") == of(before, "weighed") and len(of(after, "weighed")) == 2
    now = columns(root, after, "strength", "prompt", "seed", "weighed", "bright")
    assert {k: v for k, v in now.items() if k != "bright"} == {k: v for k, v in bits.items() if k != "bright"}
    for strength in (1.0, 0.3):
        old, new = (
            {e["metric"]: e["value"] for e in r.scores if (e["group"], e["strength"]) == ("bright", strength)}
            for r in (before, after)
        )
        rows = [i for i, s in enumerate(bits["strength"]) if float(s) == strength]
        assert set(old) == {"bright", "extra"} and set(new) == {"bright"}
        assert [now["bright"][i] for i in rows][0] == ""  # the old value does not shine through
        assert float(now["bright"][rows[1]]) == pytest.approx(2 * float(bits["bright"][rows[1]]))
        assert new["bright"] == pytest.approx(float(now["bright"][rows[1]]))
    assert "extra" not in pd.read_csv(root / after.run_id / "per_image.csv")
    assert "metric bright: two." in after.notes and "metric bright: one." not in after.notes
    assert {key: getattr(after, key) for key in ("status", "cost", "provenance")} == {
        key: getattr(before, key) for key in ("status", "cost", "provenance")
    }
    monkeypatch.setattr("bench.steps.identify.extend", forbidden)
    assert dumps(run(cell)) == dumps(after)  # and the next time nothing is left to do


def test_all_strengths_of_a_record_move_together(place, monkeypatch):
    root, file = place
    raised(monkeypatch)
    after = run(requested(root, file, strengths=(1.0,)))
    assert {(e["strength"], e["fingerprint"]["metric"]) for e in after.scores if e["group"] == "bright"} == {
        (1.0, "bright 2"), (0.3, "bright 2")}  # fmt: skip


def test_old_and_new_stand_in_no_table_together_unless_asked(place, monkeypatch):
    root, file = place
    one = Store(root).read(requested(root, file).run_id)
    raised(monkeypatch)
    other = run(requested(root, file))
    other.run_id, other.config["seed"] = "other", 1
    both = Source(frames.frame([one, other]), pd.DataFrame(columns=["run_id", "strength", "prompt", "image_seed"]))
    with pytest.raises(
        BenchError, match="metric is bright 1 in .* and bright 2 in other.* commands of the older records"
    ):
        metrics(both, ["bright"])
    assert metrics(Source(both.scores, both.images, mix=True), ["bright"]).notes


def test_other_weights_score_again_and_missing_ones_leave_what_is_there(place):
    root, file = place
    before = Store(root).read(requested(root, file).run_id)
    file.unlink()
    identity.cache_clear()
    assert complete(before, requested(root, file))
    file.write_text("6")
    identity.cache_clear()
    after = run(requested(root, file))
    assert of(after, "bright") == of(before, "bright")
    pairs = zip(*([e["value"] for e in r.scores if e["group"] == "weighed"] for r in (before, after)), strict=True)
    assert [new / old for old, new in pairs] == pytest.approx([2.0, 2.0])


def test_settings_that_change_and_change_back_are_scored_each_time(place):
    root, file = place
    cell = requested(root, file)
    before = Store(root).read(cell.run_id)
    louder = requested(root, file, metrics=cell.metrics | {"bright": cell.metrics["bright"] | {"scale": 5.0}})
    assert of(run(louder), "bright") != of(before, "bright")
    assert sorted(of(run(cell), "bright")) == sorted(of(before, "bright"))


def test_numbers_of_a_newer_version_stay(place, monkeypatch):
    root, file = place
    raised(monkeypatch, 2)
    after = run(requested(root, file))
    raised(monkeypatch, 1)
    monkeypatch.setattr("bench.steps.identify.extend", forbidden)
    assert dumps(run(requested(root, file))) == dumps(after)


def test_records_from_before_versions_were_kept_are_judged_by_their_fingerprints(place, monkeypatch):
    root, file = place
    cell = requested(root, file)
    record = Store(root).read(cell.run_id)
    record.config["scored"] = [" ".join(key.split(" ")[:2] + key.split(" ")[3:]) for key in record.config["scored"]]
    Store(root).update(record)
    assert scored.lacks(record, cell) == []
    file.write_text("4")
    identity.cache_clear()
    assert scored.lacks(record, cell) == [(1.0, ["weighed"]), (0.3, ["weighed"])]
    file.write_text("3")
    raised(monkeypatch)
    assert scored.lacks(record, cell) == [(1.0, ["bright"]), (0.3, ["bright"])]
    after = run(cell)
    assert all(len(key.split(" ")) == (4 if key.startswith("bright") else 3) for key in after.config["scored"])
    assert of(after, "weighed") == of(record, "weighed") and scored.lacks(after, cell) == []


def test_a_metric_that_gave_nothing_is_tried_again_with_its_next_version(place, monkeypatch):
    root, file = place
    cell = requested(root, file)
    record = Store(root).read(cell.run_id)
    record.scores = [entry for entry in record.scores if entry["group"] != "bright"]
    record.notes = [*record.notes, "metric bright left out: it could not be had"]
    Store(root).update(record)
    assert complete(record, cell)
    raised(monkeypatch)
    after = run(requested(root, file))
    assert len(of(after, "bright")) == 2 and not [note for note in after.notes if "left out" in note]


def test_a_raised_version_is_part_of_what_names_a_measurement(place, monkeypatch):
    cell = requested(*place)
    names = {cell.measure("bright", 1.0)}
    raised(monkeypatch)
    names.add(cell.measure("bright", 1.0))
    identity.cache_clear()
    assert len(names) == 2 and all(name.endswith(" 1") for name in names)
