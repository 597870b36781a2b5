"""One torch thread per worker, no network, no run on the user's W&B account, and caches in a folder of this session."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MIRROR = ROOT.parent / "shared" / "data"

os.environ.update(
    OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", WANDB_MODE="offline", WANDB_SILENT="true", HF_HUB_OFFLINE="1"
)
if MIRROR.is_dir():
    os.environ.setdefault("BENCH_MIRROR", str(MIRROR))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """BENCH_CACHE points at a temporary folder, so no test reads what an earlier run left behind."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["BENCH_CACHE"] = str(folder)
    return folder
