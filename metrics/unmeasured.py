"""What a set of metrics does not measure, and why: the record says it beside the numbers that are there."""

from __future__ import annotations

from typing import ClassVar

from bench.contracts import Evaluation, Impossible, Metric, Score


class Unmeasured(Metric):
    """Gives no value, only its reason."""

    higher_is_better: ClassVar = {}

    def __init__(self, reason: str):
        self.reason = reason

    def missing(self) -> str | None:
        return None

    def score(self, evaluation: Evaluation) -> Score:
        raise Impossible(f"{self.reason}.")
