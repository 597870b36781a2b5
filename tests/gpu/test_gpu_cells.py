"""One tiny cell of each method family in half precision, alone and in a pack, against float32 on the CPU.

Noise, timesteps and initial adapters come from CPU generators, so that a cell on another device or in another precision
differs by rounding alone. With BENCH_TEST_DEVICE=cpu the same runs in bfloat16 on the CPU.
"""

import numpy as np
import pytest
import torch
from gpu_cells import DEVICE, FAMILIES, FULL, UNTRAINED, a_cell, alone, distance, run_cells

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
HALF = ["bfloat16", "float16"]
CASES = [pytest.param(dtype, method, id=f"{dtype}-{method}") for dtype in HALF for method in FAMILIES]

# (relative, absolute) error of losses and mean difference of images in grey levels: about three times what the CPU
# shows. In float16 the first steps may be skipped while the loss scale settles, so only the first losses are close.
FIRST = {"bfloat16": (0.1, 0.01), "float16": (0.02, 0.001), "float32": (0.01, 1e-4)}
LATER = {"bfloat16": (0.2, 0.02), "float16": (0.6, 0.01), "float32": (0.05, 1e-3)}
GREY = {"bfloat16": 15.0, "float16": 5.0, "float32": 1.0}


def assert_like(found, expected, dtype):
    for rows, (relative, absolute) in ((slice(0, 1), FIRST[dtype]), (slice(1, None), LATER[dtype])):
        np.testing.assert_allclose(found.losses[rows], expected.losses[rows], rtol=relative, atol=absolute)
    assert distance(found, expected)["grey"] <= GREY[dtype]


def needs(dtype):
    if dtype == "float16" and DEVICE == "cpu":
        pytest.skip("float16 is for the GPU: CPUs compute it in float32 and slowly")


@pytest.mark.parametrize("dtype, method", CASES)
def test_a_cell_alone_is_that_of_the_cpu_but_for_rounding(dtype, method, record_property):
    needs(dtype)
    expected, found = alone(method, "float32", "cpu"), alone(method, dtype, DEVICE)
    for name, value in distance(found, expected).items():
        record_property(name, round(value, 5))
    assert_like(found, expected, dtype)
    assert found.images.std() > 5, "the images are flat"
    assert found.record.scores and all(np.isfinite(entry["value"]) for entry in found.record.scores)
    assert (len(found.losses) == 0) == (method in UNTRAINED)


@pytest.mark.parametrize("dtype, method", CASES)
def test_in_a_pack_each_cell_is_as_alone(dtype, method, tmp_path, record_property):
    needs(dtype)
    expected = alone(method, dtype, DEVICE)
    found, other = run_cells([a_cell(method, dtype, DEVICE, tmp_path, seed) for seed in (0, 1)], pack=2)
    for name, value in distance(found, expected).items():
        record_property(name, round(value, 5))
    assert_like(found, expected, dtype)
    if method not in UNTRAINED:
        assert not np.array_equal(found.losses, other.losses), "both cells drew the same noise"
        assert found.record.cost["pack"] == (1 if method in FULL else 2)


@pytest.mark.parametrize("method", ["pair", "dreambooth", "taming"])
def test_float32_is_that_of_the_cpu(method, record_property):
    if DEVICE == "cpu":
        pytest.skip("this compares the GPU with the CPU")
    expected, found = alone(method, "float32", "cpu"), alone(method, "float32", DEVICE)
    for name, value in distance(found, expected).items():
        record_property(name, round(value, 6))
    assert_like(found, expected, "float32")


@pytest.mark.parametrize("dtype", HALF)
def test_a_cell_that_is_let_go_resumes_from_its_checkpoint(dtype, tmp_path):
    from bench.sweeps.packs import run_pack

    needs(dtype)
    expected = alone("pair", dtype, DEVICE)
    cell, polls = a_cell("pair", dtype, DEVICE, tmp_path), iter(range(100))
    assert run_pack([cell], 1, stop=lambda: next(polls) >= 3) == []
    (work,) = (tmp_path / ".work").iterdir()
    done = len((work / "log.csv").read_text().splitlines()) - 1
    assert (work / "checkpoint.safetensors").is_file() and 0 < done < len(expected.losses)
    (found,) = run_cells([cell])
    assert found.record.cost["steps"] == len(expected.losses) - done
    assert_like(found, expected, dtype)


@pytest.mark.parametrize("asked", [True, "graphs"])
def test_compiled_blocks_train_alike(asked, record_property):
    if DEVICE == "cpu":
        pytest.skip("tests/bench/test_compiling.py compiles on the CPU, and CUDA graphs need a GPU")
    more = (f"trainer.compile={str(asked).lower()}", "pack=1")
    expected, found = alone("dreambooth", "bfloat16", DEVICE), alone("dreambooth", "bfloat16", DEVICE, more)
    record_property("compiled", found.record.cost.get("compile"))
    assert not [note for note in found.record.notes if "could not be compiled" in note]
    assert found.record.cost["compile"] > 0
    assert_like(found, expected, "bfloat16")


def test_the_record_names_the_device_and_its_memory():
    record = alone("pair", "bfloat16", DEVICE).record
    assert record.cost["peak_gb"] > 0
    assert record.provenance["gpu"] == (torch.cuda.get_device_name() if DEVICE == "cuda" else None)
