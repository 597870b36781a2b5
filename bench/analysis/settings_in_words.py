"""Settings of cells in words: what tells the rows of one method apart, "lr=0.0001, rank=8"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from bench.analysis import frames
from bench.settings import canonical

LONGEST = 120  # letters of the settings that tell two rows of one method apart; above, their hash stands instead
LABELS = ("name", "_target_", "files")  # of a part of the settings: not what an ablation varies

Configs = Mapping[str, Mapping[str, Any]]


def by_settings(configs: Configs) -> Configs:
    """The configurations of records under the hashes that stand in the column `settings`."""
    return {frames.settings_hash(config): config for config in configs.values()}


def labels(keys: Iterable[tuple[str, str]], configs: Configs) -> dict[Any, str]:
    """Names of (method, settings): the method, and where it has several settings what tells them apart."""
    words = distinctions(keys, configs)
    methods = [method for method, _ in words]
    return {key: key[0] if methods.count(key[0]) == 1 else f"{key[0]} {said}" for key, said in words.items()}


def distinctions(keys: Iterable[tuple[str, str]], configs: Configs) -> dict[tuple[str, str], str]:
    """What tells the settings of a method from its other ones, "" where it has no others.

    Their hash stands where no words tell them apart, or only very long ones.
    """
    found: dict[tuple[str, str], str] = {}
    for method, group in groupby(sorted(keys), key=itemgetter(0)):
        hashes = [settings for _, settings in group]
        words = _differences([configs.get(name, {}) for name in hashes])
        clear = len(set(words)) == len(words) and max(map(len, words)) <= LONGEST
        found |= {(method, name): said for name, said in zip(hashes, words if clear else hashes, strict=True)}
    return found


def flat(config: Mapping[str, Any]) -> dict[str, str]:
    """{"method.recipe.lr": "0.0001"} for every setting that a row's images depend on."""
    return {path: text for part in frames.SETTINGS for path, text in _leaves(part, config.get(part))}


def varied(settings: Iterable[Mapping[str, str]]) -> list[str]:
    """The paths at which not all have the same value."""
    known = list(settings)
    paths = dict.fromkeys(path for values in known for path in values)
    return [path for path in paths if len({values.get(path, "") for values in known}) > 1]


def short(paths: Sequence[str]) -> list[str]:
    """The end of each path, as long as it takes to tell them apart."""
    return [_short(path, paths) for path in paths]


def _short(path: str, paths: Sequence[str]) -> str:
    parts = path.split(".")
    for start in range(len(parts) - 1, 0, -1):
        end = ".".join(parts[start:])
        if sum(other == end or other.endswith(f".{end}") for other in paths) == 1:
            return end
    return path


def _differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of each of several settings the few values that tell it from the others, "rank=8", and how many more differ."""
    settings = [flat(config) for config in configs]
    paths = varied(settings)
    telling = _telling(settings, paths)
    names, more = short(telling), len(paths) - len(telling)
    rest = [f"{more} more"] if more and telling else []
    said = [[f"{name}={own.get(path, 'none')}" for name, path in zip(names, telling, strict=True)] for own in settings]
    return [", ".join([*words, *rest]) for words in said]


def _telling(settings: Sequence[Mapping[str, str]], paths: Sequence[str]) -> list[str]:
    """Few of the paths, in their order, that leave no two settings alike which all of them tell apart."""

    def kinds(some: Iterable[str]) -> int:
        return len({tuple(own.get(path, "") for path in some) for own in settings})

    found: list[str] = []
    while kinds(found) < kinds(paths):
        found.append(max(paths, key=lambda path: kinds([*found, path])))
    return [path for path in paths if path in found]


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in LABELS:
                yield from _leaves(f"{path}.{key}", item)
    else:
        yield path, value if isinstance(value, str) else canonical(value)
