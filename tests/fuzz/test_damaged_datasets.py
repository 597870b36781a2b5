"""A dataset.yaml that is damaged in any way breaks only the runs that ask for it, in one sentence."""

import random
import shutil

import pytest
from damage import damage
from test_damaged_store import cases, limit  # noqa: F401

from bench.data import dataset_yaml, identity, schema, sources
from bench.errors import BenchError

BROKEN = {
    "a list": b"[1, 2]",
    "a word": b"hello",
    "no UTF-8": b"noun: caf\xe9",
    "a date": b"noun: 2020-01-01",
    "binary": b"noun: !!binary aGVsbG8=",
    "a set": b"noun: !!set {a, b}",
    "a python object": b"noun: !!python/object/apply:os.system [ls]",
    "a number as key": b"1: 2",
    "a cycle": b"base: dataset.yaml",
    "a cycle of two": b"base: ../other/dataset.yaml",
    "no base": b"base: gone.yaml",
    "a base that is none": b"base: [3]",
    "a folder as base": b"base: ..",
    "a device as base": b"base: /dev/zero",
    "an alias of itself": b"a: &a [*a]",
    "many aliases": b"a0: &a0 x\n"
    + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b",".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 9)),
    "half a pair": b'noun: "\\uD800"',
    "depth": b"[" * 3000,
    "nul": b"noun: a\0b",
    "tab": b"\tnoun: x",
    "unknown key": b"nuon: x",
}
TYPES = {key: [3, "x", [1], {"a": 1}, True, 1.5, [None], [[1]]] for key in schema.KEYS if key != "name"}


@pytest.fixture
def folder(tmp_path, monkeypatch, limit):  # noqa: F811
    """A folder of datasets with a whole one."""
    shutil.copytree(schema.FOLDER / "blueprint", tmp_path / "datasets" / "blueprint")
    for base in ("mini.yaml", "scenes.yaml"):
        shutil.copy(schema.FOLDER / base, tmp_path / "datasets")
    monkeypatch.setattr(schema, "FOLDER", tmp_path / "datasets")
    for cached in (schema.names, dataset_yaml.read):
        cached.cache_clear()
    limit()
    yield tmp_path / "datasets"
    for cached in (schema.names, dataset_yaml.read):
        cached.cache_clear()


def used(name):
    """What a run does with a dataset before it draws or loads anything."""
    spec = schema.describe(name)
    sources.missing(spec)
    return identity.identity(spec)


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_yaml_is_one_sentence_and_the_others_are_whole(folder, how):
    (folder / "bad").mkdir()
    (folder / "bad" / "dataset.yaml").write_bytes(BROKEN[how])
    (folder / "other").mkdir()
    (folder / "other" / "dataset.yaml").write_text("base: ../bad/dataset.yaml")
    for name in ("bad", "other"):
        with pytest.raises(BenchError) as error:
            used(name)
        assert "\n" not in str(error.value) and len(str(error.value)) < 800
    assert used("blueprint")


@pytest.mark.parametrize("key", TYPES)
def test_a_value_of_another_type_is_read_or_one_sentence(folder, key):
    for n, value in enumerate(TYPES[key]):
        whole = schema.describe("blueprint") | {key: value}
        try:
            sources.missing(whole)
            identity.identity(whole)
        except BenchError as error:
            assert "\n" not in str(error), (key, value, n)


@pytest.mark.parametrize("block", cases(2, 40))
def test_a_damaged_yaml_breaks_only_itself(folder, block):
    for n in range(20):
        bad = folder / f"bad{n}"
        shutil.copytree(folder / "blueprint", bad)
        damage(bad / "dataset.yaml", random.Random(f"dataset {block} {n}"))
        schema.names.cache_clear()
        if bad.name in schema.names():
            try:
                used(bad.name)
            except BenchError:
                pass
    assert used("blueprint")


def test_hydra_composes_beside_a_broken_dataset(folder, tmp_path):
    from hydra import compose, initialize_config_dir

    from bench.compose import cell, register_datasets
    from bench.paths import CONF

    (folder / "broken_one").mkdir()
    (folder / "broken_one" / "dataset.yaml").write_text("noun: ${oc.env:HOME}\nx: [")
    register_datasets()
    words = ["tracker=none", f"results={tmp_path}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert cell(compose("config", [*words, "method=zero_shot", "dataset=blueprint"])).run_id
        with pytest.raises(
            BenchError, match=r"dataset=broken_one was requested: .*dataset.yaml cannot be read as YAML"
        ):
            cell(compose("config", [*words, "method=zero_shot", "dataset=broken_one"]))
    shutil.copy(folder / "blueprint" / "dataset.yaml", folder / "broken_one")  # mended: its settings are read again
    dataset_yaml.read.cache_clear()
    register_datasets()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert (
            cell(compose("config", [*words, "method=zero_shot", "dataset=broken_one"])).dataset["name"] == "broken_one"
        )
