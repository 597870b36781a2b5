"""Bradley-Terry strengths of a study, with intervals, and joined to the automatic metrics.

P(i beats j) = 1 / (1 + exp(s_j - s_i)) (Bradley & Terry 1952), fitted by choix; strengths sum to 0. "No difference" is
half a win for each side. A tenth of a comparison is added each way to every pair, so that a method that always won has
a finite strength. Intervals: 2.5th to 97.5th percentile of a pigeonhole bootstrap (Owen 2007, arXiv 0712.1111), which
draws raters and prompts independently, as their answers are crossed; with one rater they speak of that rater alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import reading
from bench.analysis import frames, shown_columns
from bench.errors import BenchError
from bench.store.record import Store
from bench.study.answers import Answers, Vote

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

log = logging.getLogger(__name__)

PRIOR = 0.1  # comparisons added each way
DRAWS = 999


def strengths(votes: Sequence[Vote], items: Sequence[str], draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """A line per item: strength, low, high, win_rate (a tie counts half), comparisons; strongest first."""
    import numpy as np
    import pandas as pd

    each = _each(votes, items)  # (votes, 3): winner, loser, weight; a tie is two lines
    point = fit(_wins(each, np.ones(len(each)), len(items)))
    rng = np.random.default_rng(seed)
    raters, units = _codes([v.rater for v in votes]), _codes([v.unit for v in votes])
    owner = each[:, 3].astype(int)
    drawn = [fit(_wins(each, _weights(rng, raters, units)[owner], len(items)), point) for _ in range(draws)]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0) if len(votes) else np.full((2, len(items)), math.nan)
    wins = _wins(each, np.ones(len(each)), len(items))
    met = wins.sum(1) + wins.sum(0)
    rate = np.divide(wins.sum(1), met, out=np.full(len(items), math.nan), where=met > 0)
    made = {"item": list(items), "strength": point, "low": low, "high": high, "win_rate": rate, "comparisons": met}
    return pd.DataFrame(made).sort_values("strength", ascending=False, ignore_index=True)


def fit(wins: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """Maximum-likelihood strengths (n,) of a matrix (n, n): how often the row's item beat the column's."""
    import choix
    import numpy as np

    counts = wins + PRIOR * (1 - np.eye(len(wins)))
    found = choix.ilsr_pairwise_dense(counts, initial_params=start, max_iter=1000, tol=1e-9)
    return found - found.mean()


def _each(votes: Sequence[Vote], items: Sequence[str]) -> np.ndarray:
    """(lines, 4): winner, loser, weight, place of the vote."""
    import numpy as np

    place = {item: k for k, item in enumerate(items)}
    lines = []
    for k, vote in enumerate(votes):
        left, right = place[vote.left], place[vote.right]
        first, second = (right, left) if vote.choice == "right" else (left, right)
        half = 0.5 if vote.winner is None else 1.0
        lines += [(first, second, half, k), *([(second, first, half, k)] if vote.winner is None else [])]
    return np.array(lines, dtype=np.float64).reshape(-1, 4)


def _wins(each: np.ndarray, weights: np.ndarray, n: int) -> np.ndarray:
    import numpy as np

    cell = each[:, 0].astype(int) * n + each[:, 1].astype(int)
    return np.bincount(cell, weights=each[:, 2] * weights, minlength=n * n).reshape(n, n)


def _codes(names: Sequence[str]) -> np.ndarray:
    import numpy as np

    return np.unique(np.asarray(names, dtype=str), return_inverse=True)[1]


def _weights(rng: np.random.Generator, raters: np.ndarray, units: np.ndarray) -> np.ndarray:
    """(votes,) how often each was drawn: its rater's times its prompt's."""
    import numpy as np

    made = np.ones(len(raters))
    for codes in (raters, units):
        n = int(codes.max()) + 1 if len(codes) else 0
        made *= rng.multinomial(n, np.full(n, 1 / n))[codes] if n > 1 else 1
    return made


# --- joined to the metrics ---------------------------------------------------------------------------------------


def with_metrics(found: pd.DataFrame, answers: Answers, root: Path) -> pd.DataFrame:
    """The strengths beside the mean of each metric over the cells that the study showed; columns as in bench.table."""
    import pandas as pd

    shown = {(side["item"], side["run_id"], side["strength"]) for side in _sides(answers.key)}
    wanted = pd.DataFrame(sorted(shown), columns=["item", "run_id", "strength"])
    rows = frames.wide(frames.frame(_records(root, set(wanted.run_id))))
    joined = wanted.merge(rows, on=["run_id", "strength"], how="left")
    means = joined.groupby("item")[frames.metric_columns(rows)].mean().dropna(axis=1, how="all")
    merged = found.merge(means.reset_index(), on="item", how="left")
    merged.attrs["higher_is_better"] = rows.attrs["higher_is_better"]
    return merged


def _sides(key: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    compared = [trial for trial in key["trials"].values() if trial["kind"] == "compare"]
    return [trial[side] for trial in compared for side in ("left", "right")]


def _records(root: Path, wanted: set[str]) -> list[Any]:
    return [record for record in Store(root).records() if record.run_id in wanted]


def metrics_agree(answers: Answers, root: Path, joined: pd.DataFrame) -> pd.DataFrame:
    """A line per per-image metric: in what share of the decided votes its better image is the one that was chosen.

    0.5 is chance. The interval resamples prompts; `over_methods` is Spearman's correlation of the
    metric's means with the strengths, signed so that 1 is agreement.
    """
    import pandas as pd

    from bench.analysis import statistics

    images = _images(answers, root)
    ways = {record_metric: up for record_metric, up in _ways(root, answers).items()}
    lines = []
    for metric, up in ways.items():
        votes = _agreement(answers, images.get(metric, {}), up)
        if len(votes):
            share = statistics.interval(votes, "agrees", ("prompt",))
            lines.append({"metric": metric, "agreement": share.mean, "low": share.low, "high": share.high,
                          "votes": share.n, "over_methods": _spearman(joined, metric, up)})  # fmt: skip
    return pd.DataFrame(lines, columns=["metric", "agreement", "low", "high", "votes", "over_methods"])


def _ways(root: Path, answers: Answers) -> dict[str, bool]:
    """Metric -> whether higher is better."""
    records = _records(root, {side["run_id"] for side in _sides(answers.key)})
    scores = [score for record in records for score in record.scores]
    return {s["metric"]: bool(s["higher_is_better"]) for s in scores if s.get("higher_is_better") is not None}


def _images(answers: Answers, root: Path) -> dict[str, dict[tuple[Any, ...], float]]:
    """Metric -> (run id, strength, prompt, seed) -> value."""

    found: dict[str, dict[tuple[Any, ...], float]] = {}
    for run_id in sorted({side["run_id"] for side in _sides(answers.key)}):
        path = root / run_id / "per_image.csv"
        try:
            lines = reading.per_image(path)
        except FileNotFoundError:
            continue
        except (OSError, BenchError) as error:
            log.warning("%s was left out: %s.", path, error)
            continue
        for metric in lines.columns.difference(["strength", "prompt", "seed"]):
            keys = zip(lines.strength, lines.prompt, lines.seed, strict=True)
            values = {(run_id, g, p, s): v for (g, p, s), v in zip(keys, lines[metric], strict=True) if v == v}
            found.setdefault(metric, {}).update(values)
    return found


def _agreement(answers: Answers, values: Mapping[tuple[Any, ...], float], up: bool) -> pd.DataFrame:
    """A line per decided vote for which both images have a value: prompt, and 1, 0 or, for equal values, 1/2."""
    import pandas as pd

    lines = []
    for vote in (vote for vote in answers.votes if vote.winner is not None):
        trial = answers.key["trials"][vote.trial]
        ids = [(trial[side]["run_id"], trial[side]["strength"]) for side in ("left", "right")]
        left, right = (values.get((*side, trial["prompt"], trial["seed"]), math.nan) for side in ids)
        better = (left - right) * (1 if up else -1) * (1 if vote.choice == "left" else -1)
        if not math.isnan(better):
            lines.append({"prompt": vote.unit, "agrees": 0.5 if better == 0 else float(better > 0)})
    return pd.DataFrame(lines, columns=["prompt", "agrees"])


def _spearman(joined: pd.DataFrame, metric: str, up: bool) -> float:
    column = next((name for name in joined if shown_columns._bare(name) == metric), None)
    known = joined.dropna(subset=[column]) if column else joined.iloc[:0]
    if column is None or len(known) < 3 or known[column].nunique() < 2:
        return math.nan
    return float(known["strength"].corr(known[column], method="spearman")) * (1 if up else -1)
