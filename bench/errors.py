"""Errors that are one sentence for the user: what was requested, what was found, what to type."""

from __future__ import annotations


class BenchError(Exception):
    """One clear sentence for the user: what was requested, what was found, what to type."""


class Impossible(BenchError):
    """This method cannot run on this dataset or backbone; the cell is recorded as skipped with this reason."""


class Unavailable(BenchError):
    """The environment lacks something now, such as space, weights or a network; a cell stays open without a record."""


class Stopped(BaseException):
    """This process was asked to leave. No error of a cell: nothing catches it before the cells are let go."""
