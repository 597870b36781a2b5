"""Stage data and weights on this machine, verify them by sha256, find them again: `python -m bench.fetch NAME ...`.

A file is looked for in the offline mirror (BENCH_MIRROR), then in the cache (BENCH_CACHE, else .cache/ at the root).
Nothing is downloaded unless this command is typed: a run only ever reads what is staged.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import bench
from bench.contracts import BenchError

ROOT = Path(bench.__file__).parents[1]
CHUNK = 1 << 18  # bytes
TIMEOUT_S = 30.0
TRIES = 5


# --- places ------------------------------------------------------------------------------------------------------


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


def inside(folder: Path, path: str) -> Path:
    """`folder / path`, refusing absolute paths, `..` and links that lead out of `folder`."""
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in pure.parts[0]:
        raise BenchError(f"the path {path!r} would leave its folder; use a relative path without '..'.")
    target = folder.joinpath(*pure.parts)
    if not target.parent.resolve().is_relative_to(folder.resolve()):
        raise BenchError(f"the path {path!r} leaves {folder} through a link; remove the link {target.parent}.")
    return target


# --- files and their hashes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """One wanted file: `path` is relative to the mirror and to the cache's data folder alike."""

    path: str
    url: str | None = None
    sha256: str | None = None  # full, or the prefix that its publisher states; None: recorded on first fetch
    size: int | None = None  # bytes
    licence: str = ""

    def cached(self) -> Path:
        return inside(cache_folder() / "data", self.path)

    def place(self) -> Path | None:
        """Where the file lies on this machine, mirror first; its content is not read."""
        mirror = mirror_folder()
        places = ([inside(mirror, self.path)] if mirror else []) + [self.cached()]
        return next((place for place in places if place.is_file()), None)


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path`, flush to disk, then rename: a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as part:
        try:
            part.write(content)
            part.flush()
            os.fsync(part.fileno())
        except BaseException as error:
            os.unlink(part.name)
            raise _told(error, path) from error
    os.replace(part.name, path)


def sha256(path: Path) -> str:
    """Full sha256 of a file, remembered in the cache by path, size and modification time."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()
    note = cache_folder() / "digests" / key[:2] / key
    try:
        return note.read_text()
    except FileNotFoundError:
        pass
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    write_atomically(note, digest.encode())
    return digest


def checksums() -> dict[str, str]:
    """sha256 by path of the files that had none published, as first fetched; lines as `sha256sum` writes them."""
    try:
        lines = (cache_folder() / "checksums.txt").read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {path: digest for digest, _, path in (line.partition("  ") for line in lines)}


def _remember(path: str, digest: str) -> None:
    """Trust on first use: one appended line, short enough to be written in one piece."""
    book = cache_folder() / "checksums.txt"
    book.parent.mkdir(parents=True, exist_ok=True)
    with open(book, "a") as file:
        file.write(f"{digest}  {path}\n")
    print(f"  no published sha256; recorded {digest[:16]}... for {path} in {book}")


def verify(path: Path, expected: str | None, remedy: str) -> str:
    """The file's sha256. Raises BenchError when it does not begin with `expected`."""
    digest = sha256(path)
    if expected and not digest.startswith(expected.lower()):
        raise BenchError(
            f"{path} has the wrong checksum: sha256 {digest[:16]}... was found, "
            f"{expected[:16]}... is expected; {remedy}"
        )
    return digest


def human(size: int | str | None) -> str:
    """1234567 -> '1.2 MB'."""
    if size is None or isinstance(size, str):
        return size or "size unknown"
    amount, units = float(size), iter(("B", "kB", "MB", "GB"))
    unit = next(units)
    while amount >= 1000 and unit != "GB":
        amount, unit = amount / 1000, next(units)
    return f"{amount:.1f} {unit}" if unit != "B" else f"{size} B"


# --- download ----------------------------------------------------------------------------------------------------


class NotThere(BenchError):
    """The server says that there is no such file."""


def _told(error: BaseException, path: Path) -> BaseException:
    """A full disk as a sentence; every other error as it is."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BenchError(
            f"no space left while writing {path}: {human(shutil.disk_usage(path.parent).free)} free; "
            "free some, or set BENCH_CACHE to a larger disk, and repeat (a started download is resumed)."
        )
    return error


def _chunks(url: str, offset: int) -> Iterator[tuple[int, int | None, bytes]]:
    """Yield (position, total, bytes) of a url from `offset`, or from 0 when the server cannot resume."""
    request = urllib.request.Request(url, headers={"User-Agent": "t2i-bench"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        position = offset if getattr(answer, "status", None) == 206 else 0
        length = answer.headers.get("Content-Length")
        total = position + int(length) if length else None
        yield position, total, b""
        while data := answer.read(CHUNK):
            yield position, total, data
            position += len(data)
        if total is not None and position < total:
            raise ConnectionError(f"the connection closed after {position} of {total} bytes")


def _attempt(url: str, part: Path, label: str) -> None:
    """One try: append to `part`, or write it anew when the server cannot resume."""
    from tqdm import tqdm

    chunks = _chunks(url, part.stat().st_size if part.exists() else 0)
    start, total, _ = next(chunks)
    _room((total or 0) - start, part.parent)
    with (
        open(part, "r+b" if start else "wb") as file,
        tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=label, mininterval=0.5) as bar,
    ):
        file.seek(start)
        for _, _, data in chunks:
            file.write(data)
            bar.update(len(data))
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _final(error: Exception, url: str, part: Path) -> bool:
    """Whether another try is useless; what is left over from another file is removed on the way."""
    if isinstance(error, urllib.error.HTTPError) and error.code == 416:  # nothing after what we have
        part.unlink(missing_ok=True)
        return False
    gone = isinstance(error, urllib.error.HTTPError) and error.code in (403, 404, 410)
    if gone or "No such file" in str(getattr(error, "reason", error)):  # the second for file:// addresses
        raise NotThere(f"{url} is not there ({error}); check the address in the dataset's yaml.") from error
    return False


def download(url: str, part: Path, label: str, wait_s: float = 1.0) -> None:
    """Fetch `url` into `part`, resuming what is there, with retries. Raises BenchError."""
    part.parent.mkdir(parents=True, exist_ok=True)
    for k in range(TRIES):
        try:
            return _attempt(url, part, label)
        except OSError as error:  # URLError, timeouts and closed connections are OSErrors
            told = _told(error, part)
            if told is not error:
                raise told from error
            _final(error, url, part)
            problem = error
            time.sleep(wait_s * 2**k if k < TRIES - 1 else 0)
    raise BenchError(
        f"{url} could not be fetched in {TRIES} tries ({problem}); on a machine without network copy the file to "
        f"{part.with_suffix('')} yourself, or set BENCH_MIRROR to a folder that holds it."
    ) from problem


def _room(size: int | None, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size and size > free:
        raise BenchError(
            f"no space left: {human(size)} are needed in {folder} and {human(free)} are free; "
            "free some, or set BENCH_CACHE to a larger disk."
        )


def stage(file: File, target: Path | None = None, wait_s: float = 1.0) -> Path:
    """Make one file present and verified; return where it lies. Raises BenchError."""
    expected = file.sha256 or checksums().get(file.path)
    place = file.place() if target is None else (target if target.is_file() else None)
    if place:
        verify(place, expected, f"delete it and type the command again ({file.url or 'no url'}).")
        return place
    if not file.url:
        raise BenchError(f"{file.path} is not staged and has no address; copy it to {file.cached()} yourself.")
    target = target or file.cached()
    part = target.with_name(target.name + ".part")
    _room(file.size, target.parent)
    download(file.url, part, Path(file.path).name, wait_s)
    try:
        digest = verify(part, expected, "the download was removed; try again, and report it if it stays so.")
    except BenchError:
        part.unlink()
        raise
    os.replace(part, target)
    if expected is None:
        _remember(file.path, digest)
    return target


# --- weights -----------------------------------------------------------------------------------------------------


def weights() -> dict[str, dict[str, Any]]:
    """The registry `conf/weights.yaml`: id -> {file, url, sha256, size, licence, used_by} or {hub, ...}."""
    import yaml

    return yaml.load((ROOT / "conf" / "weights.yaml").read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _entry(id: str) -> dict[str, Any]:
    table = weights()
    if id not in table:
        raise BenchError(f"no weights are called {id!r}; known are {', '.join(sorted(table))} (conf/weights.yaml).")
    return table[id]


def weights_folders() -> list[Path]:
    """Where weights are looked for, in this order: the mirror, the cache, torch's own cache."""
    mirror = mirror_folder()
    torch_home = Path(os.environ.get("TORCH_HOME") or Path.home() / ".cache" / "torch")
    return ([mirror / "weights"] if mirror else []) + [cache_folder() / "weights", torch_home / "hub" / "checkpoints"]


def _weights_place(entry: Mapping[str, Any]) -> Path | None:
    names = [entry["file"], *entry.get("also", ())]
    places = (folder / name for folder in weights_folders() for name in names)
    return next((place for place in places if place.is_file()), None)


def weights_file(id: str) -> Path:
    """Path of a verified weights file of the registry; a Hugging Face repository is not a file.

    Raises BenchError with file name, source, size and how to stage it when it is absent, or when its sha256 is wrong.
    """
    entry = _entry(id)
    if "hub" in entry:
        raise BenchError(f"{id} is the hub repository {entry['hub']}, not a file; stage it with: {hub_command(entry)}")
    place = _weights_place(entry)
    if place is None:
        raise BenchError(
            f"the weights {id} ({entry['file']}, {human(entry.get('size'))}, {entry['used_by']}) are not on this "
            f"machine; type python -m bench.fetch weights {id}, or download {entry['url']} elsewhere and copy it to "
            f"{cache_folder() / 'weights'}, to weights/ in the BENCH_MIRROR folder, or to $TORCH_HOME/hub/checkpoints."
        )
    expected = entry.get("sha256") or checksums().get(f"weights/{entry['file']}")
    verify(place, expected, f"delete it and type python -m bench.fetch weights {id}.")
    return place


def hub_command(entry: Mapping[str, Any]) -> str:
    """How to stage a hub repository on a machine with network, for one without."""
    return f"HF_HOME=<folder> hf download {entry['hub']} (then copy <folder> over and set HF_HOME and HF_HUB_OFFLINE=1)"
