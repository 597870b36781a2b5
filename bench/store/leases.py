"""Who works on what, by files alone: a lease is a file that one process made and keeps young.

Works on any file system that all workers share, without a server. A lease is taken by a link, which fails where there
is one (as O_CREAT|O_EXCL does, but the file is whole at once), kept by renewing its mtime, judged by the file server's
clock (the mtime of a file just touched), and taken over, when its owner is gone, by a rename that only one thief wins.
A dead lease stays beside it as `<lease>.dead-<token>`: these count the attempts.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import Unavailable
from bench.reading import Damaged, content

LEASE_S = 120.0  # without a sign of life for so long, an owner counts as gone
OLDER = ".claim"  # the ending of lease files in older versions, which are respected
OWNER: dict[str, Any] = {  # what a lease says of its owner
    **dict.fromkeys(("host", "machine", "token", "job", "node"), str),
    **{"pid": int, "started": (int, float), "lease_s": (int, float)},
}
BEATS = 5  # signs of life in a lease

_held: set[Lease] = set()  # of this process
_reserved: dict[Path, Lease] = {}
_guard = threading.Lock()
_wake = threading.Condition(_guard)
_keeper: list[threading.Thread] = []


class Taken(Unavailable):
    """Somebody else works on it."""


@dataclass(eq=False)
class Lease:
    """A file of this process's own."""

    path: Path
    token: str
    lease_s: float
    handle: int
    lost: bool = False  # somebody took it over; found at the next sign of life

    def mine(self) -> bool:
        """Whether nobody took it over while this process was paused."""
        return (_owner(self.path) or {}).get("token") == self.token

    def release(self) -> None:
        if self.handle < 0:
            return
        with _guard:
            _held.discard(self)
            if _reserved.get(self.path) is self:
                del _reserved[self.path]
            os.close(self.handle)
            self.handle = -1
        if self.mine():
            self.path.unlink(missing_ok=True)


def take(path: Path, what: str, lease_s: float = LEASE_S) -> Lease:
    """Lease a file in an existing folder, or what `reserve` kept for this process. Raises Taken, naming the owner."""
    with _guard:
        reserved = _reserved.pop(path.absolute(), None)
    if reserved is not None and reserved.mine():
        return reserved
    _clear(_older(path), what)
    while True:
        with contextlib.suppress(FileExistsError):
            return _create(path.absolute(), lease_s)
        _clear(path, what)


def _clear(path: Path, what: str) -> None:
    """Bury a dead lease. Raises Taken for a living one."""
    owner = _owner(path)
    if owner is not None and alive(path, owner):
        raise Taken(f"{what} is being worked on by {described(owner)}; wait for it or stop it.")
    if owner is not None:
        _bury(path, owner)


def _older(path: Path) -> Path:
    """The same lease as a process of an older version keeps it."""
    return path.with_suffix(OLDER)


def reserve(path: Path, what: str, lease_s: float = LEASE_S) -> Lease:
    """Lease a file for a later `take` of this process."""
    with _guard:
        if path.absolute() in _reserved:
            raise Taken(f"{what} is waiting in this process already.")
    lease = take(path, what, lease_s)
    with _guard:
        _reserved[lease.path] = lease
    return lease


def holder(path: Path) -> dict[str, Any] | None:
    """The living owner of a lease, or None."""
    owners = [(file, _owner(file)) for file in (path, _older(path))]
    return next((owner for file, owner in owners if owner is not None and alive(file, owner)), None)


def deaths(path: Path) -> list[dict[str, Any]]:
    """The owners that died over a lease, the last one last."""
    files = [file for one in (path, _older(path)) for file in path.parent.glob(f"{one.name}.dead-*")]
    files.sort(key=lambda file: file.lstat().st_mtime_ns)
    return [owner for file in files if (owner := _owner(file)) is not None]


def forget_deaths(path: Path) -> None:
    """Remove what is left of dead leases and of those that were killed while they were written."""
    for one in (path, _older(path)):
        for file in [*path.parent.glob(f"{one.name}.dead-*"), *path.parent.glob(f"{one.name}.new-*")]:
            file.unlink(missing_ok=True)


def now(folder: Path) -> float:
    """The file server's time, in seconds: the mtime of a file just touched; this machine's where none can be."""
    clock = folder / f".clock-{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
    try:
        clock.touch()
    except OSError:  # a store that can only be read
        return time.time()
    try:
        return clock.stat().st_mtime
    finally:
        clock.unlink(missing_ok=True)


def alive(path: Path, owner: dict[str, Any]) -> bool:
    """Whether an owner shows life: on this machine its process runs, and its last sign of life is not too old."""
    if owner.get("machine") == machine() and _started(owner.get("pid", 0)) != owner.get("started"):
        return False
    try:
        return now(path.parent) - path.lstat().st_mtime < owner.get("lease_s", LEASE_S)
    except FileNotFoundError:
        return False


def myself() -> dict[str, Any]:
    """What tells this process from all others, and where to find it."""
    job = os.environ.get("SLURM_JOB_ID")
    slurm = {"job": job, "node": os.environ.get("SLURMD_NODENAME")} if job else {}
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "started": _started(pid), "machine": machine()} | slurm


def described(owner: dict[str, Any]) -> str:
    """ "process 12 on node3 (job 45)" """
    job = f" (job {owner['job']})" if owner.get("job") else ""
    return f"process {owner.get('pid', '?')} on {owner.get('node') or owner.get('host', '?')}{job}"


@functools.cache
def machine() -> str:
    """Equal for two processes that can see each other's process ids."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _started(pid: int) -> float | None:
    """When a process of this machine began, or None when it is no more."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time(), 1)
    except psutil.Error:
        return None


def _create(path: Path, lease_s: float) -> Lease:
    """A new lease; FileExistsError where there is one. It is linked into place, so that no empty lease is ever seen."""
    token = uuid.uuid4().hex
    draft = path.with_name(f"{path.name}.new-{token}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(handle, json.dumps(myself() | {"token": token, "lease_s": lease_s}).encode())
        os.link(draft, path)
    except BaseException:
        os.close(handle)
        raise
    finally:
        draft.unlink(missing_ok=True)
    lease = Lease(path, token, lease_s, handle)
    _keep(lease)
    return lease


def _bury(path: Path, owner: dict[str, Any]) -> None:
    """Move a dead lease aside. Had another thief been quicker, the living lease that was moved is put back."""
    grave = path.with_name(f"{path.name}.dead-{owner.get('token') or uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, grave)
        if (_owner(grave) or {}).get("token") != owner.get("token"):
            with contextlib.suppress(OSError):
                os.link(grave, path)
            grave.unlink()


def _owner(path: Path) -> dict[str, Any] | None:
    """Who wrote a lease; nothing is known of one who is just writing it; None where there is no lease."""
    try:
        found = json.loads(content(path) or b"{}")
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, Damaged):
        return {}
    return (
        {key: found[key] for key, kind in OWNER.items() if isinstance(found.get(key), kind)}
        if (isinstance(found, dict))
        else {}
    )


# --- signs of life: one thread for all leases of this process


def _keep(lease: Lease) -> None:
    with _guard:
        _held.add(lease)
        if not _keeper or not _keeper[0].is_alive():
            _keeper[:] = [threading.Thread(target=_beat, name="leases", daemon=True)]
            _keeper[0].start()
        _wake.notify()


def _beat() -> None:
    while True:
        with _guard:
            for lease in list(_held):
                _renew(lease)
            _wake.wait(min((lease.lease_s for lease in _held), default=LEASE_S) / BEATS)


def _renew(lease: Lease) -> None:
    """A sign of life on our own file, wherever it was moved: never on the thief's."""
    with contextlib.suppress(OSError):  # the file server is away for a while
        os.utime(lease.handle)
        lease.lost = not lease.mine()
