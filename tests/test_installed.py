"""The package outside the repository: verbs, a user's own folder, and a wheel that runs from an empty folder."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
METHOD = """
from dataclasses import dataclass

from bench.contracts import Method, plain_guidance


@dataclass
class Mine(Method):
    strength: float = 1.0
    strength_knob = "none"

    def prompts(self, prompt, dataset):
        return {"content": prompt, "negative": "", "style": prompt}

    def guide(self, z, t, texts, cfg, strength):
        return (yield from plain_guidance(z, t, texts, cfg))
"""


def command(*words, cwd, python=sys.executable, env=None, check=True):
    done = subprocess.run([python, "-m", "bench", *words], cwd=cwd, env={**os.environ, **(env or {})},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


@pytest.fixture
def own(tmp_path):
    """A user's folder with a method, its configuration and a dataset, and a file that shadows a shipped method."""
    for folder in ("conf/method", "methods", "datasets/mine"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "methods" / "__init__.py").write_text("raise RuntimeError('the shipped package is shadowed')")
    (tmp_path / "methods" / "mine.py").write_text(METHOD)
    (tmp_path / "methods" / "pair.py").write_text("raise RuntimeError('the shipped method is shadowed')")
    (tmp_path / "conf" / "method" / "mine.yaml").write_text(
        "# Mine: a test, arXiv 1234.56789. Nothing is learned.\n"
        "name: mine\nversion: 1\n_target_: methods.mine.Mine\ncurve: [1.0]\n"
    )
    (tmp_path / "datasets" / "mine" / "dataset.yaml").write_text(
        f"base: {ROOT / 'datasets' / 'halftone' / 'dataset.yaml'}\nstyle_words: in mine style\n"
    )
    return tmp_path


def test_the_verbs_list_what_there_is():
    rows = json.loads(command("list", "methods", "--json", cwd=ROOT).stdout)
    names = {row["name"]: row for row in rows}
    assert set(names) == {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}
    assert names["pair"]["paper"] == "arXiv 2405.01536" and names["pair"]["needs"] == ["pairs"]
    text = command("list", "datasets", cwd=ROOT).stdout
    assert {line.split()[0] for line in text.splitlines()} >= {"halftone", "parkhouse", "dreambooth/dog"}
    assert re.fullmatch(r"t2i-bench \d+\.\d+\.\d+\n", command("--version", cwd=ROOT).stdout)
    assert "no command 'tabel'; commands are table" in command("tabel", cwd=ROOT, check=False).stderr


@pytest.mark.parametrize("kind", ["metrics", "backbones", "experiments"])
def test_each_kind_is_listed(kind):
    rows = json.loads(command("list", kind, "--json", cwd=ROOT).stdout)
    assert len(rows) >= 3 and all(row["name"] and row["what"] and row["here"] in (True, False) for row in rows)
    assert all(row["here"] or row["missing"] for row in rows)


def test_a_users_own_folder_is_found_beside_the_shipped_and_shadows_nothing(own):
    """python -m bench puts the working directory first on the path; its `methods` must not win."""
    outside = {"PYTHONPATH": str(ROOT)}
    rows = {row["name"]: row for row in json.loads(command("list", "methods", "--json", cwd=own, env=outside).stdout)}
    assert rows["mine"]["paper"] == "arXiv 1234.56789" and "pair" in rows
    names = [line.split()[0] for line in command("list", "datasets", cwd=own, env=outside).stdout.splitlines()]
    assert "mine" in names and "halftone" in names
    plan = command("method=mine", "dataset=mine", "plan=true", "tracker=none", cwd=own, env=outside).stdout
    assert "mine" in plan
    command("method=pair", "dataset=halftone", "plan=true", "tracker=none", cwd=own, env=outside)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A wheel of this checkout in a new environment that sees the libraries of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"  # the build leaves files behind
    listed = subprocess.run(
        ["git", "ls-files", "-zco", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if not name.startswith(("tests/", "results/", "docs/")) and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", folder, copy], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    site = next((folder / "env").glob("lib/python*/site-packages"))
    libraries = next(Path(place) for place in sys.path if place.endswith("site-packages"))
    # .pth of the libraries would bring this checkout's editable install along, so only the folder itself is named
    (site / "libraries.pth").write_text(f"{libraries}\n")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
        names = file.namelist()
    return folder / "env" / "bin" / "python", names


@pytest.mark.slow
def test_a_wheel_runs_from_an_empty_folder(installed, tmp_path):
    python, names = installed
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"bench", "methods", "metrics"}
    env = {"PYTHONPATH": "", "BENCH_CACHE": "", "BENCH_RESULTS": ""}
    words = ["method=zero_shot", "dataset=halftone", "sampler.steps=2", "dataset.prompts=[a cat]",
             "dataset.seeds=[0]", "dataset.rendered.reference_set=8", "tracker=none", "missing_metrics=skip",
             ]  # fmt: skip
    done = command(*words, cwd=tmp_path, python=python, env=env, check=False)
    records = list((tmp_path / "results").glob("*/record.json"))
    assert len(records) == 1, done.stdout + done.stderr
    record = json.loads(records[0].read_text())
    assert record["status"] == "done", record["reason"]
    assert (tmp_path / ".cache").is_dir()
    table = subprocess.run([python, "-m", "bench.table"], cwd=tmp_path, env={**os.environ, **env},
                           capture_output=True, text=True)  # fmt: skip
    assert table.returncode == 0 and "zero" in table.stdout.lower(), table.stdout + table.stderr
