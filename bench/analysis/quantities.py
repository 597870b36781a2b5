"""What the columns of tables are: names, units and targets as the metric classes declare them.

Only classes that a shipped conf/metrics/*.yaml names are imported, never what a record names.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench import paths
from bench.analysis import shown_columns
from bench.contracts.metric import Quantity
from bench.settings import class_of

TARGET = re.compile(r"_target_:\s*[\"']?(metrics\.[\w.]+)")
SCALE = re.compile(r"([\d.]+) x ")
SHOWN_UNITS = ("%",)
COSTS = {  # id -> heading, unit, meaning
    "load_s": ("Loading", "s", "seconds to load backbone and dataset"),
    "baseline_s": ("Baseline", "s", "seconds to draw the images of the untouched backbone"),
    "prior_s": ("Class images", "s", "seconds to draw class images for prior preservation"),
    "train_s": ("Training", "s", "seconds of training; in a pack, an equal share of what the cells spent together"),
    "sample_s": ("Sampling", "s", "seconds of sampling, shared in the same way"),
    "score_s": ("Scoring", "s", "seconds of scoring"),
    "images_per_s": ("Images", "1/s", "images drawn per second"),
    "steps_per_s": ("Steps", "1/s", "training steps per second"),
    "peak_gb": ("Memory", "GB", "peak memory in GB: of the GPU where one is used, else of the process"),
    "adapter_bytes": ("Adapter", "bytes", "size of the saved adapter in bytes"),
    "trainable_parameters": ("Parameters", "", "number of trained parameters"),
}  # fmt: skip


@dataclass(frozen=True)
class Heading:
    """How a table shows a column: "KID x 1000", what value is best where that is a number, and its group."""

    text: str
    ideal: float | None = None
    group: str = ""


@functools.cache
def quantities() -> Mapping[str, Quantity]:
    """id -> its entry in docs/metrics.md, of all shipped metrics."""
    found: dict[str, Quantity] = {}
    for target in sorted({name for file in _files() for name in TARGET.findall(file.read_text(encoding="utf-8"))}):
        found |= getattr(class_of(target), "quantities", {})  # networks are named there, too
    return found


def _files() -> list[Any]:
    return sorted((paths.CONF / "metrics").glob("*.yaml"))


@functools.cache
def heading(name: str) -> Heading:
    """Of a metric or a cost by its id; a name that is neither is its own heading."""
    group = shown_columns.group(name)
    if name in COSTS:
        text, unit, _ = COSTS[name]
        return Heading(f"{text} ({unit})" if unit else text, None, group)
    about = quantities().get(name)
    if about is None:
        return Heading(name, None, group)
    scale = SCALE.match(about.unit)
    unit = f" x {scale[1]}" if scale else f" ({about.unit})" if about.unit in SHOWN_UNITS else ""
    return Heading((about.heading or name) + unit, getattr(about, "target", None), group)


def definitions() -> list[tuple[str, str]]:
    """(id, what it is) of every column that a table may have."""
    made = [(name, f"{about.name}; {about.unit}; {about.formula}") for name, about in quantities().items()]
    return made + [(name, meaning) for name, (_, _, meaning) in COSTS.items()]
