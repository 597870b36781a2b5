"""Captions of single images, as other trainers read them; an image without one has the dataset's caption.

    dog.txt beside dog.jpg                   one line, the caption
    metadata.jsonl in the folder             {"file_name": "dog.jpg", "text": "a dog on the moon"} in each line
    metadata.csv                             columns file_name and text

The text may also be called caption or prompt. Captions are literal: no braces are filled in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.data.image_folder import CAPTION, METADATA
from bench.data.text_tables import header_of, lines_of, rows_of, text_of
from bench.errors import BenchError

FILE, TEXTS = "file_name", ("text", "caption", "prompt")


def captions_of(images: Iterable[Path]) -> dict[Path, str]:
    """The captions of those images that have one of their own. Raises BenchError with file and line."""
    images = list(images)
    tables = {folder: _table(folder) for folder in dict.fromkeys(image.parent for image in images)}
    found: dict[Path, str] = {}
    for image in images:
        beside, listed = _beside(image), tables[image.parent].get(image.name)
        if beside is not None and listed is not None and beside != listed:
            raise BenchError(
                f"{image} has two captions, {beside!r} in its {CAPTION} file and {listed!r} in the folder's metadata; "
                "delete one of them."
            )
        own = listed if beside is None else beside
        if own is not None:
            found[image] = own
    return found


def _beside(image: Path) -> str | None:
    """The caption in the text file of the image's name."""
    file = image.with_suffix(CAPTION)
    if not file.is_file():
        return None
    lines = lines_of(file, "caption")
    if len(lines) > 1:
        raise BenchError(f"{file} has {len(lines)} lines; a caption is one line.")
    return lines[0]


def _table(folder: Path) -> Mapping[str, str]:
    """File name -> caption, from the folder's metadata."""
    files = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(files) > 1:
        raise BenchError(f"{folder} holds {' and '.join(METADATA)}; delete one of them.")
    found: dict[str, str] = {}
    for file in files:
        for line, name, text in _jsonl(file) if file.suffix == ".jsonl" else _csv(file):
            place = f"line {line} of {file}"
            if not (folder / name).exists():
                raise BenchError(f"{place} names {name}, which is not there; correct the name or delete the line.")
            if found.setdefault(name, text) != text:
                raise BenchError(f"{place} has a second caption for {name}; delete one of them.")
    return found


def _csv(file: Path) -> list[tuple[int, str, str]]:
    header = header_of(file)
    column = next((name for name in TEXTS if name in header), TEXTS[0])
    return [(line, row[FILE].strip(), row[column].strip()) for line, row in rows_of(file, [FILE, column])]


def _jsonl(file: Path) -> list[tuple[int, str, str]]:
    lines = enumerate(text_of(file).split("\n"), start=1)
    return [(number, *_entry(line, f"line {number} of {file}")) for number, line in lines if line.strip()]


def _entry(line: str, place: str) -> tuple[str, str]:
    """File name and caption of one line of JSON. Raises BenchError."""
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{place} is no JSON ({error}); correct it.") from error
    name = entry.get(FILE) if isinstance(entry, dict) else None
    text = next((entry[key] for key in TEXTS if key in entry), None) if name else None
    if not (isinstance(name, str) and isinstance(text, str) and text.strip()):
        raise BenchError(f'{place} has no caption; it must be like {{"{FILE}": "dog.jpg", "{TEXTS[0]}": "a dog"}}.')
    return name, text.strip()
