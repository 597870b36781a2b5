"""Cells leave a store, or come into it from another one; what is being worked on is left alone."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from bench.environment import using
from bench.errors import BenchError
from bench.files import replace_folder
from bench.store import contents, leases
from bench.store.record import Record, Store, dumps, read_record


def remove(store: Store, run_id: str) -> None:
    """Delete a finished cell. Raises leases.Taken while a process works on it."""
    folder = store.folder(run_id)
    lease = leases.take(store.lease_file(run_id), f"Cell {run_id}")
    try:
        aside = Path(tempfile.mkdtemp(dir=lease.path.parent, prefix=".old-"))
        os.rename(folder, aside / run_id)  # from here on it is gone, even if the rest is killed
        shutil.rmtree(aside)
        leases.forget_deaths(lease.path)
    finally:
        lease.release()


def take_in(store: Store, other: Path) -> bool:
    """Copy the finished cell in the folder `other` into a store; False when the same one is there already.

    Raises BenchError when it is being worked on, not whole, changed, or differs from a cell of the same run id.
    """
    record = _sound(other)
    held = leases.holder(other.parent / ".work" / f".{record.run_id}.lease")
    if held is not None:
        raise BenchError(f"{other} is being worked on by {leases.described(held)}; wait for it or stop it.")
    ours = store.read(record.run_id)
    if ours is not None:
        if _said(ours) == _said(record):
            return False
        raise BenchError(
            f"{record.run_id} is in {store.root} with other content, which was kept; compare {other / 'record.json'} "
            "with it, and remove one of them with python -m bench.rm."
        )
    _copy(store, record, other)
    return True


def _copy(store: Store, record: Record, other: Path) -> None:
    """Copy a cell whole, check the copy, and only then let it appear."""
    lease = leases.take(store.lease_file(record.run_id), f"Cell {record.run_id}")
    try:
        with using(store.root):
            part = Path(tempfile.mkdtemp(dir=lease.path.parent, prefix=".merge-"))
            try:
                copied = part / record.run_id
                shutil.copytree(other, copied, ignore=shutil.ignore_patterns(".*"))
                _sound(copied)
                replace_folder(copied, store.folder(record.run_id))
            finally:
                shutil.rmtree(part, ignore_errors=True)
    finally:
        lease.release()


def _sound(folder: Path) -> Record:
    """The record of a folder whose files are as it lists them. Raises BenchError."""
    record = read_record(folder / "record.json")
    if record is None:
        raise BenchError(f"{folder / 'record.json'} cannot be read; take in the other cells and run this one again.")
    if record.run_id != folder.name:
        raise BenchError(f"{folder} holds the record of {record.run_id}; give the folder that name again.")
    for path in record.config.get(contents.KEY) or {}:
        contents.check(folder, record.config, path)
    return record


def _said(record: Record) -> object:
    """What a record says of its cell: not when, where and at what cost it was made."""
    known = json.loads(dumps(record))
    return {key: value for key, value in known.items() if key not in ("cost", "provenance", "notes")}


def take_in_images(cache: Path, other: Path) -> int:
    """Copy cached images of backbones and untrained methods that are not in `cache`. Returns how many folders."""
    count = 0
    for group in ("baseline", "untrained"):
        for folder in sorted((other / group).glob("[!.]*")):
            target = cache / group / folder.name
            if folder.is_dir() and not target.exists():
                with using(cache):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    part = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{folder.name}."))
                    shutil.copytree(folder, part, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
                    replace_folder(part, target)
                count += 1
    return count
