"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from bench.environment import using


def atomic_write(path: Path | str, data: bytes | memoryview) -> None:
    """Write a file wholly or not at all: temporary file beside it, fsync, rename."""
    path = Path(path)
    with using(path.parent, len(data)):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                write_through(file, data)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


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
    """Move a folder to `target`; what was there is set aside first and then deleted."""
    if target.exists():
        aside = Path(tempfile.mkdtemp(dir=source.parent, prefix=".old-"))
        os.rename(target, aside / target.name)
        os.rename(source, target)
        shutil.rmtree(aside)
    else:
        os.rename(source, target)
    _sync_folder(target.parent)
