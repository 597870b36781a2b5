"""Relative paths in a dataset.yaml start at the yaml that names them, those of the command line where you stand."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

KEYS = ("root", "pair", "references", "person", "background", "auxiliary", "reference_set")  # that hold paths
WORDS = ("all",)  # of a role: every staged image


def anchored(spec: Mapping[str, Any], folder: Path, staged: Container[str]) -> dict[str, Any]:
    """The settings of one yaml in `folder`, its paths absolute. Names of `staged` files stay as they are."""

    def anchor(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [anchor(item) for item in value]
        named = isinstance(value, str) and value not in staged and value not in WORDS and not value.startswith("~")
        return str(folder / value) if named else value

    found = {key: anchor(value) if key in KEYS else value for key, value in spec.items()}
    prompts = found.get("prompts")
    if isinstance(prompts, Mapping) and "file" in prompts:
        found["prompts"] = {**prompts, "file": anchor(prompts["file"])}
    return found
