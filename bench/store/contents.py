"""What a finished cell's folder must hold: the digests of its adapters and images, kept in its record.

`config["files"]` of a record has a sha256 for each file below adapters/ and for each folder of images, over its names
and bytes, and an entry without a digest for per_image.csv, which grows. Records of older versions lack it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.errors import BenchError

KEY = "files"  # in a record's config
IMAGES = ("images", "class_images")
GROWING = ("per_image.csv",)


def contents(folder: Path) -> dict[str, str]:
    """Path below the folder of a cell -> sha256, or nothing for a file that grows."""
    adapters = [path for path in (folder / "adapters").rglob("*") if path.is_file() and not path.name.startswith(".")]
    found = {path.relative_to(folder).as_posix(): digest(path) for path in sorted(adapters)}
    for group in IMAGES:
        folders = [path for path in (folder / group).glob("[!.]*") if path.is_dir()]
        found |= {path.relative_to(folder).as_posix(): digest(path) for path in sorted(folders)}
    return found | {name: "" for name in GROWING if (folder / name).is_file()}


def digest(path: Path) -> str:
    """sha256 of a file, or of the names and bytes of a folder's images."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    whole = hashlib.sha256()
    for image in sorted(path.glob("*.png")):
        whole.update(f"{image.name} {digest(image)}\n".encode())
    return whole.hexdigest()


def check(folder: Path, config: Mapping[str, Any], part: str) -> None:
    """Raises BenchError unless a part that the record lists, a path or all below "adapters/", is there as it was.

    `config` is the record's.
    """
    for path, expected in (config.get(KEY) or {}).items():
        if path != part and not (part.endswith("/") and path.startswith(part)):
            continue
        place = folder / path
        if not place.exists():
            raise _fault(place, "is missing")
        if expected and digest(place) != expected:
            raise _fault(place, "is not as it was when the cell was recorded")


def _fault(place: Path, what: str) -> BenchError:
    return BenchError(
        f"{place} {what}, so nothing is drawn or scored with it; put it back or run the cell again with mode=force."
    )


def extended(folder: Path, config: Mapping[str, Any], drawn: set[str]) -> dict[str, str]:
    """The entry of a record whose cell got more: known digests stay, but for folders of images that were drawn anew."""
    known = config.get(KEY) or {}
    return {**contents(folder), **{path: value for path, value in known.items() if path not in drawn}}
