"""A cell: one method, dataset, backbone, seed and their settings; the unit of work and of the table."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from bench.choices import MissingMetrics, Mode
from bench.settings import MOVED, build, check_finite, digest

BACKBONE = ("_target_", "name", "resolution", "dtype")  # what images depend on, besides the weights; not the device
PARTS = ("method", "dataset", "backbone", "trainer", "sampler")  # of a cell's settings, those on which images depend
SPEED = ("compile", "preview_every")  # keys of a trainer's yaml on which images do not depend
UNSET = ("combine", "template", "negative")  # keys of a method's yaml that are no part of a cell while they are null
NOT_IDENTITY = (
    "title",
    "strength",
    "strength_sweep",
    "curve",
    "deviations",
)  # of a method's yaml: no image depends on them
FILES = ("file", "files", "path", "text_encoder", "tokenizer")  # keys of a method's yaml that name files or folders
FILE_ENDINGS = ("_file", "_files", "_path")  # of such keys


@dataclass(frozen=True)
class Cell:
    """The settings of one cell, as plain dictionaries; `_target_` names a class, the other keys its arguments."""

    method: Mapping[str, Any]
    dataset: Mapping[str, Any]
    backbone: Mapping[str, Any]
    trainer: Mapping[str, Any]
    sampler: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]
    tracker: Mapping[str, Any]
    seed: int
    strengths: tuple[float, ...]  # one table row each, from one training run
    results: Path = Path("results")
    missing_metrics: MissingMetrics = "fail"
    mode: Mode = "cached"
    group: str | None = None
    pack: int | str = "auto"  # cells trained together; their images do not depend on it
    fairness: Mapping[str, Any] = field(default_factory=dict)  # see bench/fairness.py; not part of the identity

    def __post_init__(self) -> None:
        for part in (*PARTS, "metrics", "tracker", "fairness"):
            check_finite(getattr(self, part), part)
        check_finite(self.strengths, "strength")

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that the images depend on."""
        from bench import backbones
        from bench.data import identity

        weights = backbones.identity(dict(self.backbone))
        method = {key: value for key, value in self.method.items() if key not in NOT_IDENTITY}
        files = contents(method)
        return {
            "method": method | ({"files": files} if files else {}),
            "dataset": {"name": self.dataset["name"], "content": identity.identity(dict(self.dataset))},
            "backbone": {key: self.backbone.get(key) for key in BACKBONE} | {"weights": weights},
            "trainer": {key: value for key, value in self.trainer.items() if key not in SPEED},
            "sampler": dict(self.sampler),
            "seed": self.seed,
        }

    def measure(self, name: str, strength: float) -> str:
        """What names one metric with its settings, version and weights at one strength, to see whether a record has it.

        "?" stands for version and weights where the weights are not on this machine.
        """
        known = identity(json.dumps(self.metrics[name], sort_keys=True, default=str))
        return f"{name} {digest(self.metrics[name])} {digest(known) if known else '?'} {strength:g}"

    def with_seed(self, seed: int, mode: Mode | None = None) -> Cell:
        """The same cell with another seed; what they share of the identity is not worked out again."""
        other = replace(self, seed=seed, mode=mode or self.mode)
        vars(other)["identity"] = {**self.identity, "seed": seed}
        return other

    @cached_property
    def run_id(self) -> str:
        """Readable words and a digest of the identity by logical names. A cell stored under an older id keeps it."""
        words = [self.method["name"], self.dataset["name"].replace("/", "."), self.backbone["name"], f"s{self.seed}"]
        today, *older = ("-".join([*words, digest(found)]) for found in identities(self.identity))
        stored = (old for old in older if (self.results / old / "record.json").is_file())
        return next(stored, today) if not (self.results / today / "record.json").is_file() else today


def identities(identity: Mapping[str, Any]) -> Iterator[Any]:
    """What a run id is a digest of: classes and files by logical names; before, with import paths, also older ones."""
    files = identity["method"].get("files", {})

    def logical(key: str, text: str) -> str:
        return text.rpartition(".")[2] if key == "_target_" else files.get(text, text)

    yield with_texts({**identity, "method": {**identity["method"], "files": None}}, logical)
    yield identity
    older = {today: old for old, today in MOVED.items()}
    yield with_texts(identity, lambda key, text: older.get(text, text))


def with_texts(value: Any, change: Callable[[str, str], str], key: str = "") -> Any:
    """Nested settings with every text replaced by change(its key, the text)."""
    if isinstance(value, Mapping):
        return {name: with_texts(item, change, name) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_texts(item, change, key) for item in value]
    return change(key, value) if isinstance(value, str) else value


def default_strength(method: Mapping[str, Any]) -> float:
    """The strength that a method's yaml names; 1 where it has no knob."""
    return float(method.get("strength", 1.0))


def default_strength_of(config: Mapping[str, Any]) -> float:
    """The same from the configuration that a record keeps."""
    return default_strength(config.get("requested", {}).get("method", {}))


@lru_cache(maxsize=256)
def identity(metric: str) -> tuple[str, ...]:
    """What the numbers of a metric (the JSON of its settings) depend on; nothing where its weights are missing."""
    made = build(json.loads(metric))
    return () if made.missing() else tuple(made.identity())


def contents(settings: Any) -> dict[str, str]:
    """A digest of each file or folder that a setting declares by its key: FILES, or an ending of FILE_ENDINGS.

    Relative paths start at the repository root. A setting of another key is text, even where it is a path.
    """
    from bench.data.files import sha256
    from bench.paths import located

    found = {}
    for name in sorted(set(_declared(settings))):
        place = located(name)
        if os.path.exists(place):
            files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
            found[name] = digest([sha256(file) for file in files], 16)
    return found


def _declared(value: Any, is_file: bool = False) -> Iterator[str]:
    """Texts that stand under a key of files, at any depth."""
    if isinstance(value, str):
        yield from [value] if is_file and value.strip() else []
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _declared(item, str(key) in FILES or str(key).endswith(FILE_ENDINGS))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _declared(item, is_file)
