"""The shell command that makes a cell again, from the settings its record keeps."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from bench.cell import PARTS, SPEED, UNSET
from bench.settings import canonical
from bench.store.record import Record
from bench.training.settings import OPTIONS

SAFE = re.compile(r"[A-Za-z_][\w./-]*")
WORDS_OF_HYDRA = {"true", "false", "null", "inf", "nan"}


def command(record: Record) -> str | None:
    """`python -m bench ...` with every setting that differs from what the names alone give; None for an old record."""
    requested = record.config.get("requested")
    if not requested:
        return None
    names = {part: requested[part]["name"] for part in ("method", "dataset", "backbone")}
    default = defaults(*names.values())
    words = [f"{part}={name}" for part, name in names.items()] + [f"seed={record.config.get('seed', 0)}"]
    strengths = sorted({score["strength"] for score in record.scores if score.get("strength") is not None})
    words += [f"strength={value(strengths if len(strengths) > 1 else strengths[0])}"] if strengths else []
    for part in PARTS:
        words += _overrides(part, default.get(part, {}), _portable(part, requested[part]))
    return shlex.join(["python", "-m", "bench", *words])


@cache
def defaults(method: str, dataset: str, backbone: str) -> Mapping[str, Any]:
    """What these names alone compose to; nothing where one of them is gone from this version."""
    from bench.data import schema
    from bench.paths import configuration

    settings = [configuration(f"{group}/{name}.yaml") for group, name in (("method", method), ("backbone", backbone))]
    if dataset not in schema.names() or not all(path.is_file() for path in settings):
        return {}
    parts = {part: _composed(part, f"backbone={backbone}") for part in ("backbone", "trainer", "sampler")}
    return {"method": _composed("method", f"method={method}"), "dataset": _described(dataset), **parts}


@cache
def _composed(part: str, override: str) -> Mapping[str, Any]:
    return getattr(_cell(override), part)


@cache
def _cell(override: str) -> Any:
    from bench.compose import from_overrides

    return from_overrides(override)


def _described(dataset: str) -> Mapping[str, Any]:
    from bench.data import schema

    return json.loads(json.dumps(_portable("dataset", schema.describe(dataset))))


def _portable(part: str, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    from bench.data import schema

    return schema.portable(settings) if part == "dataset" else settings


def _overrides(path: str, default: Any, requested: Any) -> Iterator[str]:
    """Hydra overrides that turn `default` into `requested`, leaf by leaf."""
    if not (isinstance(default, Mapping) and isinstance(requested, Mapping) and default):
        if canonical(default) != canonical(requested):
            yield from _replaced(path, default, requested)
        return
    for key, wanted in requested.items():
        if key in default:
            yield from _overrides(f"{path}.{key}", default[key], wanted)
        else:
            yield f"{'++' if key in (*OPTIONS, *UNSET) else '+'}{path}.{key}={value(wanted)}"
    yield from (f"~{path}.{key}" for key in default if key not in requested and key not in SPEED)


def _replaced(path: str, default: Any, requested: Any) -> list[str]:
    """Hydra merges nothing into a list and no list into a mapping, so the key goes and comes back."""
    if isinstance(default, Sequence) and not isinstance(default, str) and isinstance(requested, Mapping):
        return [f"~{path}", f"+{path}={value(requested)}"]
    return [f"{path}={value(requested)}"]


def value(plain: Any) -> str:
    """A plain value in Hydra's override grammar."""
    if isinstance(plain, Mapping):
        return "{" + ",".join(f"{key}:{value(item)}" for key, item in plain.items()) + "}"
    if isinstance(plain, Sequence) and not isinstance(plain, str):
        return "[" + ",".join(map(value, plain)) + "]"
    if isinstance(plain, str):
        return plain if SAFE.fullmatch(plain) and plain.lower() not in WORDS_OF_HYDRA else _quoted(plain)
    return json.dumps(plain)


def _quoted(text: str) -> str:
    """In single quotes; a backslash needs doubling only before a quote."""
    body = re.sub(r"(\\*)(')", lambda found: found[1] * 2 + "\\'", text)
    ending = re.search(r"\\*$", body)
    return "'" + body + (ending[0] if ending else "") + "'"
