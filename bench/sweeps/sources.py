"""The code that a sweep runs: its commit, and a hash of all sources that a cell runs through."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

from bench.paths import ROOT

SOURCES = ("bench", "methods", "metrics")


@functools.cache
def code() -> dict[str, Any]:
    """Commit, whether files differ from it, and a hash of all sources that a cell runs through."""
    from bench.store.provenance import provenance_of_code

    sources = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            sources.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return {**provenance_of_code(), "sources": sources.hexdigest()[:16]}


def described(known: Mapping[str, Any]) -> str:
    if known.get("commit") is None:
        return f"sources {known['sources']}"
    return f"commit {known['commit'][:10]}{' with changes' if known['dirty'] else ''} (sources {known['sources']})"
