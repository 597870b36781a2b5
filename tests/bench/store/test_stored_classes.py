"""Records are data: no reader of a stored file imports or runs what the file names, unless it is a registered class."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from finished_cells import finished
from light import light_cell, submitted

from bench.contracts import BenchError
from bench.paths import CONF
from bench.steps.reopen import reopen
from bench.store import stored_classes
from bench.sweeps.sweep import Sweep
from bench.sweeps.worker import Worker

ROOT = Path(__file__).parents[3]
FOREIGN = [
    "os.system",
    "subprocess.Popen",
    "builtins.eval",
    "trap.Trap",  # a module on the path that leaves a mark when it is imported
    "trap",
    "bench.files.atomic_write",  # ours, but a function that writes
    "bench.files.os.system",
    "bench.steps.work.Work",  # ours, but no registered class
    "methods.trap.Trap",  # in a folder of plug-ins, but not there
    "methods.pair.subprocess",
    "methods..pair.PairCustomization",
    "methods/../trap.Trap",
    "",
    ".",
    "\u202emethods.pair.PairCustomization",
    ["methods.pair.PairCustomization"],
    {"_target_": "trap.Trap"},
    7,
    None,
]
PLACES = [
    ("method",),
    ("method", "recipe"),
    ("backbone",),
    ("dataset",),
    ("trainer", "where", "x"),
    ("sampler",),
]


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that leaves a file behind when it is imported; the path of that file."""
    mark = tmp_path / "ran"
    (tmp_path / "trap.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Trap: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield mark
    sys.modules.pop("trap", None)


def planted(settings, place, name):
    """The settings with a class named at some place in them."""
    made = json.loads(json.dumps(settings))
    at = made
    for key in place:
        at[key] = at[key] if isinstance(at.get(key), dict) else {}
        at = at[key]
    at["_target_"] = name
    return made


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """The folder of a finished cell, and its record as a mapping."""
    folder = finished(tmp_path_factory.mktemp("store"), "method=pair")
    saved = json.loads((folder / "record.json").read_text())
    del saved["checksum"]  # as in a record of an older version, or one that was written on purpose
    return folder, saved


def with_asked(record, asked):
    folder, saved = record
    saved = {**saved, "config": {**saved["config"], "requested": asked}}
    (folder / "record.json").write_text(json.dumps(saved))
    return folder


@pytest.mark.parametrize("place", PLACES, ids=".".join)
@pytest.mark.parametrize("name", FOREIGN, ids=repr)
def test_a_finished_cell_runs_nothing_that_its_record_names(record, trap, place, name):
    folder = with_asked(record, planted(record[1]["config"]["requested"], place, name))
    with pytest.raises(BenchError, match="nothing was run"):
        reopen(folder)
    assert not trap.exists() and "trap" not in sys.modules


@pytest.mark.parametrize("part", ["method", "backbone"])
@pytest.mark.parametrize("name", ["bench.contracts.Recipe", "bench.track.Wandb", "metrics.kid.Kid"])
def test_a_registered_class_of_another_kind_is_refused(record, part, name):
    folder = with_asked(record, planted(record[1]["config"]["requested"], (part,), name))
    with pytest.raises(BenchError, match=f"as its {part}, which is none"):
        reopen(folder)


@pytest.mark.parametrize("asked", [[], "x", 3, {"method": {}}, {"run": {}}, None])
def test_settings_of_another_shape_are_one_sentence(record, asked):
    with pytest.raises(BenchError, match="run (the cell|it) again"):
        reopen(with_asked(record, asked))
    for part in record[1]["config"]["requested"]:
        with pytest.raises(BenchError, match=f"{part}.* 'x'"):
            reopen(with_asked(record, {**record[1]["config"]["requested"], part: "x"}))


def test_the_record_itself_opens_again(record):
    assert reopen(with_asked(record, record[1]["config"]["requested"])).cell.method["name"] == "pair"


# --- sweeps -----------------------------------------------------------------------------------------------------------


def sweep_with(results, change):
    """The folder of a sweep whose file was changed after it was written."""
    file = submitted([light_cell(results)]).folder / "sweep.json"
    known = json.loads(file.read_text())
    change(known)
    file.write_text(json.dumps(known))
    return file.parent


@pytest.mark.parametrize("part", ["method", "backbone", "tracker", "metrics", "dataset", "fairness"])
@pytest.mark.parametrize("name", ["trap.Trap", "os.system", "bench.files.atomic_write"])
def test_a_sweep_runs_nothing_that_its_file_names(tmp_path, trap, part, name):
    folder = sweep_with(tmp_path, lambda known: known["bases"][0][part].update(_target_=name))
    with pytest.raises(BenchError, match="nothing was run"):
        Worker(Sweep(folder)).work()
    assert not trap.exists()


@pytest.mark.parametrize("name", ["trap.Trap", "os.system", "bench.files.atomic_write", 3, None])
def test_a_sweep_is_run_by_no_other_function(tmp_path, trap, name):
    folder = sweep_with(tmp_path, lambda known: known["settings"].update(runner=name))
    with pytest.raises(BenchError, match="nothing was run"):
        Worker(Sweep(folder))
    assert not trap.exists()


@pytest.mark.parametrize("allowed, rc", [("", 1), ("light.run_light", 0), ("light", 0), ("ligh", 1)])
def test_a_process_of_its_own_runs_what_it_was_started_with(tmp_path, allowed, rc):
    folder = submitted([light_cell(tmp_path)]).folder
    env = os.environ | {"BENCH_TRUST": allowed, "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-m", "bench.sweeps.worker", str(folder)]
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert ended.returncode == rc, ended.stderr
    assert rc == 0 or ended.stderr.startswith("bench.worker: ") and "BENCH_TRUST=light.run_light" in ended.stderr


# --- what is registered -----------------------------------------------------------------------------------------------


def test_all_classes_of_the_configuration_are_registered():
    import yaml

    def targets(value):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value if type(value) is list else ()):
            yield from [item] if key == "_target_" else targets(item)

    files = [file for file in CONF.rglob("*.yaml") if "hydra" not in file.parts]
    named = {name for file in files for name in targets(yaml.safe_load(file.read_text()))}
    assert named and named <= stored_classes.registered()


def test_a_class_of_a_plug_in_module_needs_no_configuration():
    stored_classes.check({"_target_": "metrics.fid.Frechet"}, Path("record.json"))
    for name in ("metrics.fid.np", "metrics.networks.torch", "metrics.Kid"):
        with pytest.raises(BenchError):
            stored_classes.check({"_target_": name}, Path("record.json"))
