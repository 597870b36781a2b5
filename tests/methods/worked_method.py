"""A method written down as text and added as docs/extending.md describes, for the tests that all methods inherit."""

import inspect
import re
import sys
import types
from pathlib import Path

import test_contract
import yaml

GUIDE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
_SECTION = GUIDE[GUIDE.index("## Add a method") : GUIDE.index("## Add a dataset")]
BLOCKS = dict(re.findall(r"```(python|yaml)\n(.*?)```", _SECTION, re.S))
INHERITED = [test for name, test in vars(test_contract).items() if name.startswith("test_")]


def install(code, settings, folder, monkeypatch):
    """Its yaml in a folder of its own, and its module where an import finds it. Returns the path of the yaml."""
    spec = yaml.safe_load(settings)
    name = spec["_target_"].rpartition(".")[0]
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)  # a dataclass looks itself up there
    exec(compile(code, name, "exec"), module.__dict__)
    path = folder / f"{spec['name']}.yaml"
    path.write_text(settings)
    monkeypatch.setattr(test_contract, "CONF", folder)
    return path


def call(test, name, folder, banks):
    """An inherited test on one method."""
    given = {"name": name, "tmp_path": folder, "banks": banks}
    test(**{key: given[key] for key in inspect.signature(test).parameters})
