"""Which images the page shows, by a rule that was fixed before anyone saw them.

A gallery belongs to one dataset and backbone: its rows are methods and strengths, its columns (prompt, evaluation
seed), the same noise in each column. A column is chosen in one of four ways, none of which looks at a picture.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import reading
from bench.analysis import variants
from bench.analysis.frames import settings_hash
from bench.analysis.variants import name_of
from bench.cell import default_strength_of
from bench.data.image_files import strength_folder
from bench.errors import BenchError
from bench.store.record import Record

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

FIRST, DRAWN, MIDDLE, WORST, OWN = 4, 4, 2, 2, 2  # columns of each part
SEED = 0
FILE = re.compile(r"(\d+)-s(-?\d+)\.png")

RULE = (
    "The rule, fixed before any image was seen. Columns are (prompt, evaluation seed) that every row has. First: the "
    f"first {FIRST} in the order of the dataset. Random: {DRAWN} drawn without replacement by "
    f"random.Random('{SEED} <dataset>'). Median and worst: by {{metric}} averaged over the rows, the {MIDDLE} columns "
    f"nearest the median and the {WORST} worst. Own worst: each row's own {OWN} worst images by that metric, not the "
    "same prompts in each row. Rows: of each method and setting the strength that its configuration names, or the "
    "middle one of those recorded, and the smallest training seed; all other strengths and seeds: 'every row'."
)


@dataclass
class Row:
    """The images of one record at one strength."""

    record: Record
    strength: float
    folder: Path
    values: Mapping[tuple[str, int], float] = field(default_factory=dict)  # (prompt, seed) -> gallery metric
    main: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return str(name_of(self.record.config.get("method"))), settings_hash(self.record.config)

    @property
    def seed(self) -> int:
        return self.record.config.get("seed") or 0

    @cached_property
    def files(self) -> dict[tuple[int, int], Path]:
        """(prompt index, evaluation seed) -> image, in the order of the dataset."""
        found = {match: path for path in self.folder.glob("*.png") if (match := FILE.fullmatch(path.name))}
        return {k: found[m] for k, m in sorted(((int(m[1]), int(m[2])), m) for m in found)}


@dataclass
class Gallery:
    """The rows of one dataset and backbone, with what chooses its columns."""

    dataset: str
    backbone: str
    rows: list[Row]
    prompts: Sequence[str]
    metric: str | None = None
    higher: bool = True

    @cached_property
    def shots(self) -> list[tuple[int, int]]:
        """All (prompt index, seed) of any row, in order."""
        return sorted({shot for row in self.rows for shot in row.files})

    @cached_property
    def shared(self) -> list[tuple[int, int]]:
        """Those that every row of the rule has."""
        return [shot for shot in self.shots if all(shot in row.files for row in self.rows if row.main)]

    def prompt(self, index: int) -> str:
        return self.prompts[index] if index < len(self.prompts) else f"prompt {index}"

    def value(self, row: Row, shot: tuple[int, int]) -> float | None:
        return row.values.get((self.prompt(shot[0]), shot[1]))

    def picks(self) -> dict[str, list[tuple[int, int]]]:
        """The columns of each part of the rule."""
        import random

        drawn = random.Random(f"{SEED} {self.dataset}").sample(self.shared, min(DRAWN, len(self.shared)))
        order = self._ranked()
        middle = max(0, (len(order) - MIDDLE) // 2)
        return {
            "first": self.shared[:FIRST],
            "random": sorted(drawn),
            "median": order[middle : middle + MIDDLE],
            "worst": order[:WORST],
        }

    def own_worst(self, row: Row) -> list[tuple[int, int]]:
        """The row's own worst images, worst first."""
        known = [(value, shot) for shot in row.files if (value := self.value(row, shot)) is not None]
        return [shot for _, shot in sorted(known, reverse=not self.higher)][:OWN]

    def _ranked(self) -> list[tuple[int, int]]:
        """Shared columns for which every row has a value, worst mean first."""
        means = {}
        for shot in self.shared:
            values = [self.value(row, shot) for row in self.rows if row.main]
            known = [value for value in values if value is not None]
            if values and len(known) == len(values):
                means[shot] = sum(known) / len(known)
        return sorted(means, key=lambda shot: (means[shot] if self.higher else -means[shot], shot))


def galleries(
    records: Sequence[Record], root: Path, wanted: Sequence[str], labels: Mapping[str, str] | None = None
) -> list[Gallery]:
    """One per dataset and backbone; `wanted` are per-image metrics, the first that a gallery's rows have decides.

    `labels` are the datasets' labels by run id; by default those that tell apart the datasets of these records.
    """
    labels = variants.labels(records) if labels is None else labels
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        if record.status == "done":
            groups.setdefault(_family(record), []).append(record)
    made = [_gallery(group, root, wanted, labels) for _, group in sorted(groups.items())]
    return [gallery for gallery in made if gallery.rows]


def _family(record: Record) -> tuple[str, ...]:
    """What images must share to stand in one column."""
    config = record.config
    names = str(name_of(config.get("dataset"))), str(name_of(config.get("backbone")))
    parts = [config.get(key) for key in ("dataset", "backbone", "sampler")]
    return *names, hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _gallery(records: Sequence[Record], root: Path, wanted: Sequence[str], labels: Mapping[str, str]) -> Gallery:
    tables = {record.run_id: _per_image(root / record.run_id) for record in records}
    metric = next((m for m in wanted if all(m in t for t in tables.values())), None)
    rows = [
        Row(record, strength, folder, _values(tables[record.run_id], strength, metric))
        for record in records
        for strength in sorted({s["strength"] for s in record.scores if s.get("strength") is not None})
        if (folder := root / record.run_id / "images" / strength_folder(strength)).is_dir()
    ]
    _mark(rows)
    rows.sort(key=lambda row: (*row.key, row.strength, row.seed))
    first = records[0].config
    return Gallery(
        labels[records[0].run_id],
        str(name_of(first.get("backbone"))),
        rows,
        _prompts(first),
        metric,
        any(s.get("higher_is_better") for r in records for s in r.scores if s.get("metric") == metric),
    )


def _mark(rows: Sequence[Row]) -> None:
    """Mark one row per method and setting: smallest training seed, its configured strength or the middle one."""
    for key in {row.key for row in rows}:
        same = [row for row in rows if row.key == key]
        seed = min(row.seed for row in same)
        same = [row for row in same if row.seed == seed]
        named = default_strength_of(same[0].record.config)
        ordered = sorted(same, key=lambda row: row.strength)
        chosen = [row for row in ordered if row.strength == named] or [ordered[(len(ordered) - 1) // 2]]
        chosen[0].main = True


def _prompts(config: Mapping[str, Any]) -> Sequence[str]:
    """The evaluation prompts in their order; empty when only the staged dataset knows them and it is not here."""
    from bench.contracts import BenchError
    from bench.data import evaluation

    spec = config.get("requested", {}).get("dataset")
    if spec is None:
        return []
    try:
        return list(evaluation.prompts(spec))
    except (BenchError, OSError, KeyError):
        return []


def _per_image(folder: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return reading.per_image(folder / "per_image.csv")
    except FileNotFoundError:
        return pd.DataFrame(columns=["strength", "prompt", "seed"])
    except (OSError, BenchError) as error:
        log.warning("%s was left out: %s.", folder / "per_image.csv", error)
        return pd.DataFrame(columns=["strength", "prompt", "seed"])


def _values(table: pd.DataFrame, strength: float, metric: str | None) -> dict[tuple[str, int], float]:
    if metric is None or metric not in table:
        return {}
    lines = table[(table.strength == strength) & table[metric].notna()]
    return {(p, int(s)): float(v) for p, s, v in zip(lines.prompt, lines.seed, lines[metric], strict=True)}
