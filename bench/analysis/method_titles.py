"""Full names of methods for tables, and which of them are bounds of the scale. Read as text: no method is imported."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from bench import paths
from bench.class_source import constant

NAME = re.compile(r"[\w.+-]+")  # of a method; anything else in a record is no name of a file
BOUNDS = ("floor", "ceiling")  # values of `Method.bound`


@functools.cache
def _settings(name: str) -> Mapping[str, Any]:
    """conf/method/<name>.yaml; nothing where there is none."""
    import yaml

    if not NAME.fullmatch(name):
        return {}
    file = paths.configuration(f"method/{name}.yaml")
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, Mapping) else {}


def title(name: str) -> str:
    """ "Pair Customization" for pair, as its yaml says; else the name itself."""
    return str(_settings(str(name)).get("title") or name)


@functools.cache
def bound(name: str) -> str:
    """`Method.bound` of the method's class: "floor", "ceiling", or "" for one that competes."""
    target = _settings_with_base(str(name)).get("_target_")
    found = constant(target, "bound") if isinstance(target, str) else None
    return found if found in BOUNDS else ""


def _settings_with_base(name: str) -> Mapping[str, Any]:
    """The same over what its `defaults` name."""
    own = _settings(name)
    bases = [base for base in own.get("defaults") or () if isinstance(base, str) and base != "_self_"]
    merged: dict[str, Any] = {}
    for base in bases:
        merged |= _settings_with_base(base)
    return {**merged, **own}
