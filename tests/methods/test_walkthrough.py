"""The method that CONTRIBUTING.md walks through is a real one: its blocks pass the tests that all methods inherit."""

import re
import sys
import types
from pathlib import Path

import pytest
import test_architecture
import test_contract
import yaml

BLOCKS = dict(
    re.findall(r"```(python|yaml)\n(.*?)```", (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(), re.S)
)


@pytest.fixture
def walkthrough(tmp_path, monkeypatch):
    """conf/method/<name>.yaml in a folder of its own, and its module where an import finds it."""
    spec = yaml.safe_load(BLOCKS["yaml"])
    name = spec["_target_"].rpartition(".")[0]
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)  # a dataclass looks itself up there
    exec(compile(BLOCKS["python"], name, "exec"), module.__dict__)
    (tmp_path / f"{spec['name']}.yaml").write_text(BLOCKS["yaml"])
    monkeypatch.setattr(test_contract, "CONF", tmp_path)
    return tmp_path / f"{spec['name']}.yaml"


def test_the_method_of_the_walkthrough_keeps_the_contract(walkthrough, tmp_path):
    test_contract.test_it_names_its_knob_draws_images_and_trains_only_what_it_declares(walkthrough.stem, tmp_path)


def test_its_yaml_has_the_header_and_its_code_only_the_allowed_imports(walkthrough):
    test_architecture.test_every_method_says_its_paper_and_its_command(walkthrough)
    imported = re.findall(r"^(?:from|import) (\w+)", BLOCKS["python"], re.M)
    assert set(imported) == {"__future__", "dataclasses", "torch", "bench"}
