"""One folder per cell, written atomically: what was run, on what, at what cost, and what came out.

A finished cell is `<root>/<run id>/`: record.json, config.yaml, adapters/<name>.safetensors, log.csv, per_image.csv,
grid.png and images/strength=<g>/<prompt index>-s<seed>.png. An unfinished one is `<root>/.work/<run id>/`, with files
called checkpoint*; it survives SIGKILL and becomes the finished folder by one rename, after record.json was written.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import math
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.contracts import BenchError
from bench.paths import ROOT
from bench.store import leases

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1
STATUSES = ("done", "failed", "skipped")
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+,-]{0,199}")
PACKAGES = (
    "torch torchvision diffusers transformers peft open_clip_torch clean-fid lpips torchmetrics torch-fidelity "
    "numpy scipy pandas pillow hydra-core safetensors wandb"
).split()

log = logging.getLogger(__name__)


@dataclass
class Record:
    """What is kept of one cell. Everything in it is plain: it can be written as JSON."""

    run_id: str
    status: str  # done | failed | skipped
    reason: str | None = None
    config: dict[str, Any] = field(default_factory=dict)  # method, dataset, backbone, trainer, sampler, seed, ...
    cost: dict[str, Any] = field(default_factory=dict)  # load_s, train_s, images_per_s, peak_gb, adapter_bytes, ...
    provenance: dict[str, Any] = field(default_factory=dict)
    scores: list[dict[str, Any]] = field(
        default_factory=list
    )  # strength, metric, value, higher_is_better, network, ...
    notes: list[str] = field(default_factory=list)  # deviations from the paper, metrics left out with their reason

    def __post_init__(self) -> None:
        check_run_id(self.run_id)
        if self.status not in STATUSES:
            raise BenchError(f"A record's status is one of {', '.join(STATUSES)}, not {self.status!r}.")


def check_run_id(run_id: str) -> None:
    """Raise BenchError unless the id is a plain folder name."""
    if not isinstance(run_id, str) or not RUN_ID.fullmatch(run_id) or ".." in run_id:
        raise BenchError(
            f"A run id is at most 200 letters, digits and . _ = + , - without '..', starting with a letter or digit; "
            f"{run_id!r} is not."
        )


def dumps(record: Record) -> str:
    """JSON of a record; numbers that are not finite become null."""
    return json.dumps({"format": FORMAT} | _plain(asdict(record)), indent=1, allow_nan=False) + "\n"


def loads(text: str) -> Record:
    """A record from its JSON. Raises BenchError when it is cut short or was written in another format."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BenchError(f"not whole JSON ({error})") from error
    names = {f.name for f in fields(Record)}
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT or set(found) != names:
        raise BenchError(f"not a record of format {FORMAT}")
    for score in found["scores"]:
        score["value"] = math.nan if score.get("value") is None else score["value"]
    return Record(**found)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if hasattr(value, "tolist"):  # numpy and torch
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, (Path, datetime)) else value


class Store:
    """All cells below one folder."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._claims: dict[str, leases.Claim] = {}

    def folder(self, run_id: str) -> Path:
        """Where the finished cell lies, or will."""
        check_run_id(run_id)
        return self.root / run_id

    def read(self, run_id: str) -> Record | None:
        """The record of a finished cell, or None. A publication that was killed halfway is completed first."""
        path = self.folder(run_id) / "record.json"
        if not path.exists():
            self._complete(run_id)
        return read_record(path)

    def records(self) -> Iterator[Record]:
        """All finished cells of any status, by run id; one that cannot be read costs a warning line."""
        for path in sorted(self.root.glob("[!.]*/record.json")):
            if (record := read_record(path)) is not None:
                yield record

    def work(self, run_id: str) -> Path:
        """Folder of an unfinished cell, held by this process until `publish` or `release`.

        Raises BenchError when another process, here or on another machine, holds it.
        """
        folder = self._unfinished(run_id)
        if run_id not in self._claims:
            self._claims[run_id] = leases.take(self.claim_file(run_id), f"Cell {run_id}")
            (folder / "record.json").unlink(missing_ok=True)
        folder.mkdir(exist_ok=True)
        return folder

    def reserve(self, run_id: str, lease_s: float = leases.LEASE_S) -> leases.Claim:
        """Hold a cell for a later `work` of this process, by whatever store. Raises BenchError as `work` does."""
        return leases.reserve(self.claim_file(run_id), f"Cell {run_id}", lease_s)

    def release(self, run_id: str) -> None:
        """Let others work on this cell; what was made so far stays."""
        if (claim := self._claims.pop(run_id, None)) is not None:
            claim.release()

    def claim_file(self, run_id: str) -> Path:
        """What says who works on a cell; its folder is there afterwards."""
        path = self._unfinished(run_id).with_name(f".{run_id}.claim")
        with disk_full(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def publish(self, record: Record) -> Path:
        """Turn the work folder into the finished cell, in place of an earlier one, and drop its checkpoints."""
        import yaml

        folder = self.work(record.run_id)
        atomic_write(folder / "config.yaml", yaml.safe_dump(_plain(record.config), sort_keys=False).encode())
        atomic_write(folder / "record.json", dumps(record).encode())
        if not self._claims[record.run_id].mine():
            raise leases.Taken(f"Cell {record.run_id} was taken over while this process was paused; nothing is lost.")
        finished = self._move(record.run_id)
        self.release(record.run_id)
        return finished

    def update(self, record: Record) -> None:
        """Rewrite record.json of a finished cell, for example with a new metric."""
        folder = self.folder(record.run_id)
        if not (folder / "record.json").exists():
            raise BenchError(f"{folder} holds no finished cell to update; publish it first.")
        atomic_write(folder / "record.json", dumps(record).encode())

    def _unfinished(self, run_id: str) -> Path:
        check_run_id(run_id)
        return self.root / ".work" / run_id

    def _complete(self, run_id: str) -> None:
        """Finish a publication that was killed between record.json and the rename."""
        if run_id in self._claims or read_record(self._unfinished(run_id) / "record.json") is None:
            return
        with contextlib.suppress(OSError, BenchError):  # no right to write, or another process is at it
            self._claims[run_id] = leases.take(self.claim_file(run_id), f"Cell {run_id}")
            try:
                if read_record(self._unfinished(run_id) / "record.json") is not None:
                    self._move(run_id)
            finally:
                self.release(run_id)

    def _move(self, run_id: str) -> Path:
        source, target = self._unfinished(run_id), self.folder(run_id)
        _replace_folder(source, target)
        for path in [*target.glob("checkpoint*"), *target.glob("**/.*")]:  # the latter from killed writes
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        leases.forget_deaths(self.claim_file(run_id))
        return target


def read_record(path: Path) -> Record | None:
    """The record in a file, or None; one that cannot be read costs a warning line."""
    try:
        return loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, BenchError) as error:
        log.warning("%s was left out: %s.", path, error)
        return None


# --- files -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def disk_full(folder: Path, needed: int | None = None) -> Iterator[None]:
    """Turn "no space left" into one BenchError sentence that names the folder and, when known, the bytes needed."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        want = f"{needed:,} bytes had to be written" if needed is not None else "more had to be written"
        raise BenchError(
            f"No space left in {folder}: {want} ({error.strerror}); free some space or choose another folder, "
            "then start again: finished cells are kept."
        ) from error


def atomic_write(path: Path | str, data: bytes) -> None:
    """Write a file wholly or not at all: temporary file beside it, fsync, rename."""
    path = Path(path)
    with disk_full(path.parent, len(data)):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                _write(file, data)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


def _write(file: Any, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace_folder(source: Path, target: Path) -> None:
    """Move a folder to `target`; what was there is set aside first and then deleted."""
    if target.exists():
        aside = Path(tempfile.mkdtemp(dir=source.parent, prefix=".old-"))
        os.rename(target, aside / target.name)
        os.rename(source, target)
        shutil.rmtree(aside)
    else:
        os.rename(source, target)
    _sync_folder(target.parent)


def strength_folder(strength: float) -> str:
    """Folder name of the images of one strength: "strength=3"."""
    return f"strength={strength:g}"


def image_name(prompt: int, seed: int) -> str:
    """File name, without its ending, of the image for one prompt index and evaluation seed: "004-s1000000"."""
    return f"{prompt:03d}-s{seed}"


def save_images(folder: Path | str, images: np.ndarray, names: Sequence[str]) -> None:
    """Write images, uint8 (N, 3, P, P), as <name>.png without loss; the folder appears only when all are in it."""
    from PIL import Image

    folder = Path(folder)
    with disk_full(folder.parent, images.nbytes):
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            for image, name in zip(images, names, strict=True):
                with open(part / f"{name}.png", "wb") as file:
                    Image.fromarray(image.transpose(1, 2, 0)).save(file, format="png", compress_level=1)
                    _write(file, b"")
            os.chmod(part, 0o755)
            _replace_folder(part, folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def load_image(path: Path) -> np.ndarray:
    """One image of a record as uint8 (3, P, P). Raises BenchError."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except (OSError, SyntaxError) as error:
        raise BenchError(
            f"The image {path} cannot be read ({error}); delete its cell's folder and run it again."
        ) from None


# --- provenance --------------------------------------------------------------------------------------------------


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
