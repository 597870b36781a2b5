"""The identity of a dataset: a hash of its settings and contents."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.contracts import BenchError
from bench.data.files import File, sha256
from bench.data.schema import FOLDER, FOLDERS, SCENES, completed, prompt_table
from bench.data.sources import control_datasets, first_files, image_roles, own_captions, own_files
from bench.paths import ROOT

NOT_IDENTITY = ("licence", "source", "root", "files", "pair", *FOLDERS)  # of the last ones, contents count


def identity(spec: Mapping[str, Any]) -> str:
    """Hash of 12 hex digits over settings, image contents and, where something is drawn, the source that draws it.

    Paths do not count, contents do. A staged file that is not here counts with its published sha256, so a run has its
    name before its data are staged.
    """
    spec = completed(spec)
    settings = {key: value for key, value in spec.items() if key not in NOT_IDENTITY}
    artist = settings.pop("drawings")
    if prompt_table(spec):
        settings["prompts"] = {key: value for key, value in prompt_table(spec).items() if key != "file"}
    staged = own_files(spec)
    content = {
        role: [
            _digest(staged[name].place() if name in staged else Path(name).expanduser(), staged.get(name))
            for name in names
        ]
        for role, names in image_roles(spec).items()
    }
    controls = [
        _digest(file.place(), file) for other, count in control_datasets(spec) for file in first_files(other, count)
    ]
    scenes = SCENES in (spec["controls"] or ()) and not spec["drawings"]
    drawn = spec["rendered"] or spec["oracle"] or scenes
    parts: list[Any] = [settings, content, controls, drawing_source() if drawn else None]
    captions = own_captions(spec)
    if captions:  # where there are none the hash is that of earlier versions
        places = [Path(name).expanduser() for names in image_roles(spec).values() for name in names]
        parts.append([[i, captions[place]] for i, place in enumerate(places) if place in captions])
    if artist:
        parts.append(artists_source(artist))
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _digest(place: Path | None, staged: File | None) -> str:
    if place and place.is_file():
        return sha256(place)
    return (staged and staged.sha256) or "absent"


@functools.cache
def drawing_source() -> str:
    """Hash of the source that draws scenes and styles."""
    folder = ROOT / "bench" / "mini"
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in ("scenes.py", "styles.py"))).hexdigest()


def artists_source(plan: Mapping[str, Any]) -> list[Any]:
    """The settings of an artist's drawings, and hashes of the sheets and of the source that composes them.

    The folder of SVG files does not count: its version is the sheet's. Raises BenchError unless both sets are named.
    """
    if not isinstance(plan, Mapping) or not all(isinstance(plan.get(key), str) for key in ("artist", "near")):
        raise BenchError(f"A dataset has drawings: {str(plan)[:200]!r}; give artist and near, the names of two sets.")
    settings = {key: value for key, value in plan.items() if key != "packages"}
    sheets = FOLDER / "emoji" / "sheets"
    places = [sheets / f"{plan[key]}.{ending}" for key in ("artist", "near") for ending in ("json", "webp")]
    code = [ROOT / "bench" / name for name in ("data/emoji.py", "mini/drawings.py", "mini/pictures.py")]
    shared = [sheets.parent / "things.yaml", sheets / "fluent-emoji.webp", *code]
    return [settings, [sha256(place) if place.is_file() else "absent" for place in (*places, *shared)]]
