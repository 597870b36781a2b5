"""Where things lie: the code, the shipped configurations and datasets, the user's own, results, cache and mirror.

In a checkout everything lies in the repository, the cache included. An installed package carries `conf` and `datasets`
in `bench/shipped`; results and cache go to the working directory. `BENCH_RESULTS` and `BENCH_CACHE` name other folders.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bench.errors import BenchError

ROOT = Path(__file__).parents[1]  # holds the packages bench, methods and metrics
CHECKOUT = (ROOT / "conf" / "config.yaml").is_file() and (ROOT / "pyproject.toml").is_file()
SHIPPED = ROOT if CHECKOUT else ROOT / "bench" / "shipped"
CONF, DATASETS = SHIPPED / "conf", SHIPPED / "datasets"
PLUGGABLE = ("methods", "metrics")  # packages that a folder of the user may extend


def located(name: str | Path) -> Path:
    """A path of a setting: as it stands, or from the working directory, or from the folder of the code."""
    path = Path(name).expanduser()
    if path.is_absolute() or CHECKOUT:
        return ROOT / path
    return Path.cwd() / path if (Path.cwd() / path).exists() else ROOT / path


def results_folder() -> Path:
    return Path(os.environ.get("BENCH_RESULTS") or "results")


def cache_folder() -> Path:
    return Path(os.environ.get("BENCH_CACHE") or (ROOT if CHECKOUT else Path.cwd()) / ".cache")


def own(name: str) -> Path | None:
    """The working directory's folder `conf`, `datasets`, `methods` or `metrics`, where it is not the shipped one."""
    folder = Path.cwd() / name
    return folder if folder.is_dir() and folder.resolve() not in {ROOT / name, SHIPPED / name} else None


def extend_packages() -> None:
    """Let `methods.<name>` and `metrics.<name>` be found in the working directory, too; shipped modules come first."""
    here = str(Path.cwd())
    if Path(here) != ROOT:
        sys.path[:] = [place for place in sys.path if place not in ("", here)]  # python -m puts it first
    for name in PLUGGABLE:
        folder = own(name)
        if folder is not None:
            package = __import__(name)
            if str(folder) not in package.__path__:
                package.__path__.append(str(folder))


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
