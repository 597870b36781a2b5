"""What a dataset.yaml says: its keys with their defaults, its bases merged in, and the datasets that there are.

The keys are explained in docs/datasets.md. Nothing in this room imports torch.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.contracts import BenchError
from bench.data import dataset_paths, dataset_yaml
from bench.data.dataset_paths import PLAIN_TEXT, TABLES
from bench.data.style_folder import laid_out
from bench.paths import DATASETS, own

FOLDER = DATASETS
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
    "drawings": None,
}
FOLDERS = ("references", "person", "background", "auxiliary", "reference_set")  # roles of images, by folder or list
YAML = "dataset.yaml"
SCENES, ALL = "scenes", "all"  # words in `controls` and in a role


@functools.cache
def names() -> list[str]:
    """Names of all datasets, sorted; a nested folder gives `dreambooth/duck_toy`."""
    return sorted({path.parent.relative_to(folder).as_posix() for folder in _folders() for path in _files(folder)})


def _files(folder: Path) -> Iterator[Path]:
    """No deeper than datasets/<folder>/<name>, for a user's own folder may hold many images."""
    return itertools.chain(folder.glob(f"*/{YAML}"), folder.glob(f"*/*/{YAML}"))


def _folders() -> list[Path]:
    """The shipped datasets, then those of the working directory."""
    return [FOLDER, *filter(None, [own("datasets")])]


def _file(name: str) -> Path:
    return next(folder / name / YAML for folder in _folders() if os.path.lexists(folder / name / YAML))


def describe(name: str) -> dict[str, Any]:
    """The dataset.yaml with its bases merged in, and every known key present. Raises BenchError."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), 3) or names()
        raise BenchError(f"no dataset is called {name!r}; did you mean {', '.join(near)}? (folders of datasets/)")
    path = _file(name)
    files = dataset_yaml.merged(path).get("files")
    staged = files.get("sha256") if isinstance(files, Mapping) else None
    spec = {**json.loads(json.dumps(KEYS)), **dataset_yaml.merged(path, staged if isinstance(staged, Mapping) else {})}
    spec["name"] = name
    return completed(spec)


def completed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with defaults and the folders of `root` filled in. Raises BenchError for unknown keys, wrong kinds."""
    spec = {**KEYS, **spec}
    for key in spec:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(KEYS)}."
            raise BenchError(f"dataset {spec['name']} has the unknown key {key!r}; {hint}")
    _check_types(spec)
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
    return laid_out(dataset_paths.found(spec, _folders()))


def portable(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A dataset's settings as a record keeps them: files of the folders of datasets have paths of no machine."""
    return dataset_paths.portable(spec, _folders())


WORD, LIST, MAPPING = (str,), (list, tuple), (Mapping,)
TYPES: dict[str, tuple[Any, ...]] = {  # of the keys that are not null
    **dict.fromkeys(("name", "licence", "source", "style_words", "caption", "root", "oracle"), WORD),
    "person_nouns": LIST,
    **dict.fromkeys(("controls", *FOLDERS), (*WORD, *LIST)),
    **dict.fromkeys(("files", "rendered", "drawings"), MAPPING),
}


KINDS = {str: "a word", list: "a list", Mapping: "a mapping"}


def _check_types(spec: Mapping[str, Any]) -> None:
    for key, kinds in TYPES.items():
        value = spec[key]
        if value is not None and not isinstance(value, kinds):
            words = " or ".join(
                {str: "a word", list: "a list", Mapping: "a mapping"}[k] for k in kinds if k is not tuple
            )
            raise BenchError(f"dataset {spec['name']} has {key}: {value!r:.100}; {words} is needed.")
        if isinstance(value, (list, tuple)) and not all(isinstance(item, str) for item in value):
            raise BenchError(f"dataset {spec['name']} has {key}: {value!r:.100}; a list of words is needed.")
    files = spec["files"]
    if files is not None and not (
        all(isinstance(files.get(key), str) for key in ("folder", "url"))
        and isinstance(files.get("sha256"), Mapping)
        and isinstance(files.get("size") or {}, Mapping)
    ):
        raise BenchError(f"dataset {spec['name']} has files without folder, url and sha256: see datasets/README.md.")


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
            "prompts: {file: prompts.csv, column: prompt, seeds: seed} (seeds may be left out; docs/datasets.md), "
            "or prompts: prompts.txt with one prompt per line."
        )
