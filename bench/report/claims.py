"""The claims as the page shows them: a line and a chart for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bench.analysis import claim_text
from bench.analysis.claim_answers import Answered
from bench.analysis.contrasts import OPPOSITE, SHOWN

WIDTH, HEIGHT, SIDE, MIDDLE = 320, 62, 14, 24  # of a chart, in its own units
KINDS = {SHOWN: "shown", OPPOSITE: "opposite"}  # class names of a status


def shown(found: Sequence[Answered]) -> list[dict[str, Any]]:
    """One dictionary for each claim."""
    return [
        {
            "status": one.answer.status,
            "kind": KINDS.get(one.answer.status, "open-claim"),
            "sentence": one.claim.sentence,
            "numbers": claim_text.numbers(one) or claim_text.reason(one),
            "measured": claim_text.measured(one),
            "reason": claim_text.reason(one),
            "source": one.claim.source,
            "reached": one.claim.reached,
            "missing": bool(one.missing),
            "commands": list(one.missing or one.commands),
            "chart": chart(one),
        }
        for one in found
    ]


def chart(one: Answered) -> str:
    """The estimate with its interval, zero, and the margin, as SVG; nothing without an interval."""
    answer = one.answer
    if not all(map(math.isfinite, (answer.estimate, answer.low, answer.high))):
        return ""
    margin = one.claim.margin if one.claim.kind != "bound" else 0.0
    ends = [answer.low, answer.high, answer.estimate, 0.0, -margin, margin]
    low, high = min(ends), max(ends)
    run = (high - low) or 1.0

    def x(value: float) -> float:
        return round(SIDE + (value - low) / run * (WIDTH - 2 * SIDE), 1)

    parts = [f'<rect class="band" x="{x(-margin)}" y="6" width="{x(margin) - x(-margin):.1f}" height="36"/>'] * bool(
        margin
    )
    parts.append(f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="6" y2="42"/>')
    parts.append(f'<line class="bar-line" x1="{x(answer.low)}" x2="{x(answer.high)}" y1="{MIDDLE}" y2="{MIDDLE}"/>')
    parts.append(f'<circle cx="{x(answer.estimate)}" cy="{MIDDLE}" r="5"/>')
    parts += [
        f'<text x="{x(value)}" y="57" text-anchor="{anchor}">{value:.3g}</text>'
        for value, anchor in ((low, "start"), (high, "end"))
    ]
    label = f"{answer.estimate:.3g}, 95 % interval {answer.low:.3g} to {answer.high:.3g}"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
