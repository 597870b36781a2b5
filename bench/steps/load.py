"""Load: everything that can stop a cell is found before it costs anything."""

from __future__ import annotations

from bench.backbones.rare_tokens import split_notes
from bench.contracts import Impossible
from bench.fairness import contract
from bench.steps.work import Work


def load(work: Work) -> None:
    """Load the parts of a cell. Raises BenchError, or Impossible when the cell is to be skipped."""
    possible(work)
    work.notes += work.method.notes
    work.notes += split_notes(work.method.rare_tokens, work.backbone.tokenizers())
    for prompt in work.dataset.prompts:
        lost = max(map(work.backbone.truncated, work.method.prompts(prompt, work.dataset).values()))
        if lost:
            work.notes.append(f"prompt cut by {lost} tokens, its end token kept: {prompt!r}")


def possible(work: Work) -> None:
    """Raises what stops a cell, as far as it can be known without the backbone."""
    contract(work.cell).check(work.cell)
    _ = work.metrics, work.sampler, work.trainer
    absent = work.method.missing()
    if absent:
        raise Impossible(absent)
    lacks = work.method.lacks(work.dataset)
    if lacks:
        raise Impossible(
            f"Method {work.cell.method['name']} needs {lacks}; dataset {work.dataset.name} "
            f"provides {', '.join(sorted(work.dataset.provides)) or 'nothing'}."
        )
