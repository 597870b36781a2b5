"""Failures of the environment: a full disk, a lost file system, missing weights, no network. They say nothing about a
cell, so they leave no record: the cell stays open with its checkpoint, and the same command goes on."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path

from bench.errors import BenchError, Unavailable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EROFS,)
FORBIDDEN = (errno.EACCES, errno.EPERM)
LOST = (errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO, errno.EHOSTDOWN)
NETWORK = (errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT)
FILES = (errno.EMFILE, errno.ENFILE)
ADVICE = {
    FULL: "free some space or choose another folder",
    READ_ONLY: "choose a folder that can be written (results=<folder>, BENCH_CACHE for downloads)",
    FORBIDDEN: "give this user the right to it, or choose another folder (results=<folder>, BENCH_CACHE for downloads)",
    LOST: "check that the file system is mounted and answers",
    NETWORK: "check the network",
    FILES: "raise the limit of open files (ulimit -n)",
}
KNOWN = {number: advice for numbers, advice in ADVICE.items() for number in numbers}
INTERRUPTED = 130  # exit status of a command that Ctrl-C ended
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how libraries in Rust write an errno


def failure(error: BaseException | None) -> Unavailable | None:
    """What the environment did behind an error of any library, as one sentence; None when it did nothing."""
    for one in _chain(error):
        if isinstance(one, Unavailable):
            return one
        if (number := _errno(one)) is not None:
            return Unavailable(sentence(number, getattr(one, "filename", None)))
        if isinstance(one, (ConnectionError, TimeoutError, urllib.error.URLError)):
            return Unavailable(f"The network did not answer ({one}); check it, then type the same command again.")
    return None


def sentence(number: int, place: object = None, needed: int | None = None) -> str:
    """What one errno means at a place, and what to do."""
    where = f" in {place}" if place else ""
    if number in FULL:
        want = f"{needed:,} bytes had to be written" if needed is not None else "more had to be written"
        what = f"No space left{where}: {want} ({os.strerror(number)})"
    else:
        what = f"{place or 'A file'} cannot be used ({os.strerror(number)})"
    return f"{what}; {KNOWN[number]}, then type the same command again: what is finished is kept."


@contextlib.contextmanager
def using(folder: Path, needed: int | None = None) -> Iterator[None]:
    """Turn what the environment does to files into Unavailable, with the folder and, when known, the bytes needed."""
    try:
        yield
    except OSError as error:
        if error.errno not in KNOWN:
            raise
        raise Unavailable(sentence(error.errno, folder, needed)) from error


@contextlib.contextmanager
def one_sentence(program: str) -> Iterator[None]:
    """Around a command: errors for the user, and failures of the environment, end it with one sentence."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal need not know every letter of a prompt
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{program}: stopped.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BenchError as error:
        sys.exit(f"{program}: {error}")
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            sys.exit(f"{program}: {str(error.filename)[:60]}... was requested, which is too long for a file's name.")
        if (found := failure(error)) is None:
            raise
        sys.exit(f"{program}: {found}")


def _errno(error: BaseException) -> int | None:
    number = error.errno if isinstance(error, OSError) else None
    if number in FORBIDDEN and getattr(error, "filename", None) is None:
        return None  # no file was forbidden, but a system call of the cell's own code
    if number is None and not isinstance(error, BenchError) and (told := OS_ERROR.search(str(error))):
        number = int(told[1])
    return number if number in KNOWN else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
