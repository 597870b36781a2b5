"""Evaluation prompts and seeds of a dataset: a list, a text file, or a table with a row for each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.contracts import BenchError
from bench.data.prompt_lists import left_out
from bench.data.schema import completed, prompt_table
from bench.data.sources import image_place
from bench.data.templates import filled
from bench.data.text_tables import lines_of, rows_of


def image_count(spec: Mapping[str, Any]) -> int:
    """Evaluation images at one strength. Raises BenchError when the table of prompts is not here."""
    prompts, own_seeds = evaluation_prompts(completed(spec))
    return sum(map(len, own_seeds)) if own_seeds else len(prompts) * len(spec["seeds"])


def evaluation_prompts(spec: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Evaluation prompts, and the seeds of each where a table gives each prompt its own."""
    table = prompt_table(spec)
    if not table:
        return tuple(filled(prompt, noun=spec["noun"]) for prompt in spec["prompts"]), ()
    rows: dict[str, dict[int, None]] = {}
    for prompt, seed in _listed(spec, table):
        rows.setdefault(prompt, {}).update({} if seed is None else {seed: None})
    return tuple(rows), tuple(map(tuple, rows.values())) if table.get("seeds") else ()


def prompts(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The evaluation prompts in their order. Raises BenchError where a table of them is not on this machine."""
    return evaluation_prompts(completed(spec))[0]


def repeated_prompts(spec: Mapping[str, Any]) -> str | None:
    """A sentence when rows of the file of prompts are used once that are there more often."""
    table = prompt_table(spec)
    rows = _listed(spec, table) if table else []
    count = len(rows) - len(set(rows))
    return f"{count} of {len(rows)} rows of {Path(table['file']).name} repeat an earlier one" if count else None


def _listed(spec: Mapping[str, Any], table: Mapping[str, Any]) -> list[tuple[str, int | None]]:
    """Prompts of a file in their order, repetitions included, with their seeds where the table gives some."""
    path = image_place(spec, table["file"])
    if "column" not in table:
        return [(prompt, None) for prompt in lines_of(path)]
    column, seeds = table["column"], table.get("seeds")
    lines = rows_of(path, [column])
    if seeds and lines and seeds not in lines[0][1]:
        raise BenchError(f"{path} has no column {seeds!r}, only {', '.join(lines[0][1])}.")
    out = left_out([line for _, line in lines], column, table.get("left_out"), path)
    kept = [numbered for i, numbered in enumerate(lines) if i not in out]
    if not kept:
        raise BenchError(f"{path} holds no prompts; name a table with at least one.")
    return [(line[column], _seed(line[seeds], path, number) if seeds else None) for number, line in kept]


def _seed(text: str, path: Path, line: int) -> int:
    try:
        return int(text)
    except ValueError:
        raise BenchError(f"line {line} of {path} has the seed {text!r}; a whole number is needed.") from None
