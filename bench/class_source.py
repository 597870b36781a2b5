"""Classes as their source says, without importing them: constants, and the annotations of what they take."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench import paths


def _file(target: str) -> Path:
    """The source of a class, the shipped one first."""
    *module, _ = target.split(".")
    folders = [paths.ROOT / module[0], *filter(None, [paths.own(module[0])])]
    places = [folder.joinpath(*module[1:]) for folder in folders]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return next((file for file in files if file.is_file()), files[0])


def is_own(target: str) -> bool:
    return paths.ROOT / target.partition(".")[0] not in _file(target).parents


def _body(target: str) -> list[ast.stmt]:
    """The statements of the file of a class; none where it cannot be read."""
    try:
        return ast.parse(_file(target).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return []


def class_source(target: str) -> tuple[ast.ClassDef, dict[str, ast.ClassDef]] | None:
    """The class as its source says, and all classes of that file by name; None where it cannot be read."""
    classes = {node.name: node for node in _body(target) if isinstance(node, ast.ClassDef)}
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


# --- what a class takes


def arguments(target: str) -> Mapping[str, str]:
    """Name -> annotation of what a class takes: the arguments of its __init__, or the fields of a dataclass.

    A class without either, or with `**options` in its __init__, takes what its bases take. Nothing where the source
    is not that of this project or of the user's own plug-in folders.
    """
    parts = target.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        return {}
    try:
        return _arguments(target, Path.cwd())  # where the user's own folders lie
    except RecursionError:  # classes or imports in a circle
        return {}


@functools.lru_cache(maxsize=1024)
def _arguments(target: str, here: Path) -> Mapping[str, str]:
    found = _defined(target)
    if found is None:
        return {}
    home, node = found
    own, more = _own_arguments(node)
    names = [base.id for base in node.bases if isinstance(base, ast.Name)] if more else []
    bases = [arguments(_origin(home, name)) for name in names]
    return MappingProxyType({name: text for known in (*bases, own) for name, text in known.items()})


def _own_arguments(node: ast.ClassDef) -> tuple[dict[str, str], bool]:
    """Those of the class itself, and whether it also takes what its bases take."""
    for line in node.body:
        if isinstance(line, ast.FunctionDef) and line.name == "__init__":
            taken = [*line.args.args, *line.args.kwonlyargs]
            found = {one.arg: ast.unparse(one.annotation) for one in taken if one.annotation}
            return found, line.args.kwarg is not None
    decorators = {ast.unparse(one).partition("(")[0] for one in node.decorator_list}
    return dict(_fields(node)) if "dataclass" in decorators else {}, True


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            text = ast.unparse(line.annotation)
            taken = not isinstance(line.value, ast.Call) or "init=False" not in ast.unparse(line.value)
            if taken and not text.startswith("ClassVar"):
                yield line.target.id, text


def _defined(target: str) -> tuple[str, ast.ClassDef] | None:
    """The module that defines a class, and the class; None where no source of ours does."""
    home, _, name = target.rpartition(".")
    for node in _body(target):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return home, node
    origin = _origin(home, name)
    return _defined(origin) if origin != target else None


def _origin(home: str, name: str) -> str:
    """The dotted name under which a module imports a name from another one; its own where it imports none."""
    for node in _body(f"{home}.{name}"):
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return f"{node.module}.{alias.name}"
    return f"{home}.{name}"
