"""Plans before spending: what is counted, what a forecast rests on, and how good it was."""

import math
from pathlib import Path

import numpy as np
import pytest
from light import light_cell, submitted
from scipy import stats

from bench import backbones
from bench.data import evaluation
from bench.store.record import Record, Store
from bench.sweeps import obstacles, plan
from bench.sweeps.settings import Settings
from bench.sweeps.sweep import judge


def finished(cell, train_s, sample_s, score_s=0.0, ended="2026-01-01", gpu=None):
    """A record as a run leaves it, with made-up times."""
    parts = ("method", "dataset", "backbone", "trainer", "sampler")
    requested = {part: dict(getattr(cell, part)) for part in parts}
    config = {**cell.identity, "scored": [f"m 0123456789 {s:g}" for s in cell.strengths], "requested": requested}
    cost = {"train_s": train_s, "sample_s": sample_s, "score_s": score_s, "load_s": 99.0}
    cost |= {"steps_per_s": cell.method["recipe"]["steps"] / train_s}
    cost |= {"images_per_s": evaluation.image_count(cell.dataset) * len(cell.strengths) / sample_s}
    return Record(cell.run_id, "done", config=config, cost=cost, provenance={"ended": ended, "gpu": gpu, "cpu": "c"})


def publish(results, record, size=1000):
    store = Store(results)
    (store.work(record.run_id) / "adapter.bin").write_bytes(b"x" * size)
    store.publish(record)


def test_a_record_foretells_itself_and_scales_with_steps_images_and_strengths(tmp_path):
    cell = light_cell(tmp_path, steps=10)
    record = finished(cell, 5.0, 3.0, 2.0)
    assert plan.foretold(cell, record) == pytest.approx(10.0)
    assert plan.foretold(light_cell(tmp_path, steps=30), record) == pytest.approx(15.0 + 3.0 + 2.0)
    twice = light_cell(tmp_path, steps=10, strengths=(1.0, 2.0))
    assert plan.foretold(twice, record) == pytest.approx(5.0 + 6.0 + 4.0)
    few = light_cell(tmp_path, steps=10, dataset={**cell.dataset, "prompts": cell.dataset["prompts"][:6]})
    assert plan.foretold(few, record) == pytest.approx(5.0 + (3.0 + 2.0) / 4)


def test_the_interval_is_that_of_a_mean_and_of_what_is_yet_to_come():
    """Simulated: n seen and N to come from one normal law; the interval around N times the mean holds 80 %."""
    rng, n, cells, inside = np.random.default_rng(0), 4, 6, 0
    for _ in range(1000):
        seen, coming = rng.normal(10, 2, n), rng.normal(10, 2, cells)
        half = stats.t.ppf(0.9, n - 1) * seen.std(ddof=1) * math.sqrt(cells**2 / n + cells)
        inside += abs(cells * seen.mean() - coming.sum()) <= half
        assert plan.off(float(seen.std(ddof=1)), n, cells) == pytest.approx(half)
    assert inside / 1000 == pytest.approx(0.8, abs=0.04)


def test_a_forecast_adds_up_its_kinds_and_says_what_it_does_not_know(tmp_path):
    for seed, seconds in [(0, 4.0), (1, 6.0)]:
        publish(tmp_path, finished(light_cell(tmp_path, seed), seconds, 1.0), size=500)
    cells = [light_cell(tmp_path, seed) for seed in range(2, 5)]
    strange = light_cell(tmp_path, backbone={**light_cell(tmp_path).backbone, "resolution": 128})
    made = plan.forecast([*cells, strange], tmp_path)
    assert made.total_s == pytest.approx(3 * 6.0) and made.each == dict.fromkeys([c.run_id for c in cells], 6.0)
    assert made.off_s == pytest.approx(stats.t.ppf(0.9, 1) * math.sqrt(2) * math.sqrt(9 / 2 + 3))
    assert made.unknown == [strange] and made.records == 2 and made.devices == {"c"}
    assert made.bytes > 3 * 500


def test_one_record_gives_no_interval_and_another_device_no_speed(tmp_path):
    publish(tmp_path, finished(light_cell(tmp_path, 0), 100.0, 1.0, ended="2026-01-01", gpu="old"))
    publish(tmp_path, finished(light_cell(tmp_path, 1), 9.0, 1.0, ended="2026-02-01", gpu="new"))
    made = plan.forecast([light_cell(tmp_path, 2)], tmp_path)
    assert made.total_s == pytest.approx(10.0) and made.off_s is None and made.devices == {"new"}


def test_a_probe_counts_like_a_record(tmp_path):
    cell = light_cell(tmp_path, steps=1000)
    small = plan.shortened(cell)
    assert small.method["recipe"]["steps"] == 12 and len(small.dataset["prompts"]) == 2
    assert small.results == tmp_path / ".probe" and not list(Store(tmp_path).records())
    publish(small.results, finished(small, 1.2, 0.5))
    made = plan.forecast([cell], tmp_path)
    assert evaluation.image_count(cell.dataset) == 12 * evaluation.image_count(small.dataset)
    assert made.total_s == pytest.approx(1000 * 0.1 + 12 * 0.5) and not list(Store(tmp_path).records())


def test_the_plan_in_words(tmp_path):
    done, failed, skipped, new = (light_cell(tmp_path, seed) for seed in range(4))
    publish(tmp_path, finished(done, 3000.0, 600.0))
    store = Store(tmp_path)
    for cell, status in [(failed, "failed"), (skipped, "skipped")]:
        store.work(cell.run_id)
        store.publish(Record(cell.run_id, status, f"why it {status}"))
    cells = [done, failed, skipped, new, light_cell(tmp_path, 9)]
    statuses = judge(cells)
    found = obstacles.Obstacles()
    found.missing["no such file"] += 1
    found.lacking = 1
    found.stopped.add(cells[-1].run_id)
    made = plan.forecast([new], tmp_path)
    text = plan.text(cells, statuses, found, made, Settings(price_per_gpu_hour=2.5), 1).splitlines()
    assert text[0] == "5 cells: 1 to run, 1 finished, 1 failed, 1 impossible, 1 stopped by what is missing"
    assert text[1:4] == [
        "  failed: 1 of them: why it failed",
        "  impossible: 1 cells: why it skipped",
        "  missing: 1 cells: no such file",
    ]
    assert text[4] == "1 device hours (no interval: a kind of cell has a single record), 1:00:00 on 1 workers"
    assert text[5].endswith("from 1 records on c") and text[6] == "cost 2.50 at 2.5 an hour"


def test_what_stops_a_combination_is_found_once_and_what_is_impossible_is_remembered(tmp_path, monkeypatch):
    requested = []

    def because(cell):
        requested.append(cell.method["name"])
        return "it needs pairs" if cell.method["name"] == "two" else ""

    monkeypatch.setattr(obstacles, "_impossible_because", because)
    monkeypatch.setattr(obstacles, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(obstacles, "_all_absent", lambda cell: [str(backbones.missing(cell.backbone))])
    cells = [light_cell(tmp_path, seed, name) for seed in range(3) for name in ("one", "two")]
    lost = light_cell(tmp_path, backbone={**cells[0].backbone, "path": "nobody/nothing"})
    for _ in range(2):
        found = obstacles.obstacles([*cells, lost])
        assert found.impossible == {"it needs pairs": 3} and len(found.missing) == 1 and len(found.stopped) == 4
        assert "nobody/nothing" in next(iter(found.missing))
    assert sorted(requested) == ["one", "two"]


def test_afterwards_a_sweep_says_how_good_its_forecast_was(tmp_path):
    cells = [light_cell(tmp_path, seed) for seed in range(2)]
    made = submitted(cells)
    assert plan.how_good(made) is None
    made.estimate = {"total_s": 3600.0, "off_s": 400.0, "each": {cell.run_id: 1800.0 for cell in cells}}
    publish(tmp_path, finished(cells[0], 1000.0, 1000.0))
    assert plan.how_good(made) == "forecast 0.5 device hours for 1 cells, they took 0.556"
    publish(tmp_path, finished(cells[1], 1000.0, 900.0))
    assert plan.how_good(made) == "forecast 1 device hours for 2 cells, they took 1.08, inside its interval"
    made.estimate["off_s"] = 100.0
    assert plan.how_good(made).endswith("outside its interval")


def test_probes_lie_where_no_table_looks():
    assert plan.PROBES.startswith(".") and Path(plan.PROBES).name == plan.PROBES
