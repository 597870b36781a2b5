"""Every package that pyproject.toml requires does its work: it is imported by the project, or diffusers needs it."""

import ast
import re
import tomllib
from importlib.metadata import packages_distributions

from bench.paths import ROOT

BY_OTHERS = {"accelerate"}  # diffusers' from_pretrained(low_cpu_mem_usage=True), its default where accelerate is there


def imported():
    """Top-level modules that any file of the project imports."""
    for folder in ("bench", "methods", "metrics"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    yield from (alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    yield node.module.partition(".")[0]


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_imported_or_named_here():
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {plain(re.match(r"[\w.-]+", line)[0]) for line in required}
    of_module = packages_distributions()
    used = {plain(package) for module in set(imported()) for package in of_module.get(module, ())}
    assert names - used == BY_OTHERS
