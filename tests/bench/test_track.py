"""An offline run, read back with wandb's own reader, holds what was tracked; a broken tracker harms nobody."""

import json
import logging
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from bench.compose import cell as composed_cell
from bench.compose import register_datasets
from bench.paths import CONF
from bench.run import run as run_cell
from bench.steps.tracking import keep_adapters
from bench.track import Silent, Wandb


def read_back(run_file):
    """All records of a .wandb file as `wandb leet inspect --json` prints them."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run_file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in text.splitlines()]


def found(run, kind):
    return [record[kind] for record in run if record["type"] == kind]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """Two cells tracked side by side in one process, as packed cells are; returns the folder."""
    folder = tmp_path_factory.mktemp("results")
    adapter, picture = folder / "adapter.safetensors", folder / "grid.png"
    adapter.write_bytes(b"weights")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture)
    cells = [Wandb(mode="offline", folder=str(folder)) for _ in range(2)]
    for i, cell in enumerate(cells):
        cell.start(f"cell-{i}", {"method": "m", "trainer": {"lr": 0.5 + i}}, group="sweep", tags=["mini", "x" * 70])
    for step in range(3):
        for i, cell in enumerate(cells):
            cell.log(step, {"loss": 10.0 * i + step})
            cell.images("picture", np.full((3, 8, 8), step, np.uint8))
    for i, cell in enumerate(cells):
        cell.images("grid", picture)
        cell.table("scores", pd.DataFrame({"metric": ["a", "b"], "value": [1.5 + i, float("nan")]}))
        cell.artifact("adapter", adapter, "adapter")
        cell.finish("failed" if i else "done")
        assert not cell.broken
    return folder


@pytest.fixture(scope="module")
def runs(tracked):
    """Both runs' records, by the cell's name."""
    files = sorted(tracked.glob("wandb/offline-run-*/*.wandb"))
    records = [read_back(file) for file in files]
    return {found(run, "run")[0]["display_name"]: run for run in records}


def test_each_cell_is_one_run_with_its_config_group_and_tags(runs):
    assert set(runs) == {"cell-0", "cell-1"}
    for i in range(2):
        run = found(runs[f"cell-{i}"], "run")[0]
        config = {key: value for key, value in run["config"]["update"].items() if key != "_wandb"}
        assert config == {"method": "m", "trainer": {"lr": 0.5 + i}}
        assert run["run_group"] == "sweep" and run["tags"] == ["mini", "x" * 64]


def test_losses_keep_their_steps_though_pictures_came_in_between(runs):
    for i in range(2):
        items = [record["item"] for record in found(runs[f"cell-{i}"], "history")]
        assert [(item["step"], item["loss"]) for item in items if "loss" in item] == [(k, 10 * i + k) for k in range(3)]


def test_pictures_and_table_lie_beside_the_run(runs, tracked):
    media = [path.name for path in tracked.glob("wandb/offline-run-*/files/media/images/*.png")]
    assert sum(name.startswith("picture_") for name in media) == 6 and sum(n.startswith("grid_") for n in media) == 2
    tables = [json.loads(p.read_text()) for p in tracked.glob("wandb/offline-run-*/files/media/table/*.json")]
    assert sorted(table["data"] for table in tables) == [[["a", 1.5 + i], ["b", None]] for i in range(2)]


def test_the_adapter_is_an_artifact_and_the_status_is_kept(runs):
    for name, status, code in (("cell-0", "done", 0), ("cell-1", "failed", 1)):
        contents = [entry["path"] for a in found(runs[name], "artifact") for entry in a["manifest"]["contents"]]
        assert "adapter.safetensors" in contents
        assert any(summary.get("update", {}).get("status") == status for summary in found(runs[name], "summary"))
        assert found(runs[name], "exit")[0]["exit_code"] == code


def test_a_failing_tracker_says_so_once_and_goes_silent(caplog, tmp_path):
    cell = Wandb(mode="offline", folder=str(tmp_path))
    cell.run = type("Broken", (), {"log": lambda self, values: 1 / 0, "finish": lambda self, exit_code: 1 / 0})()
    with caplog.at_level(logging.WARNING):
        cell.log(0, {"loss": 1.0})
        cell.images("grid", tmp_path / "missing.png")
        cell.artifact("adapter", tmp_path / "missing", "adapter")
        cell.finish("done")
    assert [record.getMessage().count("division by zero") for record in caplog.records] == [1]


def test_a_folder_that_cannot_be_made_does_not_stop_the_cell(caplog, tmp_path):
    (tmp_path / "file").write_text("")
    cell = Wandb(mode="offline", folder=str(tmp_path / "file" / "below"))
    cell.start("cell", {})
    cell.log(0, {"loss": 1.0})
    assert cell.broken and len(caplog.records) == 1


def test_no_tracker_is_a_tracker():
    cell = Silent()
    cell.start("cell", {})
    cell.log(0, {"loss": 1.0})
    cell.finish("done")


# --- a whole cell -------------------------------------------------------------------------------------------------


def cell_runs(results):
    """The records of each offline run below a folder, oldest first."""
    files = sorted(results.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    return [read_back(file) for file in files]


LPIPS = (
    "_target_:metrics.diversity.Diversity,network:{_target_:metrics.networks.LpipsNet,name:lpips-alex-64,"
    "weights:bench/mini/weights/lpips/alexnet.safetensors,size:64}"
)


def a_cell(results, *overrides):
    few = ["dataset.prompts=[a red house,a blue dog]", "dataset.seeds=[0,1]", "sampler.steps=2", "strength=[1,3]"]
    short = ["method.recipe.steps=3", "method.content_steps=1", f"results={results}", "tracker=wandb_offline"]
    register_datasets()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return composed_cell(compose("config", ["method=pair", "dataset=halftone", *few, *short, *overrides]))


@pytest.fixture(scope="module")
def pair_run(tmp_path_factory):
    """A short cell of Pair, then the same with one metric more; the environment names one run id for all."""
    results = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_RUN_ID", "one-for-all")
        patch.setenv("WANDB_MODE", "")
        first = run_cell(a_cell(results, "metrics=mini_truth"))
        again = run_cell(a_cell(results, "metrics=mini_truth", f"+metrics.diversity={{{LPIPS}}}"))
    return results, first, again, cell_runs(results)


def last(run, kind, key):
    """The value under which a key was last set in config or summary updates."""
    values = [record["update"][key] for record in found(run, kind) if key in record.get("update", {})]
    return values[-1]


def test_each_score_and_cost_is_a_scalar_of_the_summary(pair_run):
    _, first, _, (run, _) = pair_run
    for score in first.scores:
        prefix = "" if score["strength"] == 3 else "strength=1/"
        assert last(run, "summary", prefix + score["metric"]) == pytest.approx(score["value"], rel=1e-12)
    assert {score["strength"] for score in first.scores} == {1, 3} and last(run, "summary", "strength") == 3
    assert last(run, "summary", "cost/train_s") == first.cost["train_s"]


def test_end_commit_strengths_and_prompts_are_in_the_config(pair_run):
    _, first, _, (run, _) = pair_run
    found_config = {key: last(run, "config", key) for key in ("status", "reason", "commit", "strengths", "prompts")}
    assert found_config == {
        "status": "done",
        "reason": None,
        "commit": first.provenance["commit"],
        "strengths": [1, 3],
        "prompts": ["a red house", "a blue dog"],
    }


def test_each_loss_of_pair_is_a_series_as_in_its_log(pair_run):
    results, first, _, (run, _) = pair_run
    lines = (results / first.run_id / "log.csv").read_text().splitlines()[1:]
    losses = [[float(loss) for loss in line.split(",")[2].split()] for line in lines]
    items = [record["item"] for record in found(run, "history") if "loss" in record["item"]]
    assert [len(parts) for parts in losses] == [1, 2, 2]
    for item, parts in zip(items, losses, strict=True):
        series = [item[f"loss/{i}"] for i in (1, 2) if f"loss/{i}" in item]
        assert series == pytest.approx(parts if len(parts) > 1 else [], rel=1e-5)
        assert item["loss"] == pytest.approx(sum(parts), rel=1e-5)


def test_single_images_have_captions(pair_run):
    _, _, _, (run, _) = pair_run
    for strength in (1, 3):
        captions = [f"{prompt} (seed 0, strength {strength})" for prompt in ("a red house", "a blue dog")]
        assert last(run, "summary", f"images/strength={strength}.captions") == captions


def kept_adapters(run):
    contents = [entry["path"] for a in found(run, "artifact") for entry in a["manifest"]["contents"]]
    return sorted(path for path in contents if path.endswith(".safetensors"))


def test_only_the_adapter_that_draws_is_kept_unless_all_are_requested(pair_run, tmp_path):
    results, first, _, (run, _) = pair_run
    assert kept_adapters(run) == ["style.safetensors"]
    given = []
    tracker = SimpleNamespace(all_adapters=True, artifact=lambda name, path, type: given.append(path.name))
    keep_adapters(SimpleNamespace(folder=results / first.run_id, tracker=tracker, cell=first))
    assert given == ["content.safetensors", "style.safetensors"]


def test_a_metric_added_later_reaches_the_same_run(pair_run):
    _, first, again, (run, later) = pair_run
    ids = [found(one, "run")[0]["run_id"] for one in (run, later)]
    assert ids[0] == ids[1] == first.provenance["tracker_run"] == again.provenance["tracker_run"]
    added = next(s["value"] for s in again.scores if (s["metric"], s["strength"]) == ("lpips_diversity", 3))
    assert last(later, "summary", "lpips_diversity") == pytest.approx(added, rel=1e-12)
    assert not found(later, "history"), "steps after the end of the training"


def test_cells_have_ids_of_their_own_whatever_the_environment_says(tmp_path, monkeypatch):
    for name, value in {"WANDB_RUN_ID": "one-for-all", "WANDB_RESUME": "must", "WANDB_MODE": "offline"}.items():
        monkeypatch.setenv(name, value)
    for name in ("a", "b"):
        cell = Wandb(folder=str(tmp_path))
        cell.start(name, {})
        cell.finish("done")
    ids = [found(run, "run")[0]["run_id"] for run in cell_runs(tmp_path)]
    assert len(set(ids)) == 2 and "one-for-all" not in ids
