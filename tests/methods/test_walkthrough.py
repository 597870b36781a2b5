"""The method of docs/extending.md is a real one: its blocks pass the tests that all methods inherit."""

import re

import pytest
import test_architecture
from worked_method import BLOCKS, INHERITED, call, install


@pytest.fixture
def walkthrough(tmp_path, monkeypatch):
    return install(BLOCKS["python"], BLOCKS["yaml"], tmp_path, monkeypatch)


@pytest.mark.parametrize("test", INHERITED, ids=lambda test: test.__name__)
def test_the_method_of_the_walkthrough_keeps_the_contract(walkthrough, test, tmp_path, banks):
    call(test, walkthrough.stem, tmp_path, banks)


def test_its_yaml_has_the_header_and_its_code_only_the_allowed_imports(walkthrough):
    test_architecture.test_every_method_says_its_paper_and_its_command(walkthrough)
    imported = re.findall(r"^(?:from|import) (\w+)", BLOCKS["python"], re.M)
    assert set(imported) == {"__future__", "dataclasses", "bench"}
