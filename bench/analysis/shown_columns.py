"""Which columns a table shows, and what conf/table.yaml says of them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from functools import cache
from typing import TYPE_CHECKING, Any

from bench import paths
from bench.analysis.frames import metric_columns
from bench.contracts import BenchError
from bench.store.old_names import today

if TYPE_CHECKING:
    import pandas as pd


CONF = paths.CONF / "table.yaml"


@cache
def _settings_of_tables() -> dict[str, Any]:
    import yaml

    return yaml.safe_load(CONF.read_text())


def headline() -> list[str]:
    """Names of the columns shown first, from conf/table.yaml."""
    return _settings_of_tables()["headline"]


def observed() -> frozenset[str]:
    """Parts of a fingerprint in which numbers of one column may differ, from conf/table.yaml."""
    return frozenset(_settings_of_tables()["observed"])


def per_image() -> dict[str, str]:
    """Number of a set -> per-image column of whose mean it may be a straight line, from conf/table.yaml."""
    return _settings_of_tables()["per_image"]


def groups() -> dict[str, list[str]]:
    """Title of a group of columns -> patterns of their ids, from conf/table.yaml."""
    return _settings_of_tables()["groups"]


def group(name: str) -> str:
    """The group of a column by its id; "" where it has none."""
    return next((title for title, ids in groups().items() if any(fnmatch(name, one) for one in ids)), "")


def by_group(columns: Sequence[str]) -> list[str]:
    """Columns in their order, those of one group beside each other."""
    order = list(dict.fromkeys(group(_bare(column)) for column in columns))
    return sorted(columns, key=lambda column: order.index(group(_bare(column))))


def choose(rows: pd.DataFrame, metrics: Sequence[str] | None = None) -> list[str]:
    """Columns to show: the headline, those named (without or with their network), or ["all"] that hold a number."""
    return among([column for column in metric_columns(rows) if rows[column].notna().any()], metrics)


def among(have: Sequence[str], metrics: Sequence[str] | None = None) -> list[str]:
    """The same of columns that hold a number."""
    if metrics == ["all"]:
        return list(have)
    wanted = [today(name) for name in metrics or headline()]
    unknown = [
        name for name in (wanted if metrics else []) if name not in {_bare(column) for column in have} | set(have)
    ]
    if unknown:
        raise BenchError(f"No record has the metric {', '.join(unknown)}; there are {', '.join(have) or 'none'}.")
    return [column for name in wanted for column in have if name in (column, _bare(column))]


def _bare(column: str) -> str:
    return column.partition(" [")[0]
