"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.environment import using
from bench.errors import BenchError


def atomic_write(path: Path | str, data: bytes | memoryview) -> None:
    """Write a file wholly or not at all: temporary file beside it, fsync, rename."""
    path = Path(path)
    with using(path.parent, len(data)), replacing(path) as part:
        part.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` for others to write, with a name that no other process has; then it takes the place of
    `path`, synced to the disk, or is deleted where something fails."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb+") as file:
            write_through(file, b"")
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def check_place(option: str, path: Path | None) -> None:
    """Raises BenchError where a file is to be written into no folder; asked before the work. None is no file."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        why = "is a folder" if path.is_dir() else f"lies in {path.parent}, which does not exist"
        raise BenchError(f"{option} {path} was requested, which {why}; give a file in a folder that exists.")


def write_through(file: Any, data: bytes | memoryview) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_folder(source: Path, target: Path) -> None:
    """Move a folder to `target`; what was there is set aside first and then deleted, also by the next who moves."""
    if target.exists():
        shutil.rmtree(set_aside(source), ignore_errors=True)
        os.rename(target, set_aside(source))
    os.rename(source, target)
    shutil.rmtree(set_aside(source), ignore_errors=True)
    _sync_folder(target.parent)


def set_aside(source: Path) -> Path:
    """Where `replace_folder` keeps what was there while it moves `source`."""
    return source.with_name(f".old-{source.name}")
