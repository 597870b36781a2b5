"""README and docs: short, in step with the code, and every command in them is one that can be typed."""

import ast
import re

import pytest
import yaml
from commands import FENCE, ROOT, fenced, parse, shown

from bench import paths
from bench.contracts import BenchError
from bench.data import schema

PAGES = [ROOT / name for name in ("README.md", "AGENTS.md", "CONTRIBUTING.md", "datasets/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
WORKED = {"methods/lora.py", "conf/method/lora.yaml", "metrics/nearest_style.py"}  # examples of docs/extending.md
COMMANDS = sorted({command for page in PAGES for command in shown(page.read_text())})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_be_typed(command):
    parse(command)


@pytest.mark.parametrize(
    "command",
    [
        "python -m bench method=pear dataset=halftone",
        "python -m bench method=pair,dreambooth dataset=halftone",
        "python -m bench method=pair method.rnak=4",
        "python -m bench method=pair strength=strong",
        "python -m bench -m method=pair,pear dataset=halftone",
        "python -m bench lsit methods",
        "python -m bench.table --were method=pair",
        "python -m bench.grid --where dataset=halftone",
        "t2i-bench list mehtods",
        "python tests/perf/no_such_file.py",
        "make tset",
    ],
)
def test_a_wrong_command_is_noticed(command):
    from hydra.errors import HydraException

    with pytest.raises((SystemExit, HydraException, BenchError, AssertionError)):
        parse(command)


def test_commands_are_found_in_fences_and_in_sentences():
    text = "Type `python -m bench.status`.\n\n```\npython -m bench method=pair \\\n    seed=1   # one\nls\n```\n"
    assert shown(text) == ["python -m bench method=pair      seed=1   # one", "python -m bench.status"]
    assert len(COMMANDS) > 60


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    targets = re.findall(r"\]\(([^)#]+)\)|^\[\w+\]: (\S+)", text, re.M)
    links = [link for pair in targets for link in pair if link and not link.startswith("http")]
    broken = [link for link in links if not (page.parent / link).exists()]
    named = re.findall(r"`((?:bench|methods|metrics|tests|conf|docs|datasets)/[\w./-]+\.(?:py|md|yaml))`", text)
    assert not broken + [name for name in set(named) - WORKED if not (ROOT / name).exists()]


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 120
    assert len((ROOT / "AGENTS.md").read_text().splitlines()) <= 60


def rows(page):
    """What stands in code in the sentences and tables of a page of docs/."""
    return set(re.findall(r"`([^`\n]+)`", FENCE.sub("", (ROOT / "docs" / page).read_text())))


def test_every_method_is_documented_and_no_other():
    table = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "methods.md").read_text(), re.M)
    assert sorted(table) == sorted(path.stem for path in (paths.CONF / "method").glob("*.yaml"))


def test_the_default_strengths_of_the_page_are_those_of_the_settings():
    from bench.compose import from_overrides

    found = re.findall(r"^\| `(\w+)` \|.*\| [\w ]+\(([\d.]+)\) \|$", (ROOT / "docs" / "methods.md").read_text(), re.M)
    assert len(found) > 15
    assert {name: from_overrides(f"method={name}").strengths for name, _ in found} == {
        name: (float(strength),) for name, strength in found
    }


def test_every_dataset_and_every_key_is_documented():
    named = rows("datasets.md")
    assert not set(schema.names()) - named
    assert not set(schema.KEYS) - named


def test_style_words_of_the_page_are_those_of_the_datasets():
    pairs = re.findall(r"`(\w+)` \| (in [\w ]+?) \|", (ROOT / "docs" / "datasets.md").read_text())
    assert len(pairs) == 12
    assert all(schema.describe(name)["style_words"] == words for name, words in pairs)


def test_every_column_of_the_table_is_in_the_page_of_the_api():
    from bench.analysis.frames import CELL, SCORE, STATE

    assert not {*CELL, *SCORE, *STATE, "fingerprint", "default_strength"} - rows("api.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_in_the_pages_imports_what_exists(page):
    for block in fenced(page.read_text(), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(ast.unparse(node), {})


def test_yaml_in_the_pages_is_yaml():
    assert all(yaml.safe_load(block) for page in PAGES for block in fenced(page.read_text(), "yaml"))
