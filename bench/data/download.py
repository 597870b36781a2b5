"""Downloads that resume, verified by sha256 before they get their name."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from bench.data.files import File, checksums, human, remember, verify
from bench.errors import BenchError, Unavailable
from bench.paths import staged_folder

CHUNK = 1 << 18  # bytes
TIMEOUT_S = 30.0
TRIES = 5
MARGIN = 1.05  # of a size that is known; the registry's are rounded
MOST = 40 << 30  # bytes of a file whose size is not known
REMEDY = "delete it and type the command again."
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # of a file system


def _refuse_links(target: Path) -> None:
    """Nothing is written through a link that leads out of the cache."""
    top = staged_folder().resolve()
    if target.is_symlink() or not target.parent.resolve().is_relative_to(top):
        raise BenchError(f"{target} would be written outside {top} through a link; remove the link and repeat.")


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Hold a started download, for no other process to write into it. One that holds nothing is deleted in the end.

    Raises Unavailable while another process holds it.
    """
    handle = _held(part)
    try:
        yield
    finally:
        if part.exists() and part.stat().st_size == 0:
            part.unlink()
        os.close(handle)


def _held(part: Path) -> int:
    """A locked handle of the file that has this name now: another process may have renamed the one that was opened."""
    while True:
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if part.exists() and os.path.samestat(os.fstat(handle), part.stat()):
                return handle
        except BlockingIOError as error:
            os.close(handle)
            raise Unavailable(
                f"{part} is being downloaded by another process; wait for it, then type the same command again."
            ) from error
        except OSError as error:
            if error.errno in NO_LOCKS:
                return handle
            os.close(handle)
            raise
        os.close(handle)


class NotThere(BenchError):
    """The server says that there is no such file."""


def _disk_full(error: BaseException, path: Path) -> BaseException:
    """A full disk as a sentence; every other error as it is."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Unavailable(
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


def _attempt(url: str, part: Path, label: str, most: int) -> None:
    """One try: append to `part`, or write it anew when the server cannot resume. Raises BenchError beyond `most`."""
    from tqdm import tqdm

    chunks = _chunks(url, part.stat().st_size if part.exists() else 0)
    start, total, _ = next(chunks)
    _check_size(total or 0, most, url, part)
    _room((total or 0) - start, part.parent)
    with (
        open(part, "r+b" if start else "wb") as file,
        tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=label, mininterval=0.5) as bar,
    ):
        file.seek(start)
        for position, _, data in chunks:
            _check_size(position + len(data), most, url, part)
            file.write(data)
            bar.update(len(data))
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _check_size(size: int, most: int, url: str, part: Path) -> None:
    if size > most:
        part.unlink(missing_ok=True)
        raise BenchError(
            f"{url} sends {human(size)} or more, and at most {human(most)} are expected; what came was thrown away. "
            "Check the address, or copy the file to its place yourself."
        )


def _refused(error: urllib.error.HTTPError, url: str, part: Path) -> bool:
    """Whether a refusal means that `part` is whole already. Raises NotThere when no try can succeed."""
    error.close()
    if error.code in (403, 404, 410):
        raise NotThere(f"{url} is not there (HTTP {error.code}); check the address, or set BENCH_MIRROR.") from error
    if error.code != 416 or not part.exists():  # 416: there is nothing after what we have
        return False
    whole = (error.headers.get("Content-Range") or "").endswith(f"/{part.stat().st_size}")
    if not whole:
        os.truncate(part, 0)  # left over from another file
    return whole


def download(url: str, part: Path, label: str, wait_s: float = 1.0, size: int | None = None) -> None:
    """Fetch `url` into `part`, resuming what is there, with retries. `size` are the bytes that are expected.

    Raises BenchError.
    """
    problem: Exception | None = None
    for k in range(TRIES):
        time.sleep(wait_s * 2 ** (k - 1) if k else 0)
        try:
            return _attempt(url, part, label, MOST if size is None else int(size * MARGIN))
        except urllib.error.HTTPError as error:
            if _refused(error, url, part):
                return
            problem = error
        except (OSError, http.client.HTTPException) as error:  # URLError, timeouts, closed connections
            problem = error
            if "No such file" in str(getattr(error, "reason", "")):  # file:// addresses
                raise NotThere(f"{url} is not there; check the address.") from error
            if isinstance(told := _disk_full(error, part), BenchError):
                raise told from error
        except ValueError as error:
            raise BenchError(f"{url} is no address that can be fetched ({error}); correct it.") from error
    raise Unavailable(
        f"{url} could not be fetched in {TRIES} tries ({problem}); on a machine without network copy the file to "
        f"{part.with_suffix('')} yourself, or set BENCH_MIRROR to a folder that holds it."
    ) from problem


def _room(size: int | None, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size and size > free:
        raise Unavailable(
            f"no space left: {human(size)} are needed in {folder} and {human(free)} are free; "
            "free some, or set BENCH_CACHE to a larger disk."
        )


def stage(file: File, wait_s: float = 1.0) -> Path:
    """Make one file present and verified; return where it lies. Raises BenchError."""
    expected = file.sha256 or checksums().get(file.path)
    place = file.place()
    if place:
        verify(place, expected, REMEDY)
        return place
    if not file.url:
        raise BenchError(f"{file.path} is not staged and has no address; copy it to {file.cached()} yourself.")
    target = file.cached()
    part = target.with_name(target.name + ".part")
    _refuse_links(target)
    _refuse_links(part)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(part):
        if target.exists():  # another process has fetched it meanwhile
            verify(target, expected, REMEDY)
        else:
            download(file.url, part, target.name, wait_s, file.size)
            _accept(file, part, target, expected)
    return target


def _accept(file: File, part: Path, target: Path, expected: str | None) -> None:
    """Verify what was fetched and give it its name; throw it away when it is something else."""
    try:
        digest = verify(part, expected, "the download was thrown away; try again, and report it if it stays so.")
    except BenchError:
        part.unlink()
        raise
    os.replace(part, target)
    if expected is None:
        remember(file.path, digest)


def check(file: File) -> Path:
    """Like `stage`, but only look. Raises BenchError when the file is absent or wrong."""
    place = file.place()
    if place is None:
        raise BenchError(f"{file.path} is not on this machine.")
    verify(place, file.sha256 or checksums().get(file.path), "delete it and fetch it again.")
    return place
