"""Score: the metrics of a cell's images, as entries of its record and as per-image values in per_image.csv."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from bench import reading
from bench.contracts import BenchError, Evaluation, Impossible, Score
from bench.files import atomic_write
from bench.paths import cache_folder
from bench.progress import progress
from bench.reading import INDEX
from bench.steps.baseline import baseline
from bench.steps.sample import class_images, images
from bench.steps.work import Work

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

log = logging.getLogger(__name__)


def score(work: Work) -> list[dict]:
    """Entries of the record for all metrics at all strengths."""
    entries = []
    for strength in work.cell.strengths:
        entries += work.attempt(partial(measure, work, strength, list(work.cell.metrics))) or []
    return entries


def measure(work: Work, strength: float, names: Sequence[str]) -> list[dict]:
    """Entries of the record for some metrics at one strength, and their per-image values in per_image.csv."""
    evaluation = _evaluation(work, strength)
    entries = []
    with work.clock("score_s"):
        for name in progress([name for name in names if name in work.metrics], "score", "metric"):
            work.heed()
            entries += _measured(work, name, strength, evaluation)
            work.scored.append(work.cell.measure(name, strength))
    return entries


def _evaluation(work: Work, strength: float) -> Evaluation:
    styles = {shot.prompt: work.method.prompts(shot.prompt, work.dataset) for shot in work.shots}
    return Evaluation(
        images=images(work, strength),
        baseline=baseline(work),
        prompts=[shot.prompt for shot in work.shots],
        full_prompts=[styles[shot.prompt].get("style", shot.prompt) for shot in work.shots],
        seeds=[shot.seed for shot in work.shots],
        dataset=work.dataset,
        cache=cache_folder(),
        class_images=lambda: class_images(work, strength),
    )


def _measured(work: Work, name: str, strength: float, evaluation: Evaluation) -> list[dict]:
    metric = work.metrics[name]
    try:
        found = metric.score(evaluation)
    except Impossible as reason:
        work.note(f"metric {name} left out: {reason}")
        return []
    for note in found.notes:
        work.note(f"metric {name}: {note}")
    of_sets = {_of_set(key, found): values for key, values in found.per_prompt.items()}
    _keep_per_image(work, strength, evaluation, {**found.per_image, **of_sets})
    return [
        {
            "strength": strength,
            "group": name,
            "metric": key,
            "value": value,
            "higher_is_better": metric.higher_is_better.get(key),
            "network": found.fingerprint.get("network"),
            "fingerprint": dict(found.fingerprint),
        }
        for key, value in found.values.items()
    ]


# --- per_image.csv


def _of_set(key: str, found: Score) -> str:
    """The column of what prompts add to a number of a set; a record holds such numbers of several networks."""
    network = found.fingerprint.get("network")
    return f"{key} [{network}]" if network else key


def _keep_per_image(work: Work, strength: float, evaluation: Evaluation, values: Mapping[str, np.ndarray]) -> None:
    """Add columns to per_image.csv: one line for each strength, prompt and seed."""
    import pandas as pd

    path = work.folder / "per_image.csv"
    columns = {"strength": strength, "prompt": evaluation.prompts, "seed": evaluation.seeds, **values}
    new = pd.DataFrame(columns).set_index(INDEX)
    old = new if (kept := _per_image(work)) is None else kept
    atomic_write(path, _csv(new.combine_first(old)))


def _per_image(work: Work) -> pd.DataFrame | None:
    """The lines that are there; None where there are none, or where they are damaged: what is new replaces them."""
    path = work.folder / "per_image.csv"
    try:
        return reading.per_image(path).set_index(INDEX)
    except FileNotFoundError:
        return None
    except BenchError as error:
        log.warning("%s was dropped: %s.", path, error)
        return None


def forget(work: Work, strength: float, columns: Sequence[str]) -> None:
    """Remove per-image values of one strength that are about to be measured anew."""
    path = work.folder / "per_image.csv"
    lines = _per_image(work) if columns else None
    if lines is None:
        return
    known = [name for name in lines if name.partition(" [")[0] in columns]
    lines.loc[lines.index.get_level_values("strength") == strength, known] = math.nan
    empty = [name for name in known if lines[name].isna().all()]
    atomic_write(path, _csv(lines.drop(columns=empty)))


def _csv(lines: pd.DataFrame) -> bytes:
    whole = reading.spreadsheet(lines.reset_index())
    quoting = csv.QUOTE_NONNUMERIC if whole.prompt.str.contains("\r").any() else csv.QUOTE_MINIMAL
    return whole.to_csv(index=False, quoting=quoting).encode()
