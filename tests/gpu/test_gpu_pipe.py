"""The rest of the pipe on the GPU: SDXL's family, a sweep from the command line, a real image, what the doctor sees."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gpu_cells import DEVICE, SETTINGS, STEPS, a_cell, alone, run_cells
from PIL import Image
from test_gpu_cells import HALF, assert_like, needs
from tiny import picture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    """Settings for a tiny SDXL with random weights: two text encoders, added conditioning, Euler."""
    import random_pipelines

    folder = tmp_path_factory.mktemp("sdxl")
    random_pipelines.sdxl().save_pretrained(folder)
    own = (f"backbone.path={folder}", f"backbone.resolution={random_pipelines.PIXELS}")
    return ("backbone=sdxl", *own, "backbone.vae=null", "backbone.variant=null", "metrics=mini", "method.rank=8")


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("method", ["pair", "dreambooth"])
def test_sdxl_alone_and_in_a_pack_is_that_of_the_cpu_but_for_rounding(method, dtype, sdxl, tmp_path):
    needs(dtype)
    expected, found = alone(method, "float32", "cpu", sdxl), alone(method, dtype, DEVICE, sdxl)
    assert_like(found, expected, dtype)
    packed, _ = run_cells([a_cell(method, dtype, DEVICE, tmp_path, seed, sdxl) for seed in (0, 1)], pack=2)
    assert packed.record.cost["pack"] == 2
    assert_like(packed, expected, dtype)


def test_a_sweep_from_the_command_line_ends_in_its_rows(tmp_path):
    """Through Hydra, the planner and a worker process; the second time nothing is left to do."""
    own = [
        f"backbone.device={DEVICE}",
        "backbone.dtype=bfloat16",
        f"method.recipe.steps={STEPS}",
        f"results={tmp_path}",
    ]
    small = ["~metrics.fid", "~metrics.kid", "~metrics.cmmd", "~metrics.prdc"]
    command = [sys.executable, "-m", "bench", "-m", "method=slider,dreambooth", "seed=0,1", "workers=1", *own, *small]
    environment = os.environ | {"BENCH_CACHE": str(tmp_path / "cache"), "PYTHONWARNINGS": "ignore"}
    for _ in range(2):
        done = subprocess.run([*command, *SETTINGS], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    records = list(tmp_path.glob("*-mini-s[01]-*/record.json"))
    assert len(records) == 4
    assert all('"status": "done"' in record.read_text() for record in records)
    assert re.search(r"\b0 to run\b", done.stdout + done.stderr)


def test_a_real_image_takes_the_style_and_at_strength_zero_stays(tmp_path):
    from bench import stylize

    source = tmp_path / "photo.png"
    Image.fromarray(picture(0).transpose(1, 2, 0)).save(source)
    cell = a_cell("pair", "bfloat16", DEVICE, tmp_path)
    run_cells([cell])
    made = {}
    for strength in (0, 6):
        out = tmp_path / f"{strength}.png"
        stylize.main(["--record", str(tmp_path / cell.run_id), "--image", str(source), "--out", str(out),
                      "--strength", str(strength), "--steps", "10"])  # fmt: skip
        made[strength] = np.asarray(Image.open(out)).astype(int)
    before = picture(0).transpose(1, 2, 0).astype(int)
    assert np.abs(made[0] - before).mean() < 20 and not np.array_equal(made[0], made[6])


def test_the_doctor_names_the_device():
    from bench.doctor import machine

    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "none that torch sees"
    assert DEVICE == "cpu" and torch.cuda.is_available() or name in machine().about
