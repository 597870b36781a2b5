"""Where a record comes from: code, versions, machine, hashes of data and weights, times."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.paths import ROOT

PACKAGES = (
    "t2i-bench torch torchvision diffusers transformers peft open_clip_torch clean-fid lpips torchmetrics "
    "torch-fidelity numpy scipy pandas pillow hydra-core safetensors wandb"
).split()


def provenance(dataset: str, weights: str, started: datetime, ended: datetime | None = None) -> dict[str, Any]:
    """Where a record comes from: code, versions, machine, hashes of data and weights, times (UTC)."""
    ended = ended or datetime.now(UTC)
    times = {"started": started.isoformat(timespec="seconds"), "ended": ended.isoformat(timespec="seconds")}
    hashes = {"dataset_hash": dataset, "weights_hash": weights}
    return {**provenance_of_code(), "versions": dict(_versions()), **_machine(), "gpu": _gpu(), **hashes, **times}


@functools.cache
def provenance_of_code() -> dict[str, Any]:
    """Commit and, when files differ from it, a hash of the difference; all None outside git."""
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top.decode().strip()).resolve() != ROOT.resolve():
        return {"commit": None, "dirty": None, "diff_hash": None}
    diff = _git("diff", "HEAD", "--binary") or b""
    untracked = (_git("ls-files", "--others", "--exclude-standard", "-z") or b"").split(b"\0")[:-1]
    changes = hashlib.sha256(diff)
    for name in untracked:
        changes.update(name + b"\0" + _contents(ROOT / os.fsdecode(name)))
    dirty = bool(diff or untracked)
    commit = (_git("rev-parse", "HEAD") or b"").decode().strip() or None
    return {"commit": commit, "dirty": dirty, "diff_hash": changes.hexdigest() if dirty else None}


def patch() -> bytes:
    """How the tracked files differ from the commit, as `git apply` reads it; empty outside git."""
    return (_git("diff", "HEAD", "--binary") or b"") if provenance_of_code()["dirty"] else b""


def _git(*arguments: str) -> bytes | None:
    try:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def _contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found.append((package, version(package)))
    return tuple(found)


@functools.cache
def _machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hostname": socket.gethostname(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _cpu() -> str:
    found = re.search(r"model name\s*: (.*)", _contents(Path("/proc/cpuinfo")).decode(errors="replace"))
    return found[1] if found else platform.processor() or platform.machine()


def _gpu() -> str | None:
    """Name of the current CUDA device, if torch is loaded and has one."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
