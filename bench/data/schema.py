"""What a dataset.yaml says: its keys with their defaults, its bases merged in, and the datasets that there are.

The keys are explained in datasets/README.md. Nothing in this room imports torch.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.contracts import BenchError
from bench.data.style_folder import laid_out
from bench.data.templates import refuse_interpolation
from bench.paths import ROOT

FOLDER = ROOT / "datasets"
CONTROLS = 8
KEYS: dict[str, Any] = {  # every key of a dataset.yaml with its default
    "name": None,
    "version": 1,
    "licence": None,
    "source": None,
    "style_words": None,
    "noun": None,
    "caption": "a photo of a {noun}",
    "prompts": (),
    "seeds": (0, 1),
    "root": None,
    "pair": None,
    "references": None,
    "person": None,
    "background": None,
    "person_nouns": (),
    "auxiliary": None,
    "reference_set": None,
    "controls": ("scenes",),
    "oracle": None,
    "files": None,
    "rendered": None,
}
FOLDERS = ("references", "person", "background", "auxiliary", "reference_set")  # roles of images, by folder or list
PLAIN_TEXT, TABLES = ".txt", (".csv", ".tsv")  # endings of files of prompts
SCENES, ALL = "scenes", "all"  # words in `controls` and in a role


@functools.cache
def names() -> list[str]:
    """Names of all datasets, sorted; a nested folder gives `dreambooth/duck_toy`."""
    return sorted(path.parent.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("dataset.yaml"))


def describe(name: str) -> dict[str, Any]:
    """The dataset.yaml with its bases merged in, and every known key present. Raises BenchError."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), 3) or names()
        raise BenchError(f"no dataset is called {name!r}; did you mean {', '.join(near)}? (folders of datasets/)")
    spec = {**json.loads(json.dumps(KEYS)), **_merged(FOLDER / name / "dataset.yaml")}
    spec["name"] = name
    return completed(spec)


@functools.cache
def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        spec = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise BenchError(f"{path} cannot be read as YAML ({error}); correct it.") from error
    refuse_interpolation(spec, path)
    return spec


def _merged(path: Path) -> dict[str, Any]:
    """One yaml over those that its `base` names (paths relative to it; the later wins)."""
    own = dict(_yaml(path))
    bases = own.pop("base", [])
    spec: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        spec = _over(spec, _merged((path.parent / base).resolve()))
    return _over(spec, own)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`; mappings are merged, everything else is replaced."""
    both = dict(below)
    for key, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = _over(both[key], value) if nested else value
    return both


def completed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with defaults and the folders of `root` filled in. Raises BenchError for unknown keys, wrong kinds."""
    spec = {**KEYS, **spec}
    for key in spec:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(KEYS)}."
            raise BenchError(f"dataset {spec['name']} has the unknown key {key!r}; {hint}")
    if not spec["noun"] or not isinstance(spec["noun"], str):
        raise BenchError(f"dataset {spec['name']} has no class word; type dataset.noun=dog.")
    spec["prompts"] = _from_a_file(spec["prompts"])
    if prompt_table(spec):
        _a_table(spec)
    else:
        _a_list(
            spec,
            "prompts",
            str,
            "dataset.prompts=['a photo of a cat','a photo of a car'] or dataset.prompts=prompts.txt",
        )
    _a_list(spec, "seeds", int, "dataset.seeds=[0,1]")
    return laid_out(spec)


def _a_list(spec: Mapping[str, Any], key: str, kind: type, example: str) -> None:
    value = spec[key]
    if not isinstance(value, (list, tuple)) or not value or not all(type(item) is kind for item in value):
        raise BenchError(f"dataset {spec['name']} has {key}: {value!r}; a list is needed, type {example}.")


def _from_a_file(prompts: Any) -> Any:
    """`prompts` as it is, or, where it is the name of a file, as the table that the file holds."""
    if not isinstance(prompts, str):
        return prompts
    ending = Path(prompts).suffix.lower()
    column = {} if ending == PLAIN_TEXT else {"column": "prompt"}
    return {"file": prompts, **column} if ending in (PLAIN_TEXT, *TABLES) else prompts


def prompt_table(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """`prompts` where it names a file {file, column, seeds, left_out}; no column: one prompt per line."""
    return spec["prompts"] if isinstance(spec["prompts"], Mapping) else {}


def _a_table(spec: Mapping[str, Any]) -> None:
    table = prompt_table(spec)
    file, column = table.get("file"), table.get("column")
    plain = isinstance(file, str) and Path(file).suffix.lower() == PLAIN_TEXT and set(table) == {"file"}
    known = set(table) <= {"file", "column", "seeds", "left_out"} and isinstance(file, str) and isinstance(column, str)
    if not (plain or known):
        raise BenchError(
            f"dataset {spec['name']} has prompts: {dict(table)!r}; a list is needed, or a table as in "
            "prompts: {file: prompts.csv, column: prompt, seeds: seed} (seeds may be left out; datasets/README.md), "
            "or prompts: prompts.txt with one prompt per line."
        )
