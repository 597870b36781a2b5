"""Tests of the GPU paths: `pytest -n 0 -m gpu` on a CUDA machine, or on the CPU with BENCH_TEST_DEVICE=cpu.

With BENCH_TEST_REPORT=FILE every test's outcome is written there as it ends, one JSON line each, so that a run that is
stopped loses nothing.
"""

import json
import os

import pytest
import torch
from gpu_cells import DEVICE


@pytest.fixture(scope="session", autouse=True)
def device():
    """cuda, or cpu where BENCH_TEST_DEVICE says so. Without a GPU the tests are skipped, not run elsewhere."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device; set BENCH_TEST_DEVICE=cpu to run the same on the CPU")
    return DEVICE


def pytest_runtest_logreport(report):
    path = os.environ.get("BENCH_TEST_REPORT")
    if path and (report.when == "call" or report.outcome != "passed"):
        name, seconds = report.nodeid.split("::", 1)[-1], round(report.duration, 2)
        line = {"test": name, "outcome": report.outcome, "seconds": seconds, **dict(report.user_properties)}
        if report.outcome != "passed":
            line["reason"] = _reason(report)
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")


def _reason(report) -> str:
    """What went wrong in at most 300 characters: the reason of a skip or the error's own line."""
    if report.outcome == "skipped":
        return str(report.longrepr[-1])[:300]
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr))[:300]
