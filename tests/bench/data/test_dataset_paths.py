"""Paths in records: files of the folders of datasets are named without the machine, all others as they were typed."""

import json
import shutil

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from bench.compose import cell, register_datasets
from bench.data import dataset_yaml, identity, schema, sources
from bench.paths import CONF
from bench.report import command
from bench.steps.work import Work
from bench.store.record import Record, dumps, loads

YAMLS = {
    "a pair": "pair: [a.png, b.png]",
    "several pairs": "pair: [[a.png, b.png], [b.png, c.png]]",
    "a list": "references: [a.png, b.png]",
    "a folder": "references: .",
    "a folder beside it": "references: ../other",
    "a style": "root: style",
    "roles": "references: [a.png]\nreference_set: [b.png, c.png]\nauxiliary: [c.png]",
    "a file of prompts": "references: [a.png]\nprompts: {file: prompts.csv, column: prompt}",
    "a list of prompts": "references: [a.png]\nprompts: prompts.csv",
}


def forget():
    for cached in (schema.names, dataset_yaml.read, command.defaults):
        cached.cache_clear()


@pytest.fixture(params=YAMLS)
def folder(tmp_path, monkeypatch, request):
    """A folder of datasets with one that has files of its own."""
    top = tmp_path / "here" / "datasets"
    shutil.copytree(schema.FOLDER / "halftone", top / "halftone")  # the default, which is composed for comparison
    for base in schema.FOLDER.glob("*.yaml"):
        shutil.copy(base, top)
    for place in ("mine", "other", "mine/style/references", "mine/style/reference_set"):
        (top / place).mkdir(parents=True, exist_ok=True)
        for shade, name in enumerate(("a.png", "b.png", "c.png")):
            picture = np.full((8, 8, 3), 40 * shade + len(place), np.uint8)
            Image.fromarray(picture).save(top / place / name)
    (top / "mine" / "prompts.csv").write_text("prompt\na cat\n")
    named = YAMLS[request.param] if "prompts" in YAMLS[request.param] else f"{YAMLS[request.param]}\nprompts: [a cat]"
    (top / "mine" / "dataset.yaml").write_text(f"noun: cat\ncontrols: []\n{named}\n")
    monkeypatch.setattr(schema, "FOLDER", top)
    forget()
    yield top
    forget()


def test_settings_of_a_record_hold_on_another_machine(folder, tmp_path, monkeypatch):
    whole = schema.describe("mine")
    kept = json.loads(json.dumps(schema.portable(whole)))
    assert str(tmp_path) not in json.dumps(kept)
    before, images = identity.identity(whole), [path.name for path in sources.training_images(whole)]
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.setattr(schema, "FOLDER", tmp_path / "there" / "datasets")
    assert sources.missing(kept) is None and identity.identity(kept) == before
    found = sources.training_images(schema.completed(kept))
    assert [path.name for path in found] == images and all(path.is_file() for path in found)


def test_a_record_names_no_folder_of_this_machine_and_its_command_only_the_dataset(folder, tmp_path):
    register_datasets()
    words = ["method=zero_shot", "dataset=mine", "tracker=none", f"results={tmp_path / 'store'}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        made = cell(compose("config", words))
    config = Work(made, tmp_path).config()
    assert str(tmp_path) not in json.dumps(config)
    for requested in (config["requested"], {**config["requested"], "dataset": made.dataset}):  # of an older version
        record = loads(dumps(Record("x", "done", None, {**config, "requested": requested}, {}, {}, [], [])))
        assert command.command(record) == "python -m bench method=zero_shot dataset=mine backbone=mini seed=0"


def test_paths_elsewhere_stay_as_they_were_typed(tmp_path):
    for typed in ("photos", "./photos", "~/photos", str(tmp_path / "photos"), "datasets/none/a.png", "all"):
        spec = {"references": typed, "pair": [[typed, typed]], "noun": typed}
        assert schema.portable(spec) == spec


def test_a_file_of_the_working_directory_comes_first(folder, tmp_path, monkeypatch):
    """As it does for a path of the command line; so a path that would mean another file is kept whole."""
    (tmp_path / "datasets" / "mine").mkdir(parents=True)
    shutil.copy(folder / "other" / "c.png", tmp_path / "datasets" / "mine" / "a.png")
    monkeypatch.chdir(tmp_path)
    spec = {"pair": [str(folder / "mine" / "a.png"), str(folder / "mine" / "b.png")]}
    assert schema.portable(spec) == {"pair": [spec["pair"][0], "datasets/mine/b.png"]}
