"""A dataset.yaml with its bases merged in. Whatever the file holds, it is read or refused in one sentence."""

from __future__ import annotations

import functools
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.data.dataset_paths import anchored
from bench.data.templates import refuse_interpolation
from bench.errors import BenchError
from bench.reading import Damaged, text

PLAIN = (str, int, float, bool, type(None))
DEEPEST = 50
MOST = 100_000  # values in a file, those behind aliases counted each time


@functools.cache
def read(path: Path) -> dict[str, Any]:
    """The mapping in one file. Raises BenchError."""
    import yaml

    try:
        words, loader = text(path), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        _check_depth(yaml.parse(words, loader))
        found = yaml.load(words, loader)
        found = {} if found is None else found
        if not isinstance(found, dict):
            raise Damaged(f"it holds {type(found).__name__}, not keys with values")
        _plain(found, [MOST])
    except (OSError, Damaged, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BenchError(f"{path} cannot be read as YAML ({reason}); correct it.") from error
    refuse_interpolation(found, path)
    return found


def merged(path: Path, staged: Container[str] | None = None, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """One file over those that its `base` names (paths relative to it; the later wins). Raises BenchError.

    With the names of `staged` files, every other path of an image role is absolute.
    """
    if path in above:
        raise BenchError(f"{above[0]} is its own base, by way of {above[-1]}; take one `base` out.")
    own = dict(read(path)) if staged is None else anchored(read(path), path.parent, staged)
    bases = own.pop("base", [])
    spec: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases or []:
        if not isinstance(base, str) or not base or "\0" in base:
            raise BenchError(f"{path} names the base {base!r:.100}; type the path of a yaml file, relative to it.")
        spec = over(spec, merged(_resolved(path.parent / base), staged, (*above, path)))
    return over(spec, own)


def over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`; mappings are merged, everything else is replaced."""
    both = dict(below)
    for key, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = over(both[key], value) if nested else value
    return both


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # a link to itself
        raise BenchError(f"{path} is named as a base and cannot be followed ({error}); correct it.") from error


def _check_depth(events: Iterable[Any]) -> None:
    """Raise Damaged for brackets in brackets without end: the parser in C would exhaust the stack."""
    from yaml import CollectionEndEvent, CollectionStartEvent

    depth = 0
    for event in events:
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > DEEPEST:
            raise Damaged(f"it is nested more than {DEEPEST} deep")


def _plain(value: Any, left: list[int]) -> None:
    """Raise Damaged for values that no setting takes: dates, binary data, sets, keys that are no words."""
    left[0] -= 1
    if left[0] < 0:
        raise Damaged(f"it holds more than {MOST:,} values")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise Damaged(f"its key {key!r:.60} is no word")
            _plain(item, left)
    elif isinstance(value, list):
        for item in value:
            _plain(item, left)
    elif not isinstance(value, PLAIN):
        raise Damaged(f"{str(value)[:60]!r} is a {type(value).__name__}, which no setting takes")
    elif isinstance(value, str):
        value.encode()
