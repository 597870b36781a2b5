"""Answers to claims in words, as a frame, and as a table."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bench.analysis.claim_answers import Answered
from bench.analysis.claims import Claim

if TYPE_CHECKING:
    import pandas as pd

EXPLORATORY = "Everything that is not declared here is exploratory: it has intervals and no verdict."
HOW = (
    "Brackets: 95 % intervals, not corrected. p: Holm over the {count} declared claims. Gap: the smallest true gap "
    "that this design shows with 80 % power. " + EXPLORATORY
)
COLUMNS = "claim status estimate low high p p_holm gap n covers source reached sentence quantity reason missing".split()


def quantity(claim: Claim) -> str:
    """What is estimated, in symbols: "|A| - |B| of lpips_leak at matched gap_closed_lpips"."""
    difference = "A - B" if claim.b else "A"
    near = claim.direction == "nearer" or claim.near
    made = {
        "difference": "|A - ideal| - |B - ideal|" if near else difference,
        "equivalence": f"{'|A - ideal| - |B - ideal|' if near else difference} within {claim.margin:g}",
        "bound": f"A - {claim.margin:g}",
        "slope": f"slope over the strength of {difference}",
        "monotone": "smallest step between neighbouring strengths of A",
    }[claim.kind]
    return f"{made}, {claim.metric}" + (f" at equal {claim.matched}" if claim.matched else "")


def frame(found: Sequence[Answered]) -> pd.DataFrame:
    """A line for each claim with COLUMNS."""
    import pandas as pd

    lines = []
    for one in found:
        answer, claim = one.answer, one.claim
        numbers = [answer.estimate, answer.low, answer.high, answer.p, answer.p_holm, answer.detectable, answer.n]
        words = [", ".join(answer.covers), claim.source, claim.reached, claim.sentence, quantity(claim)]
        lines.append([claim.id, answer.status, *numbers, *words, reason(one), "; ".join(one.missing)])
    return pd.DataFrame(lines, columns=COLUMNS)


def reason(one: Answered) -> str:
    """Why there is no answer, or what else the interval says."""
    if one.answer.reason:
        return one.answer.reason
    ends = max(abs(one.answer.low), abs(one.answer.high))
    if one.claim.kind == "difference" and one.claim.margin and ends < one.claim.margin:
        return f"the interval lies within the margin of {one.claim.margin:g}: the gap is too small to matter"
    return ""


def numbers(one: Answered) -> str:
    """ "-0.021 [-0.03, -0.012], p 0.004, gap 0.015"; nothing without an answer."""
    answer = one.answer
    if math.isnan(answer.estimate):
        return ""
    interval = f"{answer.estimate:.3g} [{answer.low:.3g}, {answer.high:.3g}]"
    gap = f", gap {answer.detectable:.2g}" if math.isfinite(answer.detectable) else ""
    return f"{interval}, p {answer.p_holm:.2g}{gap}"


def text(found: Sequence[Answered], width: int = 100) -> str:
    """All claims for a terminal."""
    blocks = ["\n".join(_lines(one, width)) for one in found]
    return "\n\n".join([*blocks, textwrap.fill(HOW.format(count=len(found)), width)])


def _lines(one: Answered, width: int) -> Iterator[str]:
    claim = one.claim
    yield f"{claim.id}: {one.answer.status}"
    for part in (claim.sentence, f"{claim.source}; read: {claim.reached}", measured(one), reason(one)):
        if part:
            yield textwrap.fill(part, width, initial_indent="  ", subsequent_indent="  ")
    listed = [("missing", one.missing)] if one.missing else [("cells", one.commands)]
    for label, commands in listed:
        yield from (f"  {label}: {command}" for command in commands)


def measured(one: Answered) -> str:
    """What is estimated, the numbers, and over how many units."""
    measured = f"{quantity(one.claim)}: {numbers(one)}" if numbers(one) else quantity(one.claim)
    units = ", ".join(f"{count} {level}s" for level, count in one.answer.units.items() if count > 1)
    return f"{measured} ({units})" if units else measured
