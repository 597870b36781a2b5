"""CITATION.cff, Dockerfile and Apptainer definition: they parse, and keep what they promise.

Linters run where they are installed; nothing is built here.
"""

import re
import shutil
import subprocess
import tomllib

import pytest
import yaml
from commands import ROOT

INSTRUCTIONS = {"ARG", "FROM", "ENV", "RUN", "COPY", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
BASE = "python:3.12-slim-bookworm"  # Debian 12
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions():
    """(instruction, arguments) of the Dockerfile, without comments, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def sections():
    """Name -> body of the sections of apptainer.def; "" is the head."""
    parts = re.split(r"^%(\w+)\n", (ROOT / "apptainer.def").read_text(), flags=re.M)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def shell(script):
    return subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True)


def test_the_dockerfile_is_whole():
    found = instructions()
    assert {name for name, _ in found} <= INSTRUCTIONS
    assert not [text for name, text in found if name == "RUN" and shell(text).returncode]
    stages, known = [text.split() for name, text in found if name == "FROM"], set()
    for words in stages:
        assert words[0] in known | {BASE, "packages-${VARIANT}"}, words
        known |= {words[-1]}
    assert {"packages-cpu", "packages-cuda"} <= known
    copied = [re.search(r"--from=(\w+)", text)[1] for name, text in found if name == "COPY" and "--from" in text]
    assert set(copied) <= known


def test_the_last_stage_does_not_run_as_root():
    last = instructions()[max(i for i, (name, _) in enumerate(instructions()) if name == "FROM") :]
    user = [text for name, text in last if name == "USER"]
    assert user and user[-1] not in ("root", "0")
    assert [name for name, _ in last].index("USER") < [name for name, _ in last].index("ENTRYPOINT")


def test_both_take_the_exact_versions_and_leave_out_cuda_for_a_cpu():
    docker, apptainer = ((ROOT / name).read_text() for name in ("Dockerfile", "apptainer.def"))
    (pattern,) = set(re.findall(r"grep -vE '(.*?)'", docker + apptainer))
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    dropped = [line for line in lock if re.search(pattern, line)]
    kept = [line for line in lock if line not in dropped]
    assert all(re.match(r"(nvidia|cuda|triton)", line) for line in dropped) and len(dropped) > 10
    assert not [line for line in kept if re.match(r"(nvidia|cuda)", line)]
    assert all("requirements.lock" in text and "--no-deps" in text for text in (docker, apptainer))


def test_the_apptainer_definition_is_whole():
    found = sections()
    assert f"From: {BASE}" in found[""] and "Bootstrap: docker" in found[""]
    assert "variant=cuda" in found["arguments"]
    filled = {name: text.replace("{{ variant }}", "cpu") for name, text in found.items()}
    scripts = ("post", "environment", "runscript", "test")
    assert not [name for name in scripts if shell(filled[name]).returncode]
    assert "{{" not in "".join(filled.values())


def test_the_entry_point_is_the_console_script():
    (name,) = PROJECT["scripts"]
    assert dict(instructions())["ENTRYPOINT"] == f'["{name}"]'
    assert f"exec {name} " in sections()["runscript"]


@pytest.mark.parametrize(("linter", "file"), [("hadolint", "Dockerfile")])
def test_a_linter_has_nothing_to_say(linter, file):
    if shutil.which(linter) is None:
        pytest.skip(f"{linter} is not installed")
    assert subprocess.run([linter, str(ROOT / file)]).returncode == 0


def test_the_citation_is_whole_and_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= set(cited)
    assert (cited["version"], cited["license"]) == (PROJECT["version"], PROJECT["license"])
    assert f"Version {PROJECT['version']}" in sections()["labels"]
