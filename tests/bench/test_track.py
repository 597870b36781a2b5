"""An offline run, read back with wandb's own reader, holds what was tracked; a broken tracker harms nobody."""

import json
import logging
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

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
