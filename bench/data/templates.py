"""Templates of prompts and captions: `{noun}` is filled in, every other brace is literal text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bench.errors import BenchError

PLACE = re.compile(r"\{(\w+)([.\[!:][^{}]*)?\}")


def filled(template: str, **words: str | None) -> str:
    """The template with the words in place of their names in braces; names of None stay as they are.

    Raises BenchError for an attribute, an index, a conversion or a format of a word, such as {noun.__class__}.
    """

    def word(found: re.Match[str]) -> str:
        value = words.get(found[1])
        if value is None:
            return found[0]
        if found[2]:
            raise BenchError(
                f"The text {template!r} has {found[0]}; only the word itself is filled in: {{{found[1]}}}."
            )
        return value

    return PLACE.sub(word, template)


def refuse_interpolation(spec: Any, path: Any) -> None:
    """Raises BenchError for `${`: Hydra would put variables of the environment and other settings in its place."""
    waiting, seen = [spec], set()
    while waiting:
        part = waiting.pop()
        if isinstance(part, str) and "${" in part:
            raise BenchError(f"{path} holds {part!r}; it is plain text, so write the value in place of ${{...}}.")
        if (
            isinstance(part, (Mapping, list, tuple)) and id(part) not in seen
        ):  # an alias of YAML may name its own parent
            seen.add(id(part))
            waiting += [*part, *part.values()] if isinstance(part, Mapping) else part
