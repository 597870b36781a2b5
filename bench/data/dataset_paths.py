"""Relative paths in a dataset.yaml start at the yaml that names them, those of the command line where you stand.

A record names files of the folders of datasets by `datasets/<name>/<file>`, so that it can be read on another machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

KEYS = ("root", "pair", "references", "person", "background", "auxiliary", "reference_set")  # that hold paths
WORDS = ("all",)  # of a role: every staged image
PLAIN_TEXT, TABLES = ".txt", (".csv", ".tsv")  # endings of files of prompts
PREFIX = "datasets/"  # of a path in a record


def anchored(spec: Mapping[str, Any], folder: Path, staged: Container[str]) -> dict[str, Any]:
    """The settings of one yaml in `folder`, its paths absolute. Names of `staged` files stay as they are."""

    def anchor(path: str) -> str:
        named = path not in staged and path not in WORDS and not path.startswith("~")
        return str(folder / path) if named else path

    return _with_paths(spec, anchor)


def portable(spec: Mapping[str, Any], folders: Iterable[Path]) -> dict[str, Any]:
    """The settings of a dataset with each path into the `folders` of datasets written as `datasets/<name>/<file>`.

    Other paths stay as they are, and so do those that `found` would take for another file.
    """
    tops = [top for folder in folders for top in (folder, Path(os.path.realpath(folder)))]

    def shortened(path: str) -> str:
        for top in tops if os.path.isabs(path) else ():
            if Path(path).is_relative_to(top):
                short = PREFIX + Path(path).relative_to(top).as_posix()
                place = _found(short, tops)
                return short if not os.path.exists(place) or _same(place, path) else path
        return path

    return _with_paths(spec, shortened)


def found(spec: Mapping[str, Any], folders: Iterable[Path]) -> dict[str, Any]:
    """The settings of a dataset with each `datasets/<name>/<file>` where it lies on this machine."""
    tops = list(folders)
    return _with_paths(spec, lambda path: _found(path, tops))


def _found(path: str, folders: Iterable[Path]) -> str:
    """A path as it is where it exists from the working directory, else in the first of the folders that has it."""
    if not path.startswith(PREFIX) or os.path.exists(path):
        return path
    places = [str(folder / path.removeprefix(PREFIX)) for folder in folders]
    return next((place for place in places if os.path.exists(place)), path)


def _same(a: str, b: str) -> bool:
    return os.path.realpath(a) == os.path.realpath(b)


def _with_paths(spec: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """The settings with every path of an image role, and that of a file of prompts, replaced by change(path)."""

    def changed(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [changed(item) for item in value]
        return change(value) if isinstance(value, str) else value

    made = {key: changed(value) if key in KEYS else value for key, value in spec.items()}
    prompts = made.get("prompts")
    if isinstance(prompts, Mapping) and "file" in prompts:
        made["prompts"] = {**prompts, "file": changed(prompts["file"])}
    elif isinstance(prompts, str) and prompts.lower().endswith((PLAIN_TEXT, *TABLES)):
        made["prompts"] = change(prompts)
    return made
