"""Records are data: which classes may be built from a stored file. All checks read text; nothing is imported.

A stored file may name a class that a file of `conf/` names, or a class that a module of the plug-in folders defines.
Anything else runs only where this process was started with it: `trust` is called with the settings of the command
line, and BENCH_TRUST lists further names (a class, or a package for all that is in it), separated by commas.
"""

from __future__ import annotations

import ast
import functools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.paths import CONF, ROOT, own

TRUST = "BENCH_TRUST"
PLUGINS = ("methods", "metrics")  # folders whose classes are registered by being there
OWN = ("bench", *PLUGINS)
RUNNER = "bench.sweeps.packs.run_pack"  # the one function that a stored file may name
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
TARGET = re.compile(r"_target_:\s*[\"']?([\w.]+)")
_started_with: set[str] = set()


def trust(*settings: Any) -> None:
    """Let this process build what these settings name: they are the user's own, from the command line."""
    _started_with.update(name for name in _targets(settings) if isinstance(name, str))


def trust_names(*names: str) -> None:
    _started_with.update(names)


def trusted() -> str:
    """What a process that goes on with this one's work is started with, as BENCH_TRUST takes it."""
    return ",".join(sorted({*_started_with, *_from_environment()} - registered()))


def check(settings: Any, file: Path) -> None:
    """Raise BenchError when settings that were read from a file name anything that may not be built from one."""
    for name in _targets(settings):
        check_name(name, file)


def check_name(name: Any, file: Path) -> None:
    """Raise BenchError unless a stored file may name this class or function."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise BenchError(f"{file} names {name!r:.100} as a class, which is no class; nothing was run.")
    if not (name == RUNNER or name in registered() or _is_trusted(name) or _is_plugin(name)):
        raise BenchError(
            f"{file} names {name:.200}, which is no registered class of {', '.join(OWN)}; nothing was run. If the "
            f"file and that class are your own, type {TRUST}={name:.200} in front of the command."
        )


@functools.cache
def registered() -> frozenset[str]:
    """Classes of this project that its own configuration names."""
    found = {name for file in CONF.rglob("*.yaml") for name in TARGET.findall(file.read_text(encoding="utf-8"))}
    return frozenset(name for name in found if name.partition(".")[0] in OWN)


def _targets(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from (item for key, item in value.items() if key == "_target_")
        yield from (name for item in value.values() for name in _targets(item))
    elif isinstance(value, (list, tuple)):
        yield from (name for item in value for name in _targets(item))


def _is_trusted(name: str) -> bool:
    allowed = {*_started_with, *_from_environment()}
    parts = name.split(".")
    return any(".".join(parts[:count]) in allowed for count in range(1, len(parts) + 1))


def _from_environment() -> set[str]:
    return {name.strip() for name in os.environ.get(TRUST, "").split(",") if name.strip()}


def _is_plugin(name: str) -> bool:
    """Whether a module of the plug-in folders defines this class, as its source tells."""
    *module, attribute = name.split(".")
    if len(module) < 2 or module[0] not in PLUGINS:
        return False
    folders = [ROOT / module[0], *filter(None, [own(module[0])])]  # the user's own, where the command was started
    return any(attribute in _classes(folder.joinpath(*module[1:]).with_suffix(".py")) for folder in folders)


@functools.lru_cache(maxsize=256)
def _classes(source: Path) -> frozenset[str]:
    try:
        parsed = ast.parse(source.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return frozenset()
    return frozenset(node.name for node in parsed.body if isinstance(node, ast.ClassDef))
