"""Plain settings: their digest, and the objects that they describe."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import math
from collections.abc import Mapping
from typing import Any

from bench.choices import check_value
from bench.class_source import arguments
from bench.errors import BenchError
from bench.paths import PLUGGABLE, extend_packages


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


def check_finite(value: Any, at: str) -> None:
    """Raises BenchError for a number that is not finite anywhere in plain settings. `at` names them in errors."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_finite(item, f"{at}.{key}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_finite(item, at)
    elif isinstance(value, float) and not math.isfinite(value):
        raise BenchError(f"{at.lstrip('.')}={value} was requested; type a finite number.")


def finite(text: str) -> float:
    """A number of the command line, as argparse's `type`. Raises ValueError unless it is finite."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def check_declared(spec: Any, at: str, target: str = "") -> None:
    """Check plain settings against what the classes that they name take, as `construct` does later.

    Nothing is imported. `target` is the class where the settings name none. Raises BenchError.
    """
    if isinstance(spec, Mapping):
        name = spec.get("_target_", target)
        known = arguments(MOVED.get(name, name)) if isinstance(name, str) else {}
        for key, value in spec.items():
            if key in known:
                check_value(f"{at}.{key}", value, known[key])
            check_declared(value, f"{at}.{key}")
    elif isinstance(spec, (list, tuple)):
        for value in spec:
            check_declared(value, at)


def build(spec: Any, at: str = "") -> Any:
    """Turn {_target_: package.Class, ...} into an object, inner ones first. `at` names the settings in errors."""
    if isinstance(spec, Mapping):
        made = {key: build(value, f"{at}.{key}") for key, value in spec.items()}
        if "_target_" not in made:
            return made
        return construct(class_of(made.pop("_target_"), at), made, at)
    return [build(value, at) for value in spec] if isinstance(spec, (list, tuple)) else spec


MOVED = {"bench.image_encoder.ImageEncoder": "bench.adapters.image_encoder.ImageEncoder"}  # of older settings


def class_of(name: Any, at: str = "") -> Any:
    """What a dotted name stands for. Raises BenchError where there is nothing of that name."""
    name = MOVED.get(name, name) if isinstance(name, str) else name
    module, _, attribute = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    try:
        if not module:
            raise ImportError("it is no dotted name")
        if module.partition(".")[0] in PLUGGABLE:
            extend_packages()
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise BenchError(
            f"{at.lstrip('.') or 'the settings'}._target_={name} was requested, which cannot be imported ({error}); "
            "type the dotted name of a class, for example methods.pair.PairCustomization."
        ) from error


def construct(kind: Any, values: Mapping[str, Any], at: str) -> Any:
    """kind(**values). Raises BenchError for a key that it does not know, and for a value that is not of the plain types
    or single values of its annotation."""
    at, known = at.lstrip(".") or kind.__name__, _parameters(kind)
    check_finite(values, at)
    strange = sorted(set(values) - set(known))
    if strange and not any(one.kind is one.VAR_KEYWORD for one in known.values()):
        raise BenchError(f"{at}.{strange[0]} was requested; {at} knows {', '.join(known) or 'no settings'}.")
    for name, value in values.items():
        annotation = known[name].annotation if name in known else None
        if isinstance(annotation, str):
            check_value(f"{at}.{name}", value, annotation)
    return kind(**values)


def _parameters(kind: Any) -> dict[str, inspect.Parameter]:
    """What a class or a function takes; a class that hands keywords on to its base takes those of the base, too."""
    known = dict(inspect.signature(kind).parameters)
    for base in kind.__mro__[1:-1] if isinstance(kind, type) else ():
        more = [name for name, one in known.items() if one.kind is one.VAR_KEYWORD]
        if more and "__init__" in vars(base):
            del known[more[0]]
            known = {**inspect.signature(base).parameters, **known}
    return known
