"""Stage data and weights on this machine, verify them by sha256, find them again: `python -m bench.fetch NAME ...`.

A file is looked for in the offline mirror (BENCH_MIRROR), then in the cache (BENCH_CACHE, else .cache/ at the root).
Nothing is downloaded unless this command is typed: a run only ever reads what is staged.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import http.client
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bench.contracts import BenchError
from bench.files import atomic_write
from bench.paths import ROOT

CHUNK = 1 << 18  # bytes
TIMEOUT_S = 30.0
TRIES = 5
HUB_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(/(?P<inside>[\w./-]+))?")  # owner/name, or a place inside it


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


def staged_folder() -> Path:
    """What this command has fetched; laid out as a mirror, so it can be carried elsewhere and named in BENCH_MIRROR."""
    return cache_folder() / "mirror"


def inside(folder: Path, path: str) -> Path:
    """`folder / path`. Raises BenchError for absolute paths and `..`."""
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in pure.parts[0]:
        raise BenchError(f"the path {path!r} would leave its folder; use a relative path without '..'.")
    return folder.joinpath(*pure.parts)


def _refuse_links(target: Path) -> None:
    """Nothing is written through a link that leads out of the cache."""
    top = staged_folder().resolve()
    if target.is_symlink() or not target.parent.resolve().is_relative_to(top):
        raise BenchError(f"{target} would be written outside {top} through a link; remove the link and repeat.")


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


def _refused(error: urllib.error.HTTPError, url: str, part: Path) -> bool:
    """Whether a refusal means that `part` is whole already. Raises NotThere when no try can succeed."""
    error.close()
    if error.code in (403, 404, 410):
        raise NotThere(f"{url} is not there (HTTP {error.code}); check the address, or set BENCH_MIRROR.") from error
    if error.code != 416 or not part.exists():  # 416: there is nothing after what we have
        return False
    whole = (error.headers.get("Content-Range") or "").endswith(f"/{part.stat().st_size}")
    if not whole:
        part.unlink()  # left over from another file
    return whole


def download(url: str, part: Path, label: str, wait_s: float = 1.0) -> None:
    """Fetch `url` into `part`, resuming what is there, with retries. Raises BenchError."""
    problem: Exception | None = None
    for k in range(TRIES):
        time.sleep(wait_s * 2 ** (k - 1) if k else 0)
        try:
            return _attempt(url, part, label)
        except urllib.error.HTTPError as error:
            if _refused(error, url, part):
                return
            problem = error
        except (OSError, http.client.HTTPException) as error:  # URLError, timeouts, closed connections
            problem = error
            if "No such file" in str(getattr(error, "reason", "")):  # file:// addresses
                raise NotThere(f"{url} is not there; check the address.") from error
            if isinstance(told := _told(error, part), BenchError):
                raise told from error
        except ValueError as error:
            raise BenchError(f"{url} is no address that can be fetched ({error}); correct it.") from error
    raise BenchError(
        f"{url} could not be fetched in {TRIES} tries ({problem}); on a machine without network copy the file to "
        f"{part.with_suffix('')} yourself, or set BENCH_MIRROR to a folder that holds it."
    ) from problem


def _room(size: int | None, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size and size > free:
        raise BenchError(
            f"no space left: {human(size)} are needed in {folder} and {human(free)} are free; "
            "free some, or set BENCH_CACHE to a larger disk."
        )


def stage(file: File, wait_s: float = 1.0) -> Path:
    """Make one file present and verified; return where it lies. Raises BenchError."""
    expected = file.sha256 or checksums().get(file.path)
    place = file.place()
    if place:
        verify(place, expected, "delete it and type the command again.")
        return place
    if not file.url:
        raise BenchError(f"{file.path} is not staged and has no address; copy it to {file.cached()} yourself.")
    target = file.cached()
    part = target.with_name(target.name + ".part")
    _refuse_links(target)
    _refuse_links(part)
    target.parent.mkdir(parents=True, exist_ok=True)
    download(file.url, part, target.name, wait_s)
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
        _remember(file.path, digest)


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
    return ([mirror / "weights"] if mirror else []) + [staged_folder() / "weights", torch_home / "hub" / "checkpoints"]


def _weights_place(entry: Mapping[str, Any]) -> Path | None:
    """Where a file of the registry lies: in a folder of weights, or else in the hub's own cache."""
    names = [entry["file"], *entry.get("also", ())]
    places = (folder / name for folder in weights_folders() for name in names)
    cached = (_in_hub_cache(name) for name in names)
    return next((place for place in (*places, *cached) if place is not None and place.is_file()), None)


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
            f"{staged_folder() / 'weights'}, to weights/ in the BENCH_MIRROR folder, or to $TORCH_HOME/hub/checkpoints."
        )
    same = place.name == PurePosixPath(entry["file"]).name  # another file of the same tensors has another hash
    expected = (entry.get("sha256") or checksums().get(f"weights/{entry['file']}")) if same else None
    remedy = f"delete it and type python -m bench.fetch weights {id}."
    verify(place, expected, remedy)
    return whole(place, remedy)


def weights_at(name: str) -> Path:
    """A weights file or folder: as named (relative paths start at the repository root), or `owner/name[/inside]` of the
    hub, looked for in the mirror, in the cache and in the hub's own cache. Nothing is downloaded.

    Raises BenchError with what to type when it is not on this machine.
    """
    named = ROOT / Path(name).expanduser()
    if os.path.exists(named):
        return named
    for place in (*(folder / name for folder in weights_folders()), _in_hub_cache(name)):
        if place is not None and place.exists():
            return place
    raise BenchError(f"The weights {name} are not on this machine; {_remedy(name)}.")


def _in_hub_cache(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    hub = HUB_NAME.fullmatch(name)
    if hub is None:
        return None
    repo, inside = hub["repo"], hub["inside"] or ""
    wanted = (inside, f"{inside}/config.json", f"{inside}/tokenizer_config.json") if inside else ("config.json",)
    for file in wanted:
        found = try_to_load_from_cache(repo, file)
        if isinstance(found, str):
            return Path(found) if file == inside else Path(found).parent
    return None


def _remedy(name: str) -> str:
    """How weights come to be: by our own recipe, or from the hub."""
    own = PurePosixPath("bench/mini/weights")
    if own in PurePosixPath(name).parents:
        stage = PurePosixPath(name).relative_to(own).parts[0]
        made = f"python -m bench.mini.recipe --out DIR --stages world,{stage}"
        return f"type {made} and copy DIR/weights/{stage} to {own}"
    hub = HUB_NAME.fullmatch(name)
    if hub is None:
        return "correct the path"
    only = f" --include '{hub['inside']}*'" if hub["inside"] else ""
    return f"on one with network type hf download {hub['repo']}{only} --local-dir $BENCH_MIRROR/weights/{hub['repo']}"


def hub_command(entry: Mapping[str, Any]) -> str:
    """How to stage a hub repository on a machine with network, for one without."""
    return f"HF_HOME=<folder> hf download {entry['hub']} (then copy <folder> over and set HF_HOME and HF_HUB_OFFLINE=1)"


def weights_as_file(id: str) -> File:
    """A plain weights file of the registry as a file to stage."""
    entry = _entry(id)
    return File(f"weights/{entry['file']}", entry["url"], entry.get("sha256"), licence=entry["licence"])


# --- command line ------------------------------------------------------------------------------------------------


def show() -> None:
    """Print every dataset and every entry of the weights registry with what is on this machine."""
    from bench.data import datasets as data

    for name in data.names():
        spec = data.describe(name)
        wanted = data.files(spec)
        here = sum(file.place() is not None for file in wanted)
        state = f"{here} of {len(wanted)} files here" if wanted else "drawn by the project, or your own images"
        print(f"{name:32} {state:42} {spec['licence'] or ''}")
    print()
    show_weights()


def weights_state(id: str) -> tuple[str, str]:
    """One of here, wrong, absent, hub, and a sentence about it; what is here is verified. For people."""
    entry = _entry(id)
    if "hub" in entry:
        return "hub", hub_command(entry)
    if _weights_place(entry) is None:
        return "absent", f"from {entry['url']}"
    try:
        place = weights_file(id)
    except BenchError as error:
        return "wrong", str(error)
    known = "sha256 as published" if entry["sha256"] else f"no published sha256, {sha256(place)[:16]}... here"
    return "here", f"{place} ({known})"


def show_weights() -> None:
    for id, entry in weights().items():
        state, about = weights_state(id)
        size = "" if "hub" in entry else f"{human(entry.get('size'))}; "
        print(f"{id:26} {state:7} {entry['used_by']}; {size}{entry['licence']}; read by {entry['loader']}")
        print(f"{'':34} {about}")


def check(file: File) -> Path:
    """Like `stage`, but only look. Raises BenchError when the file is absent or wrong."""
    place = file.place()
    if place is None:
        raise BenchError(f"{file.path} is not on this machine.")
    verify(place, file.sha256 or checksums().get(file.path), "delete it and fetch it again.")
    return place


def fetch_dataset(name: str, act: Callable[[File], Path]) -> None:
    """Stage or check every file of a dataset, its licence shown first. Raises BenchError."""
    from bench.data import datasets as data

    spec = data.describe(name)
    wanted = data.files(spec)
    print(f"{name}: {len(wanted)} files. Licence: {spec['licence']}. Source: {spec['source']}")
    for file in wanted:
        print(f"  {act(file)}")


def fetch_weights(id: str, act: Callable[[File], Path]) -> None:
    """Stage or check one file of the registry; of a hub repository, print the command. Raises BenchError."""
    entry = _entry(id)
    if "hub" in entry:
        print(f"{id}: {hub_command(entry)}")
        return
    print(f"{id}: {human(entry.get('size'))}. Licence: {entry['licence']}. Source: {entry['url']}")
    here = _weights_place(entry)
    print(f"  {weights_file(id) if here else act(weights_as_file(id))}")


def _tasks(what: Sequence[str]) -> list[tuple[Callable, str]]:
    """(function, name) for everything asked for; `all` is every dataset, `weights all` every file of the registry."""
    from bench.data import datasets as data

    if what[0] == "weights":
        ids = list(weights()) if "all" in what[1:] else [id for name in what[1:] for id in _named_weights(name)]
        return [(fetch_weights, id) for id in dict.fromkeys(ids)]
    names = data.names() if "all" in what else what
    return [(fetch_dataset, name) for name in names]


def _named_weights(name: str) -> list[str]:
    """The weights of this id, or all that a set of metrics names (conf/metrics/<name>.yaml)."""
    path = ROOT / "conf" / "metrics" / f"{name}.yaml"
    if name in weights() or not path.is_file():
        return [name]
    words = re.findall(r"\w+", path.read_text())
    return [id for id in weights() if id in words]


def main(argv: Sequence[str] | None = None) -> int:
    """0 when everything asked for is here, 1 otherwise; one failure does not keep the others from being staged."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.fetch", description="Stage datasets and weights on this machine and verify them."
    )
    parser.add_argument(
        "what", nargs="*", help="datasets, or all; or: weights [ID|METRICS ...|all]; nothing lists what there is"
    )
    parser.add_argument("--check", action="store_true", help="download nothing, only verify what is here")
    args = parser.parse_args(argv)
    failures = 0
    if args.what in ([], ["weights"]):
        show() if not args.what else show_weights()
        return 0
    for task, name in _tasks(args.what):
        try:
            task(name, check if args.check else stage)
        except BenchError as error:
            failures += 1
            print(f"bench.fetch: {name}: {error}", file=sys.stderr)
    return 1 if failures else 0
