"""Every test that docs/robustness.md names exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "robustness.md").read_text())


def functions(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_test_that_the_page_names_exists():
    missing = [f"{file}::{name}" for file, name in NAMED if name not in functions(ROOT / file)]
    assert len(NAMED) > 20 and missing == []


def test_every_situation_of_the_list_has_a_test():
    rows = re.findall(r"^\| ([\d, ]+) \|", (ROOT / "docs" / "robustness.md").read_text(), re.M)
    assert {int(number) for row in rows for number in row.split(",")} == set(range(1, 32))
