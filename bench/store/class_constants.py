"""Constants of plug-in classes, read from their source: nothing is imported."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from bench import paths


def _file(target: str) -> Path:
    """The source of a class, the shipped one first."""
    *module, _ = target.split(".")
    folders = [paths.ROOT / module[0], *filter(None, [paths.own(module[0])])]
    places = [folder.joinpath(*module[1:]).with_suffix(".py") for folder in folders]
    return next((place for place in places if place.is_file()), places[0])


def is_own(target: str) -> bool:
    return paths.ROOT / target.partition(".")[0] not in _file(target).parents


def class_source(target: str) -> tuple[ast.ClassDef, dict[str, ast.ClassDef]] | None:
    """The class as its source says, and all classes of that file by name; None where it cannot be read."""
    try:
        body = ast.parse(_file(target).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return None
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    found = classes.get(target.rpartition(".")[2])
    return (found, classes) if found else None


def constant(target: str, name: str) -> Any:
    """A constant of a class or of its bases in the same file; None where there is none."""
    found = class_source(target)
    waiting, classes = ([found[0]], found[1]) if found else ([], {})
    while waiting:
        node = waiting.pop(0)
        for line in node.body:
            names = [line.target] if isinstance(line, ast.AnnAssign) else getattr(line, "targets", [])
            if any(isinstance(one, ast.Name) and one.id == name for one in names):
                return _constant(line.value)  # type: ignore[attr-defined]
        waiting += [classes[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
    return None


def _constant(value: ast.expr) -> Any:
    """What a literal stands for, also in frozenset(...); None for anything that would have to be run."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "frozenset":
        return _constant(value.args[0]) if value.args else ()
    try:
        return ast.literal_eval(value)
    except ValueError:
        return None
