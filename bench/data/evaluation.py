"""Evaluation prompts and seeds of a dataset: a list, or a table with a row for each."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.contracts import BenchError
from bench.data.prompt_lists import left_out
from bench.data.schema import completed, prompt_table
from bench.data.sources import image_place


def image_count(spec: Mapping[str, Any]) -> int:
    """Evaluation images at one strength. Raises BenchError when the table of prompts is not here."""
    prompts, own_seeds = evaluation_prompts(completed(spec))
    return sum(map(len, own_seeds)) if own_seeds else len(prompts) * len(spec["seeds"])


def evaluation_prompts(spec: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Evaluation prompts, and the seeds of each where a table gives each prompt its own."""
    table = prompt_table(spec)
    if not table:
        return tuple(prompt.format(noun=spec["noun"]) for prompt in spec["prompts"]), ()
    rows = _tabled(image_place(spec, table["file"]), table)
    return tuple(rows), tuple(map(tuple, rows.values())) if table.get("seeds") else ()


def prompts(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The evaluation prompts in their order. Raises BenchError where a table of them is not on this machine."""
    return evaluation_prompts(completed(spec))[0]


def _tabled(path: Path, table: Mapping[str, Any]) -> dict[str, dict[int, None]]:
    """Prompts of a CSV or TSV file in their order, each with its seeds; a repeated row is the same image, once."""
    column, seeds = table["column"], table.get("seeds")
    lines = _lines(path, [key for key in (column, seeds) if key])
    out = left_out([line for _, line in lines], column, table.get("left_out"), path)
    rows: dict[str, dict[int, None]] = {}
    for number, line in [numbered for i, numbered in enumerate(lines) if i not in out]:
        own = rows.setdefault(line[column], {})
        if seeds:
            own[_seed(line[seeds], path, number)] = None
    if not rows:
        raise BenchError(f"{path} holds no prompts; name a table with at least one.")
    return rows


def _lines(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Rows of a CSV or TSV file, each with the number of its line. Raises BenchError when a column is absent."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        absent = [key for key in columns if key not in (lines.fieldnames or ())]
        if absent:
            raise BenchError(f"{path} has no column {absent[0]!r}, only {', '.join(lines.fieldnames or ())}.")
        return [(lines.line_num, line) for line in lines]


def _seed(text: str | None, path: Path, line: int) -> int:
    try:
        return int(text or "")
    except ValueError:
        raise BenchError(f"line {line} of {path} has the seed {text!r}; a whole number is needed.") from None
