"""Errors that are one sentence for the user: what was requested, what was found, what to type."""

from __future__ import annotations


class BenchError(Exception):
    """One clear sentence for the user: what was requested, what was found, what to type."""


class Impossible(BenchError):
    """This method cannot run on this dataset or backbone; the cell is recorded as skipped with this reason."""
