"""Wanted files: where they lie on this machine, and whether they are what they should be."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bench.contracts import BenchError
from bench.files import atomic_write
from bench.paths import cache_folder, mirror_folder, staged_folder


def inside(folder: Path, path: str) -> Path:
    """`folder / path`. Raises BenchError for absolute paths, `..`, and what is no name of a file."""
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in str(pure.parts[:1]):
        raise BenchError(f"the path {path!r} would leave its folder; use a relative path without '..'.")
    if not pure.parts or path.endswith("/") or not path.isprintable():
        raise BenchError(f"the path {path!r} is no name of a file; use a relative path of printable letters.")
    return folder.joinpath(*pure.parts)


@dataclass(frozen=True)
class File:
    """One wanted file: `path` is relative to the mirror and to the cache's data folder alike."""

    path: str
    url: str | None = None
    sha256: str | None = None  # full, or the prefix that its publisher states; None: recorded on first fetch
    size: int | None = None  # bytes
    licence: str = ""

    def cached(self) -> Path:
        return inside(staged_folder(), self.path)

    def place(self) -> Path | None:
        """Where the file lies on this machine, mirror first; its content is not read."""
        mirror = mirror_folder()
        places = ([inside(mirror, self.path)] if mirror else []) + [self.cached()]
        return next((place for place in places if place.is_file()), None)


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
    note.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(note, digest.encode())
    return digest


def checksums() -> dict[str, str]:
    """sha256 by path of the files that had none published, as first fetched; lines as `sha256sum` writes them."""
    try:
        lines = (cache_folder() / "checksums.txt").read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {path: digest for digest, _, path in (line.partition("  ") for line in lines)}


def remember(path: str, digest: str) -> None:
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


def whole(path: Path, remedy: str) -> Path:
    """The path itself. Raises BenchError when the file is absent, or a safetensors or zip file that is cut short."""
    if not path.is_file():
        raise BenchError(f"{path} does not exist; {remedy}")
    with open(path, "rb") as file:
        zipped = file.read(2) == b"PK"  # torch's checkpoints are zip files
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "np"):
                pass
        cut = zipped and not zipfile.is_zipfile(path)
    except Exception as error:  # safetensors has its own kind
        raise BenchError(f"{path} is truncated or no safetensors file ({error}); {remedy}") from error
    if cut:
        raise BenchError(f"{path} is truncated: its end is missing; {remedy}")
    return path


def human(size: int | str | None) -> str:
    """1234567 -> '1.2 MB'."""
    if size is None or isinstance(size, str):
        return size or "size unknown"
    amount, units = float(size), iter(("B", "kB", "MB", "GB"))
    unit = next(units)
    while amount >= 1000 and unit != "GB":
        amount, unit = amount / 1000, next(units)
    return f"{amount:.1f} {unit}" if unit != "B" else f"{size} B"
