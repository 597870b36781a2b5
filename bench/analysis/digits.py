"""How many digits of a number are shown: as many as its standard error bears out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.analysis.table_model import Value

ROUNDING = 1e-9  # an interval narrower than this share of its mean is noise of the arithmetic
WIDTH = 2 * 1.96  # standard errors in a 95 % interval


def figures(value: Value, places: int | None = None) -> tuple[str, str]:
    """A mean and its interval, "23.8" and "[21.0, 26.6]", with the decimal places of its column, or with its own."""
    if math.isnan(value.mean):
        return value.text, ""
    places = of_error(value) if places is None else places
    if places is None:
        return f"{value.mean:.4g}", ""
    if math.isnan(_error(value)):
        return f"{value.mean:.1g}" if value.mean and abs(value.mean) < 0.5 / 10**places else _fixed(
            value.mean, places
        ), ""
    return _fixed(value.mean, places), f"[{_fixed(value.low, places)}, {_fixed(value.high, places)}]"


def _fixed(number: float, places: int) -> str:
    """A number with its places; what rounds to zero has no sign."""
    return f"{number:z.{places}f}"


def of_column(values: Sequence[Value]) -> int | None:
    """The decimal places of a column: those of its median standard error, else three figures of its median."""
    errors = [error for value in values if not math.isnan(error := _error(value))]
    if errors:
        return _places(median(errors))
    means = [abs(value.mean) for value in values if value.mean and not math.isnan(value.mean)]
    return max(0, 2 - math.floor(math.log10(median(means)))) if means and median(means) < 1e5 else None


def of_error(value: Value) -> int | None:
    """The decimal places of one number's standard error; None where it has none."""
    return None if math.isnan(error := _error(value)) else _places(error)


def _places(error: float) -> int:
    """One digit of the error, two where it begins with 1: 0.3 is one place, 0.13 two, 12 none."""
    exponent = math.floor(math.log10(error))
    return max(0, -exponent + (error < 2 * 10**exponent))


def _error(value: Value) -> float:
    """NaN where there is no interval, or none that is wider than the arithmetic's noise."""
    width = value.high - value.low
    return width / WIDTH if width > 2 * ROUNDING * abs(value.mean) else math.nan
