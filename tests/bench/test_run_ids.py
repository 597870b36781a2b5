"""Run ids come from logical names; cells that older versions stored are found under their old ids."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from bench.analysis import frames
from bench.cell import Cell, identities, with_texts
from bench.compose import cell, register_datasets
from bench.paths import CONF
from bench.settings import digest
from bench.store.record import Store, read_record

OLD = Path(__file__).parents[1] / "assets" / "old_records"  # of a version with other modules, columns and keys
RECORDS = sorted(path.name for path in OLD.iterdir())


def renamed(value, names):
    return with_texts(value, lambda key, text: names.get(text, text))


def today(*overrides, results):
    register_datasets()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return cell(compose("config", ["tracker=none", f"results={results}", *overrides]))


def stored_cell(run_id, results):
    config = read_record(OLD / run_id / "record.json").config
    return Cell(**config["requested"], seed=config["seed"], metrics={}, tracker={}, strengths=(1.0,), results=results)


def test_moving_a_class_does_not_change_the_id(tmp_path):
    """Another import path for every class of the settings: another text, the same id."""
    made = today("method=ip_adapter", results=tmp_path)
    names = {"methods.ip_adapter.IPAdapter": "elsewhere.IPAdapter", "bench.contracts.Recipe": "elsewhere.Recipe",
             "bench.adapters.image_encoder.ImageEncoder": "x.y.ImageEncoder",
             "bench.backbones.stable_diffusion.StableDiffusion": "z.StableDiffusion"}  # fmt: skip
    moved = renamed(made.identity, names)
    assert digest(moved) != digest(made.identity)
    assert digest(next(identities(moved))) == digest(next(identities(made.identity)))


def test_another_class_of_another_name_is_another_cell(tmp_path):
    made = today("method=ip_adapter", results=tmp_path)
    other = renamed(made.identity, {"methods.ip_adapter.IPAdapter": "methods.ip_adapter.Other"})
    assert digest(next(identities(other))) != digest(next(identities(made.identity)))


def test_a_copied_file_gives_the_same_id_and_an_edited_one_another(tmp_path):
    """A file counts by its content, not by the folder that it lies in."""
    source = CONF.parent / "bench" / "mini" / "weights" / "encoder" / "ip_adapter.safetensors"
    copy = shutil.copy(source, tmp_path / "other.safetensors")
    ids = [today("method=ip_adapter", f"method.file={file}", results=tmp_path).run_id for file in (source, copy)]
    assert ids[0] == ids[1]
    Path(copy).write_bytes(source.read_bytes()[:-4] + b"0000")
    assert today("method=ip_adapter", f"method.file={copy}", results=tmp_path).run_id != ids[0]


@pytest.mark.parametrize("run_id", RECORDS)
def test_a_cell_stored_by_an_older_version_keeps_its_id(run_id, tmp_path):
    """Its settings name classes by their old modules; today's command line by today's."""
    fresh = stored_cell(run_id, tmp_path)
    assert fresh.run_id != run_id
    shutil.copytree(OLD / run_id, tmp_path / run_id)
    assert stored_cell(run_id, tmp_path).run_id == run_id
    modern = replace(fresh, method=renamed(dict(fresh.method), {
        "bench.image_encoder.ImageEncoder": "bench.adapters.image_encoder.ImageEncoder"}))  # fmt: skip
    assert modern.run_id == run_id
    assert modern.with_seed(5).run_id != run_id


def test_a_record_under_todays_id_wins_over_an_older_one(tmp_path):
    run_id = RECORDS[0]
    new = stored_cell(run_id, tmp_path).run_id
    for name in (run_id, new):
        shutil.copytree(OLD / run_id, tmp_path / name)
    assert stored_cell(run_id, tmp_path).run_id == new


def test_old_records_are_read_under_todays_names(tmp_path):
    for run_id in RECORDS:
        shutil.copytree(OLD / run_id, tmp_path / run_id)
    records = list(Store(tmp_path).records())
    assert [record.run_id for record in records] == RECORDS
    metrics = {score["metric"] for record in records for score in record.scores}
    assert "gap_closed_lpips" in metrics and not [name for name in metrics if name.startswith("oracle_closed")]
    table = frames.load(tmp_path)
    assert set(table.run_id) == set(RECORDS) and table.default_strength.all()
