"""The arrows of the architecture, walked in the sources: who may import whom, and what may not be named where."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("bench", "methods", "metrics")
MAY_IMPORT = {"bench": {"bench"}, "methods": {"bench"}, "metrics": {"bench", "metrics"}}


# The rooms of bench/, the lowest first: a module imports from its own room and from lower ones only. What is not named
# here is a command: above all rooms.
ROOMS = """
errors choices environment reading paths class_source files seeding settings progress contracts mini data backbones
adapters sampling training track cell fairness compose store analysis steps run report study sweeps runs command
mini.recipe
""".split()
RECIPE = (
    "bench.mini.recipe",
    "bench.mini.check",
    "bench.mini.check_drawings",
)  # they use the whole benchmark; the rest of mini only draws and loads
LONGEST = 350  # lines of a file


def sources(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def tree(path):
    return ast.parse(path.read_text(), filename=str(path))


def imported(path):
    """Full names of all modules and members that a file imports, wherever in the file."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def tracked():
    """Files under version control, or, outside git, none."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def texts():
    """The tracked files that are text, with their contents."""
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data[:8000]:
            yield path, data.decode(errors="replace")


@pytest.mark.parametrize("folder", OURS)
def test_imports_follow_the_arrows(folder):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(folder)
        for name in imported(path)
        if name.split(".")[0] in {*OURS, "tests", "datasets"} - MAY_IMPORT[folder]
    ]
    assert not wrong
    assert sources(folder)


# --- the rooms of bench/


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module):
    return "mini.recipe" if module.startswith(RECIPE) else module.split(".")[1]


def arrows():
    """(module, module of bench/ that it imports), wherever the import stands in the file."""
    modules = {module_of(path) for path in sources("bench")} - {"bench"}
    for path in sources("bench"):
        for name in imported(path):
            while name and name not in modules:
                name = name.rpartition(".")[0]
            if name and name != module_of(path):
                yield module_of(path), name


def test_every_import_runs_downwards():
    level = {room: i for i, room in enumerate(ROOMS)}
    found = {(a, b) for a, b in arrows() if a != "bench" and room_of(a) != room_of(b)}
    top = len(ROOMS)
    wrong = [f"{a} imports {b}" for a, b in sorted(found) if level.get(room_of(b), top) >= level.get(room_of(a), top)]
    assert not wrong
    assert {room_of(b) for _, b in found} == set(ROOMS) - {"study", "mini.recipe"}, (
        "a room that nobody uses, or a new one"
    )


def test_no_modules_import_each_other_in_a_circle():
    left: dict[str, set[str]] = {}
    for a, b in arrows():
        left.setdefault(a, set()).add(b)
        left.setdefault(b, set())
    while free := [module for module, needs in left.items() if not needs & set(left)]:
        for module in free:
            del left[module]
    assert not left, f"in a circle, or above one: {sorted(left)}"


def test_no_file_is_long():
    long = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in sources(*OURS)}
    long = {name: lines for name, lines in long.items() if lines > LONGEST and not name.startswith("bench/mini/")}
    assert not long


def test_no_method_imports_another():
    names = {path.stem for path in sources("methods")} - {"__init__"} - sys.stdlib_module_names  # `import copy` is fine
    wrong = [(path.name, name) for path in sources("methods") for name in imported(path) if name.split(".")[0] in names]
    assert not wrong


def test_datasets_is_data_only():
    assert not sources("datasets")


# --- names


def names_in_conf(group):
    return {
        path.relative_to(ROOT / "conf" / group).with_suffix("").as_posix()
        for path in (ROOT / "conf" / group).glob("**/*.yaml")
    }


def dataset_names():
    return {
        path.parent.relative_to(ROOT / "datasets").as_posix() for path in (ROOT / "datasets").glob("**/dataset.yaml")
    }


def metric_names():
    """Modules, and the ids of the values that they give (keys of `higher_is_better`)."""
    found = {path.stem for path in sources("metrics") if path.parent.name == "metrics"}
    found -= {"__init__", "features", "fingerprint"}
    for path in sources("metrics"):
        for node in ast.walk(tree(path)):
            target = node.target if isinstance(node, ast.AnnAssign) else None
            if isinstance(target, ast.Name) and target.id == "higher_is_better" and isinstance(node.value, ast.Dict):
                found |= {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
    return found


def words(path):
    """Names and string constants of the code; docstrings and comments may explain with examples."""
    module = tree(path)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(module)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def core():
    """bench without `mini`, whose own world has styles of its own."""
    return [path for path in sources("bench") if "mini" not in path.relative_to(ROOT / "bench").parts[:1]]


def compared(path):
    """Strings that the code tests for equality, the form of a special case."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Compare) and any(isinstance(op, (ast.Eq, ast.NotEq)) for op in node.ops):
            yield from (part.value for part in [node.left, *node.comparators] if isinstance(part, ast.Constant))


# Words of the contracts (what a dataset provides, roles) that plug-ins or their files happen to be called, too.
PLAIN_WORDS = {"pair", "oracle", "folder", "style"}


@pytest.mark.parametrize("kind", ["method", "dataset", "metric"])
def test_no_method_dataset_or_metric_is_named_in_bench(kind):
    """A plug-in's name as a whole string in the core is a special case for it."""
    named = {
        "method": names_in_conf("method") | {path.stem for path in sources("methods")} - {"__init__"},
        "dataset": dataset_names(),
        "metric": metric_names(),
    }[kind]
    assert named
    wrong = [(path.name, word) for path in core() for word in words(path) if word in named - PLAIN_WORDS]
    wrong += [(path.name, word) for path in core() for word in compared(path) if word in named]
    assert not wrong


# --- start


def loaded_by(*arguments):
    """Which heavy packages a fresh process has loaded at its end."""
    code = (
        "import runpy, sys\n"
        "try: runpy.run_module(sys.argv.pop(1), run_name='__main__' if sys.argv[1:] else 'imported', alter_sys=True)\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'wandb', 'pandas'}\n"
        "print('\\nloaded:', *heavy.intersection(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert "loaded:" in result.stdout, result.stderr
    return result.stdout.rpartition("loaded:")[2].split(), result.stdout


def test_importing_bench_loads_nothing_heavy():
    assert loaded_by("bench.contracts.method")[0] == []


def test_the_help_loads_nothing_heavy():
    loaded, shown = loaded_by("bench", "--help")
    assert loaded == [] and "method" in shown


# --- files


def test_no_tracked_file_names_a_machine_path_or_an_index():
    paths = r"(?<![\w.-])/(work|home|root|opt|Users|mnt|scratch)/[\w.]"
    index = r"--(extra-)?index-url|--find-links|pypi\.org/simple|devpi|artifactory"
    pattern = re.compile(f"{paths}|{index}")
    skipped = {ROOT / "LICENSE", Path(__file__)}
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path, text in texts()
        if path not in skipped
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert not wrong


def test_the_lock_is_exact_and_the_only_one():
    assert not (ROOT / "uv.lock").exists() or ROOT / "uv.lock" not in tracked()
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[^ ]+( ; .+)?", line) for line in lines)


def test_the_lock_meets_the_project_file():
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = dict(line.split(" ;")[0].split("==") for line in (ROOT / "requirements.lock").read_text().splitlines())
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)], prereleases=True), text


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "method").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_method_says_its_paper_and_its_command(path):
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert re.search(r"arXiv|paper|doi", header, re.IGNORECASE), "the header names no paper"
    assert f"method={path.stem}" in header and "python -m bench" in header, "the header has no command"


def test_every_package_is_listed_for_installation():
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in sources(*OURS)}
    assert found == {name for name in listed if not name.startswith("bench.shipped.")}
