"""The registry of weights (conf/weights.yaml), and where weights lie on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from bench.contracts import BenchError
from bench.data.files import File, checksums, human, inside, sha256, verify, whole
from bench.errors import Unavailable
from bench.paths import CONF, located, mirror_folder, own, staged_folder

UNITS = {"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
HUB_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(/(?P<inside>[\w./-]+))?")  # owner/name, or a place inside it


def weights() -> dict[str, dict[str, Any]]:
    """The registry `conf/weights.yaml`: id -> {file, url, sha256, size, licence, used_by} or {hub, ...}.

    A file of that name in the user's own `conf` adds entries.
    """
    folder = own("conf")
    mine = _entries(folder / "weights.yaml") if folder is not None and (folder / "weights.yaml").is_file() else {}
    return mine | _entries(CONF / "weights.yaml")


def _entries(file: Path) -> dict[str, dict[str, Any]]:
    import yaml

    return yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}


def entry_of(id: str) -> dict[str, Any]:
    table = weights()
    if id not in table:
        raise BenchError(f"no weights are called {id!r}; known are {', '.join(sorted(table))} (conf/weights.yaml).")
    return table[id]


def weights_folders() -> list[Path]:
    """Where weights are looked for, in this order: the mirror, the cache, torch's own cache."""
    mirror = mirror_folder()
    torch_home = Path(os.environ.get("TORCH_HOME") or Path.home() / ".cache" / "torch")
    return ([mirror / "weights"] if mirror else []) + [staged_folder() / "weights", torch_home / "hub" / "checkpoints"]


def weights_place(entry: Mapping[str, Any]) -> Path | None:
    """Where a file of the registry lies: in a folder of weights, or else in the hub's own cache."""
    names = [entry["file"], *entry.get("also", ())]
    places = (inside(folder, name) for folder in weights_folders() for name in names)
    cached = (_in_hub_cache(name) for name in names)
    return next((place for place in (*places, *cached) if place is not None and place.is_file()), None)


def weights_file(id: str) -> Path:
    """Path of a verified weights file of the registry; a Hugging Face repository is not a file.

    Raises BenchError with file name, source, size and how to stage it when it is absent, or when its sha256 is wrong.
    """
    entry = entry_of(id)
    if "hub" in entry:
        raise BenchError(f"{id} is the hub repository {entry['hub']}, not a file; stage it with: {hub_command(entry)}")
    place = weights_place(entry)
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
    named = located(name)
    if os.path.exists(named):
        return named
    for place in (*(folder / name for folder in weights_folders()), _in_hub_cache(name)):
        if place is not None and place.exists():
            return place
    raise Unavailable(f"The weights {name} are not on this machine; {_remedy(name)}.")


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
    revision = f" --revision {entry['revision']}" if "revision" in entry else ""
    after = "(then copy <folder> over and set HF_HOME and HF_HUB_OFFLINE=1)"
    return f"HF_HOME=<folder> hf download {entry['hub']}{revision} {after}"


def weights_as_file(id: str) -> File:
    """A plain weights file of the registry as a file to stage."""
    entry = entry_of(id)
    size = in_bytes(entry.get("size"))
    return File(f"weights/{entry['file']}", entry["url"], entry.get("sha256"), size, entry["licence"])


def in_bytes(size: int | str | None) -> int | None:
    """Bytes of a size in the registry. A rounded one ("4.7 MB") may be in either kind of unit; the larger is taken."""
    if not isinstance(size, str):
        return size
    amount, unit = size.split()
    return int(float(amount) * UNITS[unit])


def weights_state(id: str) -> tuple[str, str]:
    """One of here, wrong, absent, hub, and a sentence about it; what is here is verified. For people."""
    entry = entry_of(id)
    if "hub" in entry:
        return "hub", hub_command(entry)
    if weights_place(entry) is None:
        return "absent", f"from {entry['url']}"
    try:
        place = weights_file(id)
    except BenchError as error:
        return "wrong", str(error)
    known = "sha256 as published" if entry["sha256"] else f"no published sha256, {sha256(place)[:16]}... here"
    return "here", f"{place} ({known})"
