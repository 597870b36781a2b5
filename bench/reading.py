"""Files of the store, read with care: a damaged one is one sentence, never a crash, a hang or a wrong number."""

from __future__ import annotations

import json
import logging
import re
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.environment import KNOWN
from bench.errors import BenchError

if TYPE_CHECKING:
    import pandas as pd

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # in the text of JSON
INDEX = ["strength", "prompt", "seed"]  # of the lines of per_image.csv


FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet runs a text that begins so


MOST_NAMED = 20  # damaged files of one store; of thousands, the first ones say enough
_named: Counter[Path] = Counter()  # store -> how many of its files were left out by this process


class Damaged(BenchError):
    """A file that cannot be what it is called. The message is the reason alone."""


def warn_left_out(log: logging.Logger, path: Path, error: Exception) -> None:
    """One warning line about a damaged `<store>/<cell>/<file>`, for the first ones of a store."""
    store = path.parent.parent
    _named[store] += 1
    if _named[store] <= MOST_NAMED:
        log.warning("%s was left out: %s.", path, " ".join(str(error).split()))
    elif _named[store] == MOST_NAMED + 1:
        log.warning("More files of %s were left out; they are not named.", store)


def content(path: Path) -> bytes:
    """The bytes of a regular file. Raises Damaged for a device, a pipe, a folder, a link to itself; FileNotFoundError,
    and OSError for what the environment does."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Damaged("it is no regular file")
        return path.read_bytes()
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.errno in KNOWN:
            raise
        raise Damaged(str(error.strerror)) from error


def text(path: Path) -> str:
    try:
        return content(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Damaged(f"it is not UTF-8 ({error.reason} at byte {error.start})") from error


def parsed(words: str) -> dict[str, Any]:
    """A JSON mapping. Raises Damaged."""
    try:
        found = json.loads(words)
        if SURROGATE.search(words):
            json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair cannot be shown anywhere
    except (ValueError, RecursionError) as error:
        raise Damaged(f"it is not whole JSON ({str(error)[:200]})") from error
    if not isinstance(found, dict):
        raise Damaged("it holds no JSON mapping")
    return found


def mapping(path: Path, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """A JSON mapping that has these keys with values of these types. Raises Damaged or OSError."""
    found = parsed(text(path))
    check(found, kinds)
    return found


def check(found: Mapping[str, Any], kinds: Mapping[str, type | tuple[type, ...]], where: str = "") -> None:
    """Raise Damaged unless every key is there with a value of its type."""
    for key, kind in kinds.items():
        if key not in found:
            raise Damaged(f"{where}{key} is missing")
        wrong = isinstance(found[key], bool) and kind in (int, (int, float), (int, float, type(None)))
        if wrong or not isinstance(found[key], kind):
            raise Damaged(f"{where}{key} is {str(found[key])[:60]!r}")


def per_image(path: Path) -> pd.DataFrame:
    """The lines of a per_image.csv: strength, prompt, seed and a column of numbers per metric. Raises Damaged."""
    import io

    import pandas as pd

    try:
        words = text(path)
        head = pd.read_csv(io.StringIO(words), nrows=0).columns
        absent_as = {name: ["", "nan", "NaN"] for name in head if name != "prompt"}  # a prompt may be "NA"
        lines = pd.read_csv(io.StringIO(words), dtype={"prompt": str}, keep_default_na=False, na_values=absent_as)
    except (ValueError, OverflowError, pd.errors.ParserError) as error:
        raise Damaged(f"it is no table ({' '.join(str(error).split())[:200]})") from error
    absent = [name for name in INDEX if name not in lines]
    if absent or not isinstance(lines.index, pd.RangeIndex):
        raise Damaged(f"it has no column {absent[0]}" if absent else "its lines are longer than its head")
    odd = [name for name in lines.columns.difference(["prompt"]) if lines[name].dtype.kind not in "fiu"]
    if odd or lines[INDEX].isna().any(axis=None) or (lines.seed != lines.seed.astype(float).round()).any():
        raise Damaged(f"its column {odd[0]} holds no numbers" if odd else "a line has no strength, prompt or seed")
    return lines.assign(prompt=lines.prompt.map(unescaped))


def escaped(words: str) -> str:
    """A text for a cell of a CSV file that a spreadsheet does not take for a formula: a quote goes before it."""
    return f"'{words}" if words.lstrip("'").startswith(FORMULAS) else words


def unescaped(words: str) -> str:
    """What `escaped` was given."""
    return words[1:] if words.startswith("'") and words.lstrip("'").startswith(FORMULAS) else words


def spreadsheet(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame whose texts, headings included, are `escaped`, for a CSV file."""
    texts = {name: column.map(lambda x: escaped(x) if isinstance(x, str) else x) for name, column in _texts(frame)}
    return frame.assign(**texts).rename(columns=lambda name: escaped(str(name)))


def _texts(frame: pd.DataFrame) -> list[tuple[Any, Any]]:
    return [(name, column) for name, column in frame.items() if column.dtype.kind not in "fiub"]
