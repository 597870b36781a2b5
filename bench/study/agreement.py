"""How far a judge agrees with people: the same comparisons, Krippendorff's alpha, and strengths side by side.

The alpha of a judge has one unit for each vote of a person: that choice and the judge's. The alpha of people has one
for each two people and comparison. So both are about two raters, and can be compared. Intervals: 2.5th to 97.5th
percentile of the pigeonhole bootstrap of `bench.study.strengths`, which draws raters and prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.analysis import judges
from bench.study.answers import CHOICES, Answers, Judged, Vote
from bench.study.strengths import DRAWS, _codes, strengths

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def agreements(answers: Answers, draws: int = DRAWS) -> pd.DataFrame:
    """A line per judge: its alpha with people, that of people among each other, and in how many comparisons both
    orders of its two pictures gave the same choice."""
    import pandas as pd

    people = _interval(_of_people(answers.votes), draws)
    lines = []
    for judge in answers.judges:
        twos = _with_people(judge, answers.votes)
        lines.append(
            {"judge": judge.name, **_interval(twos, draws), "votes": len(twos),
             **{f"people {name}": value for name, value in people.items()}, "same in both orders": judge.steady}
        )  # fmt: skip
    return pd.DataFrame(lines)


def beside(found: pd.DataFrame, answers: Answers, draws: int = DRAWS) -> pd.DataFrame:
    """The strengths of people, and of each judge in columns that begin with its name."""
    made = found[["item", "strength", "low", "high"]]
    for judge in answers.judges:
        own = strengths(judge.votes, answers.items, draws)[["item", "strength", "low", "high"]]
        own.columns = ["item", *(f"{judge.name} {name}" for name in own.columns[1:])]
        made = made.merge(own, on="item")
    return made


def keep(answers: Answers, found: pd.DataFrame, root: Path) -> Path:
    """Write the measured agreement of each judge where tables look for it."""
    about = {"study": answers.key["study"], "question": answers.key["question"]}
    people = len({vote.rater for vote in answers.votes})
    lines = zip(answers.judges, found.to_dict("records"), strict=True)
    return judges.keep(root, {judge.id: _entry(line, people) | about for judge, line in lines})


def _entry(line: dict[str, Any], people: int) -> dict[str, Any]:
    numbers = {name: _number(line[name]) for name in ("alpha", "low", "high", "people alpha")}
    return {"judge": line["judge"], "raters": people, "votes": line["votes"], **numbers}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


# --- alpha -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Two:
    """Two choices in one comparison."""

    people: tuple[str, ...]  # who made them; a judge is not named
    choices: tuple[str, str]
    unit: str  # dataset and prompt


def _with_people(judge: Judged, votes: Sequence[Vote]) -> list[Two]:
    own = {vote.trial: vote.choice for vote in judge.votes}
    return [Two((v.rater,), (v.choice, own[v.trial]), v.unit) for v in votes if v.trial in own]


def _of_people(votes: Sequence[Vote]) -> list[Two]:
    trials: dict[str, list[Vote]] = {}
    for vote in votes:
        trials.setdefault(vote.trial, []).append(vote)
    pairs = [pair for some in trials.values() for pair in combinations(some, 2)]
    return [Two((a.rater, b.rater), (a.choice, b.choice), a.unit) for a, b in pairs]


def _interval(twos: Sequence[Two], draws: int, seed: int = 0) -> dict[str, float]:
    """alpha, low and high, NaN where nothing can be said."""
    import numpy as np

    if not twos:
        return dict.fromkeys(("alpha", "low", "high"), math.nan)
    names, rng = sorted({name for two in twos for name in two.people}), np.random.default_rng(seed)
    owners = np.array([[names.index(name) for name in two.people] for two in twos])  # (units, 1 or 2)
    prompts, counts = _codes([two.unit for two in twos]), _counts(twos)
    drawn = []
    for _ in range(draws):
        weights = _often(rng, len(names))[owners].prod(axis=1) * _often(rng, int(prompts.max()) + 1)[prompts]
        drawn.append(_alpha(counts.repeat(weights, axis=0)))
    known = [value for value in drawn if not math.isnan(value)]
    low, high = np.quantile(known, [0.025, 0.975]) if known else (math.nan, math.nan)
    return {"alpha": _alpha(counts), "low": float(low), "high": float(high)}


def _often(rng: np.random.Generator, n: int) -> np.ndarray:
    """How often each of n was drawn, (n,); one alone stays."""
    import numpy as np

    return rng.multinomial(n, np.full(n, 1 / n)) if n > 1 else np.ones(1, dtype=np.int64)


def _counts(twos: Sequence[Two]) -> np.ndarray:
    """(units, choices): how many of the two made each choice."""
    import numpy as np

    return np.array([[two.choices.count(choice) for choice in CHOICES] for two in twos])


def _alpha(counts: np.ndarray) -> float:
    """Nominal, NaN where only one choice was ever made."""
    import krippendorff

    if (counts.sum(axis=0) > 0).sum() < 2:
        return math.nan
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))
