"""Keys that only some combinations of a sweep have: ++method.recipe.steps=10 is set where the method has a recipe.

A key counts as had where the composed settings hold it, or where the class that they name takes it as an argument.
Before it composes the combinations, Hydra composes the default choices with every word of the command line, and would
refuse a key that the default method lacks. So such words are forced for that first time, and checked afterwards.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from bench.cell import PARTS
from bench.errors import BenchError
from bench.settings import class_of
from bench.steps.work import LABELS

FORCED = re.compile(r"\+\+(?P<key>[A-Za-z_]\w*(\.\w+)+)=")
REFUSED = re.compile(r"Could not (override|append to config)\b.*?'(?P<key>[A-Za-z_]\w*(\.\w+)+)'", re.DOTALL)

PLAIN = re.compile(rf"\+?({'|'.join((*PARTS, 'metrics', 'tracker'))})\.[\w.]+=")
_typed: dict[str, str] = {}  # a word as Hydra first gets it -> as it was typed


def forced_at_first(words: Sequence[str]) -> list[str]:
    """The words of a sweep's command line for Hydra's first composition."""
    for word in filter(PLAIN.match, words):
        _typed[f"++{word.lstrip('+')}"] = word
    return [f"++{word.lstrip('+')}" if PLAIN.match(word) else word for word in words]


def as_typed(words: Sequence[str]) -> list[str]:
    return [_typed.get(word, word) for word in words]


class PartialKeys:
    """Composes the combinations of one sweep, each with those of the forced keys (++) that it has."""

    def __init__(self, compose: Callable[[list[str]], DictConfig]) -> None:
        self._whole = compose
        self.set: set[str] = set()  # words that some combination took
        self.left_out: dict[str, list[str]] = {}  # word -> the choices that have no such key

    def compose(self, words: list[str]) -> DictConfig:
        """The settings of one combination. Raises BenchError for a key that it does not have and is not forced."""
        forced = {word: found["key"] for word in words if (found := FORCED.match(word))}
        if not forced:
            return self._composed(words)
        plain = self._composed([word for word in words if word not in forced])
        had = {word for word, key in forced.items() if has(plain, key)}
        self.set |= had
        for word in forced.keys() - had:
            choices, choice = self.left_out.setdefault(word, []), choice_of(forced[word], words, plain)
            choices += [choice] if choice not in choices else []
        return self._composed([word for word in words if word not in forced or word in had])

    def notes(self) -> list[str]:
        """A sentence for each key that was left out somewhere. Raises BenchError for one that nothing has."""
        for word, choices in self.left_out.items():
            if word not in self.set:
                raise BenchError(f"{word} was requested; no combination of this sweep has it ({', '.join(choices)}).")
        return [f"{word} is left out where there is no such key: {', '.join(c)}." for word, c in self.left_out.items()]

    def _composed(self, words: list[str]) -> DictConfig:
        try:
            return self._whole(words)
        except ConfigCompositionException as error:
            found = REFUSED.match(str(error))
            word = next((word for word in words if found and word.lstrip("+").startswith(f"{found['key']}=")), None)
            if found is None or word is None:
                raise
            lacks = "has no such key" if found[1] == "override" else "has it already"
            raise BenchError(
                f"{word} was requested; {choice_of(found['key'], words)} {lacks}. "
                f"In a sweep, ++{word.lstrip('+')} sets it in every combination that has it."
            ) from error


def has(config: DictConfig, key: str) -> bool:
    """Whether composed settings hold this key, or could: their class takes it."""
    parent, _, leaf = key.rpartition(".")
    node: Any = OmegaConf.select(config, parent)
    if not isinstance(node, DictConfig):
        return False
    if leaf in node or "_target_" not in node or (parent == "method" and leaf in LABELS):
        return True
    arguments = inspect.signature(class_of(node["_target_"], parent)).parameters
    return leaf in arguments or any(one.kind is one.VAR_KEYWORD for one in arguments.values())


def choice_of(key: str, words: list[str], config: DictConfig | None = None) -> str:
    """ "method=pair": which choice of its group a key belongs to."""
    group = key.partition(".")[0]
    typed = next((word for word in reversed(words) if word.startswith(f"{group}=")), None)
    return typed or f"{group}={OmegaConf.select(config, f'{group}.name') if config is not None else '...'}"
