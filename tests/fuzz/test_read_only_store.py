"""A store on a file system that can only be read: everything is shown, what would write is one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from light import light_cell, run_light, submitted
from test_damaged_store import store_of

ROOT = Path(__file__).parents[2]


def mounted(path):
    """Bind a folder read-only onto itself in a mount namespace of a child; None where that is not allowed."""
    probe = subprocess.run(["unshare", "-m", "sh", "-c", f"mount --bind {path} {path}"], capture_output=True)
    if probe.returncode:
        pytest.skip("no right to mount here")
    return [
        "unshare",
        "-m",
        "sh",
        "-c",
        f'mount --bind {path} {path} && mount -o remount,ro,bind {path} && exec "$@"',
        "x",
    ]


def said(store, out, *words):
    env = os.environ | {"BENCH_CACHE": str(out / "cache"), "PYTHONPATH": str(ROOT / "tests")}
    command = [*mounted(store), sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture
def store(tmp_path):
    root = store_of(tmp_path / "store")
    made = submitted([light_cell(root, seed) for seed in (0, 1)])
    run_light([made.cell(made.entries[0])])
    (root / ".work").mkdir(exist_ok=True)
    return root


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "bench.table", "--results", "STORE"],
        ["-m", "bench.status", "--results", "STORE", "--once"],
        pytest.param(["-m", "bench.report", "--results", "STORE", "--out", "OUT/r.html"], marks=pytest.mark.slow),
        pytest.param(
            ["-m", "bench", "plan=true", "method=zero_shot", "dataset=blueprint", "results=STORE"],
            marks=pytest.mark.slow,  # as "plan of several"
        ),
        ["-m", "bench", "-m", "plan=true", "method=zero_shot", "dataset=blueprint", "seed=0,1", "results=STORE"],
    ],
    ids=["table", "status", "report", "plan", "plan of several"],
)
def test_what_only_looks_works(store, tmp_path, words):
    filled = [word.replace("STORE", str(store)).replace("OUT", str(tmp_path)) for word in words]
    ended = said(store, tmp_path, *filled)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "Traceback" not in ended.stderr and ended.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "bench", "method=zero_shot", "dataset=blueprint", "results=STORE"],
        ["-m", "bench", "-m", "method=zero_shot", "dataset=blueprint", "results=STORE"],
        pytest.param(["-m", "bench.report", "--results", "STORE", "--out", "STORE/r.html"], marks=pytest.mark.slow),
    ],
    ids=["one", "several", "report"],
)
def test_what_writes_is_one_sentence(store, tmp_path, words):
    ended = said(store, tmp_path, *[word.replace("STORE", str(store)) for word in words])
    assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr[-2000:]
    assert "Read-only file system" in ended.stderr.strip().splitlines()[-1]
