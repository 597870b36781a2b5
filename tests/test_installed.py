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

from bench import paths
from bench.data import weights

ROOT = Path(__file__).parents[1]
METHOD = """
print("mine is imported")
from dataclasses import dataclass

from bench.contracts import Method, plain_guidance


@dataclass
class Mine(Method):
    strength: float = 1.0
    strength_knob = "none"
    needs = frozenset({"pairs"})

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


# --- a user's own folder

OUTSIDE = {"PYTHONPATH": str(ROOT)}  # python -m bench puts the working directory first on the path all the same


def test_a_users_own_folder_is_found_beside_the_shipped_and_shadows_nothing(own):
    rows = {row["name"]: row for row in json.loads(command("list", "methods", "--json", cwd=own, env=OUTSIDE).stdout)}
    assert rows["mine"]["paper"] == "arXiv 1234.56789" and "pair" in rows
    names = [line.split()[0] for line in command("list", "datasets", cwd=own, env=OUTSIDE).stdout.splitlines()]
    assert "mine" in names and "halftone" in names
    assert rows["mine"]["needs"] == ["pairs"]
    plan = command("method=mine", "dataset=mine", "plan=true", "tracker=none", cwd=own, env=OUTSIDE)
    assert "1 cells: 1 to run" in plan.stdout and "mine is imported" in plan.stdout
    assert f"note: {own / 'methods' / 'pair.py'} is not used" in plan.stderr and "mine.py" not in plan.stderr


def test_only_a_run_imports_what_is_the_users_own(own):
    for words in (["list", "methods"], ["list", "metrics"], ["--help"]):
        assert "mine is imported" not in command(*words, cwd=own, env=OUTSIDE).stdout


def python_says(code, cwd):
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env={**os.environ, **OUTSIDE}, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_any_process_that_builds_a_method_finds_the_users_own(own):
    """Workers, jobs of a cluster and the Python API: whoever builds it, without a call before."""
    code = "from bench.settings import class_of\nfor name in ('mine.Mine', 'pair.PairCustomization'):\n"
    code += "    print(class_of(f'methods.{name}').__name__)"
    assert python_says(code, own) == "mine is imported\nMine\nPairCustomization"


def test_the_python_api_leaves_the_path_as_it_is(own):
    code = "import sys; before = list(sys.path); from bench.compose import from_overrides\n"
    code += "print(from_overrides('method=mine', 'dataset=mine').method['name'], before == sys.path)"
    assert python_says(code, own) == "mine True"


def test_the_code_of_a_sweep_is_the_users_own_too(own):
    code = "from bench.sweeps.sources import code; print(code()['sources'])"
    before = python_says(code, own)
    (own / "methods" / "mine.py").write_text(METHOD + "    changed = True\n")
    assert python_says(code, own) != before


def test_a_relative_path_starts_in_the_checkout_or_where_the_command_is_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    shipped = Path("bench", "mini", "weights")
    for checkout in (True, False):
        monkeypatch.setattr(paths, "CHECKOUT", checkout)
        assert paths.located("weights") == tmp_path / "weights"
        assert paths.located(shipped) == ROOT / shipped
    assert paths.located("absent/x") == tmp_path / "absent" / "x"  # installed: never a place in site-packages
    assert paths.cache_folder() != tmp_path / ".cache" or "BENCH_CACHE" not in os.environ
    monkeypatch.delenv("BENCH_CACHE")
    assert paths.cache_folder() == tmp_path / ".cache"
    monkeypatch.setattr(paths, "CHECKOUT", True)
    assert paths.cache_folder() == ROOT / ".cache" and paths.located("conf") == ROOT / "conf"


def test_a_registry_of_weights_of_ones_own_adds_entries_and_changes_none(tmp_path, monkeypatch):
    shipped = weights.weights()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "weights.yaml").write_text("mine: {file: a.pth}\ninception_fid: {file: other.pth}\n")
    assert weights.weights() == {**shipped, "mine": {"file": "a.pth"}}


# --- a wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of what git tracks, because the build leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    build = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source"]
    subprocess.run([*PIP, *build], check=True)
    (built,) = folder.glob("*.whl")
    return built


PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
CODE, DATA = ("bench", "methods", "metrics"), ("conf", "datasets")
NOT_SHIPPED = ("tests/", "results/", "docs/")


def tracked():
    listed = ["git", "ls-files", "-zco", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [name for name in names if name and not name.startswith(NOT_SHIPPED) and (ROOT / name).is_file()]


def test_a_wheel_holds_the_packages_the_configurations_the_datasets_and_the_weights(wheel):
    with zipfile.ZipFile(wheel) as file:
        found = {name for name in file.namelist() if ".dist-info/" not in name}
        (entry_points,) = (name for name in file.namelist() if name.endswith("entry_points.txt"))
        assert "t2i-bench = bench.command:main" in file.read(entry_points).decode()
    expected = {name for name in tracked() if name.startswith(tuple(f"{top}/" for top in CODE))}
    expected |= {f"bench/shipped/{name}" for name in tracked() if name.startswith(tuple(f"{top}/" for top in DATA))}
    assert found == expected
    assert {"bench/shipped/conf/config.yaml", "bench/shipped/datasets/halftone/dataset.yaml"} < found
    assert any(name.startswith("bench/mini/weights/") and name.endswith(".safetensors") for name in found)
    assert any(name.startswith("bench/shipped/datasets/emoji/sheets/") for name in found)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of programs of a new environment with the wheel, which sees the libraries of this one."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([*PIP, "--python", python, "install", "-q", "--no-deps", "--no-compile", wheel], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    libraries = next(Path(place) for place in sys.path if place.endswith("site-packages"))
    # .pth of the libraries would bring this checkout's editable install along, so only the folder itself is named
    (site / "libraries.pth").write_text(f"{libraries}\n")
    return site, folder / "bin"


TINY = ["dataset=halftone", "sampler.steps=2", "dataset.prompts=[a cat]", "dataset.seeds=[0]",
        "dataset.rendered.reference_set=8", "tracker=none", "missing_metrics=skip"]  # fmt: skip


def files_in(site):
    return {path.relative_to(site) for path in site.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_wheel_runs_from_an_empty_folder(installed, tmp_path):
    site, programs = installed
    before = files_in(site)
    env = {**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1", "BENCH_CACHE": "", "BENCH_RESULTS": ""}

    def typed(*words, program="t2i-bench", code=0):
        done = subprocess.run([programs / program, *words], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    first = typed("method=zero_shot", *TINY)
    assert "images: " in first and "Shown from its record" not in first
    assert "Shown from its record" in typed("method=zero_shot", *TINY)
    (record,) = [json.loads(path.read_text()) for path in tmp_path.glob("results/*/record.json")]
    assert record["status"] == "done" and record["provenance"]["versions"]["t2i-bench"]
    swept = typed("-m", "method=zero_shot,oracle", "seed=0,1", "hydra/launcher=local", *TINY)
    assert "4 done" in swept and "Means over seeds with intervals: python -m bench.table\n" in swept
    for table in (typed("table"), typed("-m", "bench.table", program="python")):
        assert "zero_shot" in table and "oracle" in table
    typed("report", "--out", "page.html")
    typed("grid", "--out", "grid.png")
    assert re.fullmatch(r"t2i-bench \d+\.\d+\.\d+\n", typed("--version"))
    assert typed("list", "methods") == command("list", "methods", cwd=ROOT).stdout
    assert {path.name for path in tmp_path.iterdir()} == {".cache", "results", "page.html", "grid.png"}
    assert files_in(site) == before


@pytest.mark.slow
def test_a_method_of_ones_own_runs_in_the_workers_of_a_wheel(installed, own):
    (own / "datasets" / "mine" / "dataset.yaml").unlink()
    env = {**os.environ, "PYTHONPATH": "", "BENCH_CACHE": "", "BENCH_RESULTS": "kept"}
    words = ["-m", "method=mine", "seed=0,1", "hydra/launcher=local", "workers=1", *TINY]
    done = subprocess.run([installed[1] / "t2i-bench", *words], cwd=own, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "2 done" in done.stdout, done.stdout + done.stderr
    assert len(list((own / "kept").glob("mine-*/record.json"))) == 2
