"""A finished sweep ends in one W&B run of its group with tables and figures, read back with wandb's own reader."""

import json
from dataclasses import replace

import pytest
from light import finish, light_cell
from test_track import found, read_back

from bench.report import publish
from bench.steps.extend import held
from bench.store.record import Store
from bench.sweeps import launch
from bench.sweeps.settings import Settings
from bench.sweeps.sweep import judge, submit
from bench.track import Silent

SETTINGS = Settings(runner="test_summary.run_known", poll_s=0.01)
WANDB = {"_target_": "bench.track.Wandb", "mode": "offline"}


def run_known(cells, size=1, finished=None, stop=None):
    """Cells whose numbers are known: leak is 0.1 higher for `two`, and 0.5 x closeness."""
    for cell in cells:
        store = Store(cell.results)
        with held(store, cell.run_id) as folder:
            record = finish(cell, folder, "x")
            record.scores = [score for strength in cell.strengths for score in scores(cell, strength)]
            store.publish(record)
        finished(record)


def scores(cell, strength):
    closed = 0.2 * strength + 0.01 * cell.seed
    leak = 0.5 * closed + 0.1 * (cell.method["name"] == "two") + 0.001 * cell.seed * strength
    for name, value, up in (("gap_closed_lpips", closed, True), ("lpips_leak", leak, False)):
        yield {"strength": strength, "group": name, "metric": name, "value": value, "higher_is_better": up,
               "network": "net", "fingerprint": {}}  # fmt: skip


def cells(results, tracker=WANDB, names=("one", "two"), seeds=(0, 1)):
    more = {"strengths": (1.0, 2.0, 3.0), "tracker": tracker, "group": "a group"}
    return [light_cell(results, seed=seed, name=name, **more) for name in names for seed in seeds]


def runs(results):
    return sorted(results.glob("wandb/offline-run-*/*.wandb"))


def lines(table):
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


@pytest.mark.slow
def test_a_finished_sweep_is_one_run_with_its_tables_and_figures(tmp_path):
    states = launch.launch(cells(tmp_path), SETTINGS, "packed", {})
    assert {state.status for state in states.values()} == {"done"} and len(states) == 4
    (file,) = runs(tmp_path)
    records = read_back(file)
    (about,) = found(records, "run")[:1]
    assert (about["run_group"], about["job_type"], about["tags"]) == ("a group", "summary", ["summary"])
    assert about["display_name"].startswith("summary-a-group-")
    items = [key for record in found(records, "history") for key in record["item"]]
    shown = {key.removesuffix("._type") for key in items if key.endswith("._type")}
    closed = "gap_closed_lpips [net]"
    titles = [closed, "lpips_leak [net]", f"lpips_leak [net] at matched {closed}"]
    tables = {"summary", "long", *(f"compare {title}" for title in titles)}
    assert tables | {"sweep-gap_closed_lpips", "front-style-against-leakage"} <= shown
    kept = [json.loads(path.read_text()) for path in file.parent.glob("files/media/table/**/*.json")]
    gaps = [line["difference"] for table in kept for line in lines(table) if line.get("at") is not None]
    assert len(kept) == 5 and sorted(gaps) == pytest.approx([-0.1, 0.1])
    assert found(records, "exit")[0]["exit_code"] == 0


def test_it_is_made_when_something_new_was_finished_and_only_then(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(publish, "of_sweep", lambda *requested: made.append(requested))
    launch.launch(cells(tmp_path, seeds=(0,)), SETTINGS, "packed", {})
    launch.launch(cells(tmp_path, seeds=(0,)), SETTINGS, "packed", {})
    assert len(made) == 1
    launch.launch(cells(tmp_path, seeds=(0, 1)), SETTINGS, "packed", {})
    assert [len(runs) for _, _, runs, _, _ in made] == [2, 4]
    launch.launch(cells(tmp_path, {"_target_": "bench.track.Silent"}, seeds=(5,)), SETTINGS, "packed", {})
    assert len(made) == 2


class Broken(Silent):
    silent = False

    def start(self, *args, **kwargs):
        raise OSError("no such server")


def test_a_tracker_that_fails_does_not_fail_the_sweep(tmp_path, capsys):
    states = launch.launch(cells(tmp_path, {"_target_": "test_summary.Broken"}, seeds=(0,)), SETTINGS, "packed", {})
    assert {state.status for state in states.values()} == {"done"}
    assert "The tracker got no summary (OSError: no such server)." in capsys.readouterr().out


def test_cells_of_a_sweep_without_a_group_share_the_name_of_the_sweep(tmp_path):
    for group, expected in (("a group", "a group"), (None, None)):
        made = [replace(cell, group=group) for cell in cells(tmp_path, names=("one",))]
        sweep = submit(made, SETTINGS, judge(made))
        assert {sweep.cell(entry).group for entry in sweep.entries} == {expected or sweep.folder.name}
        assert [sweep.cell(entry).run_id for entry in sweep.entries] == [cell.run_id for cell in made]
