"""Where things lie: the code, the shipped configurations and datasets, the user's own, results, cache and mirror.

In a checkout everything lies in the repository, the cache included. An installed package carries `conf` and `datasets`
in `bench/shipped`; results and cache go to the working directory. `BENCH_RESULTS` and `BENCH_CACHE` name other folders.
"""

from __future__ import annotations

import filecmp
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from bench.errors import BenchError

ROOT = Path(__file__).parents[1]  # holds the packages bench, methods and metrics
CHECKOUT = (ROOT / "conf" / "config.yaml").is_file() and (ROOT / "pyproject.toml").is_file()
SHIPPED = ROOT if CHECKOUT else ROOT / "bench" / "shipped"
CONF, DATASETS = SHIPPED / "conf", SHIPPED / "datasets"
PLUGGABLE = ("methods", "metrics")  # packages that a folder of the user may extend


def home() -> Path:
    """Where relative paths start and the cache lies: the checkout, or the working directory of an installed package."""
    return ROOT if CHECKOUT else Path.cwd()


def located(name: str | Path) -> Path:
    """A path of a setting. A relative one is looked for in the checkout, in the working directory and, where it begins
    with bench/, in the package."""
    path = Path(name).expanduser()
    places = [home() / path, Path.cwd() / path, *([ROOT / path] if path.parts[:1] == ("bench",) else [])]
    return next((place for place in places if os.path.exists(place)), places[0])


def results_folder() -> Path:
    return Path(os.environ.get("BENCH_RESULTS") or "results")


def cache_folder() -> Path:
    return Path(os.environ.get("BENCH_CACHE") or home() / ".cache")


# --- the user's own folder


def own(name: str) -> Path | None:
    """The working directory's folder `conf`, `datasets`, `methods` or `metrics`, where it is not the shipped one."""
    folder = Path.cwd() / name
    return folder if folder.is_dir() and folder.resolve() not in {ROOT / name, SHIPPED / name} else None


def configuration(name: str) -> Path:
    """A file below conf/: the shipped one, else the user's own; it may be absent."""
    folder = own("conf")
    return folder / name if folder is not None and not (CONF / name).is_file() else CONF / name


def leave_working_directory() -> None:
    """Take the entry of the working directory that `python -m` puts before all installed packages off sys.path."""
    here = Path.cwd()
    if here != ROOT and sys.path and sys.path[0] in ("", str(here)):
        del sys.path[0]


def extend_packages() -> None:
    """Let `methods.<name>` and `metrics.<name>` be found in the working directory, too; shipped modules come first."""
    for name in PLUGGABLE:
        package, folder = _shipped_package(name), own(name)
        if folder is not None and str(folder) not in package.__path__:
            package.__path__.append(str(folder))


def _shipped_package(name: str) -> ModuleType:
    """The package beside bench/, whatever else of that name lies on sys.path."""
    if name not in sys.modules:
        spec = spec_from_file_location(name, ROOT / name / "__init__.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = package = module_from_spec(spec)
        spec.loader.exec_module(package)
    return sys.modules[name]


def shadowed() -> list[Path]:
    """Files of the user's own folder that are not used, because a shipped file has their name and other contents."""
    pairs = [(own("conf"), CONF, "**/*.yaml"), (own("datasets"), DATASETS, "**/dataset.yaml")]
    pairs += [(own(name), ROOT / name, "**/*.py") for name in PLUGGABLE]
    found = [
        folder / file.relative_to(shipped)
        for folder, shipped, pattern in pairs
        if folder is not None
        for file in shipped.glob(pattern)
        if file.name != "__init__.py"
    ]
    return sorted(file for file in found if file.is_file() and not _same(file))


def _same(file: Path) -> bool:
    name = file.relative_to(Path.cwd())
    shipped = (SHIPPED if name.parts[0] not in PLUGGABLE else ROOT) / name
    return filecmp.cmp(file, shipped, shallow=False)


# --- files of others


def mirror_folder() -> Path | None:
    """The offline mirror, or None. Raises BenchError when BENCH_MIRROR names no folder."""
    named = os.environ.get("BENCH_MIRROR")
    if not named:
        return None
    if not Path(named).is_dir():
        raise BenchError(f"BENCH_MIRROR names {named}, which is not a folder; correct it or unset BENCH_MIRROR.")
    return Path(named)


def staged_folder() -> Path:
    """What this command has fetched; laid out as a mirror, so it can be carried elsewhere and named in BENCH_MIRROR."""
    return cache_folder() / "mirror"
