"""What all cells of an experiment share and what their training may cost, and in what a cell departs from it.

The contract is a yaml of conf/fairness. It is checked before anything runs and changes nothing: no image depends on
it, so it is not part of the run id. A departure is noted in the record and is a footnote of the table, or, with
`fairness.strict=true`, keeps the cell from running. A finished cell is judged anew by the contract it is asked under.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.cell import PARTS, Cell
from bench.contracts import BenchError, Impossible, Method, Recipe
from bench.settings import construct

PREFIX = "fairness: "  # of the notes that are footnotes


@dataclass(frozen=True)
class Budget:
    """What the training of one cell may cost; None is no limit."""

    steps: int | None = None  # iterations of the recipe
    images: int | None = None  # steps times draws times batch size; a pair counts once, prior images not
    train_s: float | None = None  # seconds, known only afterwards: noted, never refused


@dataclass(frozen=True)
class Fairness:
    """The rules of one experiment; None or absent is not fixed."""

    same: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # group -> setting -> its value in every cell
    published_dataset: bool = False  # prompts, evaluation seeds and images are those of the dataset.yaml
    start_t: float | None = None  # late start: the timestep at which guidance by the method begins
    budget: Budget = Budget()
    strict: bool = False

    def check(self, cell: Cell) -> None:
        """Raises Impossible when the contract is strict and the cell departs from it."""
        found = self.deviations(cell, {})
        if self.strict and found:
            raise Impossible(f"{PREFIX}refused: {'; '.join(found)}. To run it with a footnote: fairness.strict=false.")

    def deviations(self, cell: Cell, cost: Mapping[str, Any]) -> list[str]:
        """A sentence for each departure, also for those that the method's yaml declares."""
        parts = (self._settings(cell), self._dataset(cell), self._late_start(cell), self._training(cell, cost))
        return [*cell.method.get("deviations", ()), *(sentence for part in parts for sentence in part)]

    def _settings(self, cell: Cell) -> Iterator[str]:
        for group, settings in self.same.items():
            for key, wanted in settings.items():
                found = getattr(cell, group).get(key)
                if found != wanted:
                    yield f"{group}.{key} is {found} instead of {wanted}"

    def _dataset(self, cell: Cell) -> Iterator[str]:
        from bench.data import schema

        if self.published_dataset:
            published = schema.describe(cell.dataset["name"])
            changed = [key for key in schema.KEYS if _plain(cell.dataset.get(key)) != _plain(published[key])]
            yield from (f"dataset.{key} is not the published one" for key in changed)

    def _late_start(self, cell: Cell) -> Iterator[str]:
        found = cell.sampler.get("start_t")
        found = cell.method.get("start_t", Method.start_t) if found is None else found
        if self.start_t is not None and found != self.start_t:
            yield f"guidance starts at timestep {found:g} instead of {self.start_t:g}"

    def _training(self, cell: Cell, cost: Mapping[str, Any]) -> Iterator[str]:
        recipe, budget = cell.method.get("recipe") or {}, self.budget
        steps = recipe.get("steps", 0)
        images = steps * recipe.get("batch_size", Recipe.batch_size) * cell.trainer.get("accumulate", 1)
        if budget.steps is not None and steps > budget.steps:
            yield f"{steps} training steps, the budget is {budget.steps}"
        if budget.images is not None and images > budget.images:
            yield f"{images} training images seen, the budget is {budget.images}"
        if budget.train_s is not None and cost.get("train_s", 0) > budget.train_s:
            yield f"training took longer than the budget of {budget.train_s:g} s"


def contract(cell: Cell) -> Fairness:
    """The rules that a cell is requested under. Raises BenchError for a rule that means nothing."""
    rules = dict(cell.fairness)
    try:
        budget = construct(Budget, rules.get("budget") or {}, "fairness.budget")
        made = construct(Fairness, {**rules, "budget": budget}, "fairness")
    except TypeError as error:
        raise BenchError(f"The fairness contract cannot be read ({error}); compare it with conf/fairness.") from None
    unknown = [group for group in made.same if group not in PARTS]
    if unknown:
        raise BenchError(f"The fairness contract fixes settings of {', '.join(unknown)}; there are {', '.join(PARTS)}.")
    return made


def _plain(value: Any) -> Any:
    """Lists for tuples, at any depth, as they come from a command line."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
