"""Where things lie: the folder of this checkout, the cache, and the offline mirror."""

from __future__ import annotations

import os
from pathlib import Path

from bench.errors import BenchError

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"


def cache_folder() -> Path:
    return Path(os.environ.get("BENCH_CACHE") or ROOT / ".cache")


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
