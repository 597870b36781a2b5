"""Plain settings: their digest, and the objects that they describe."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from bench.errors import BenchError


def digest(value: Any, length: int = 10) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def canonical(value: Any) -> str:
    """JSON that is the same text for the same settings: keys sorted, and 1.0 written as 1."""
    return json.dumps(_whole(value), sort_keys=True, default=str)


def _whole(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def build(spec: Any, at: str = "") -> Any:
    """Turn {_target_: package.Class, ...} into an object, inner ones first. `at` names the settings in errors."""
    if isinstance(spec, Mapping):
        made = {key: build(value, f"{at}.{key}") for key, value in spec.items()}
        if "_target_" not in made:
            return made
        target = made.pop("_target_")
        module, _, attribute = MOVED.get(target, target).rpartition(".")
        return construct(getattr(importlib.import_module(module), attribute), made, at)
    return [build(value, at) for value in spec] if isinstance(spec, (list, tuple)) else spec


MOVED = {"bench.image_encoder.ImageEncoder": "bench.adapters.image_encoder.ImageEncoder"}  # of older settings


KINDS: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool, "None": type(None)}
WORDS = {"int": "a whole number", "float": "a number", "str": "a word", "bool": "true or false", "None": "null"}


def construct(kind: Any, values: Mapping[str, Any], at: str) -> Any:
    """kind(**values). Raises BenchError for a key that it does not know, and for a value of a plainly typed field of a
    dataclass that is not of its type."""
    at, known = at.lstrip(".") or kind.__name__, inspect.signature(kind).parameters
    strange = sorted(set(values) - set(known))
    if strange and not any(one.kind is one.VAR_KEYWORD for one in known.values()):
        raise BenchError(f"{at}.{strange[0]} was requested; {at} knows {', '.join(known) or 'no settings'}.")
    for entry in fields(kind) if is_dataclass(kind) else ():
        names, value = str(entry.type).split(" | "), values.get(entry.name)
        if entry.name in values and set(names) <= set(KINDS) and not any(_is(value, name) for name in names):
            takes = " or ".join(WORDS[name] for name in names)
            raise BenchError(f"{at}.{entry.name}={value} was requested; it takes {takes}.")
    return kind(**values)


def _is(value: Any, name: str) -> bool:
    return isinstance(value, KINDS[name]) and (not isinstance(value, bool) or name == "bool")
