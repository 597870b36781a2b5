"""A damaged checkpoint is dropped, with the adapters as they were; a whole one is read bit for bit."""

import random

import pytest
import torch
from damage import BYTES, damage
from test_damaged_store import cases

from bench.training import checkpoint

ROWS = {"style": torch.zeros(40), "content": torch.zeros(7)}


def tensors(k=3):
    made = {"k": torch.tensor(k)}
    for name, row in ROWS.items():
        drawn = torch.Generator().manual_seed(k)
        made |= {f"{name}/{key}": torch.randn(row.shape, generator=drawn) for key in checkpoint.STATE}
        made[f"{name}/step"] = torch.tensor(float(k))
    return made


def test_a_whole_one_is_read_bit_for_bit(tmp_path):
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        kept = {key: value.to(dtype) if value.ndim else value for key, value in tensors().items()}
        checkpoint.save(tmp_path / "c", kept)
        read = checkpoint.read(tmp_path / "c", ROWS, 3)
        assert set(read) == set(kept) and all(torch.equal(read[key], kept[key]) for key in kept)
    assert checkpoint.read(tmp_path / "none", ROWS, 3) is None


@pytest.mark.parametrize("block", cases(4, 60))
def test_a_damaged_one_is_dropped_or_is_the_same(tmp_path, block):
    """Never other numbers: what is read after any damage is what was written, or nothing."""
    whole, path = tensors(), tmp_path / "checkpoint.safetensors"
    for n in range(20):
        rng = random.Random(f"checkpoint {block} {n}")
        checkpoint.save(path, whole)
        path.write_bytes(rng.choice(BYTES)(path.read_bytes(), rng))
        read = checkpoint.read(path, ROWS, 10)
        assert read is None or all(torch.equal(read[key], whole[key]) for key in whole) and set(read) == set(whole)
        assert (read is None) == (not path.exists())


@pytest.mark.parametrize(
    "other", [{"style": torch.zeros(41)}, {"style": torch.zeros(40)}, {**ROWS, "x": torch.zeros(1)}]
)
def test_one_of_another_cell_is_dropped(tmp_path, caplog, other):
    checkpoint.save(tmp_path / "c", tensors())
    assert checkpoint.read(tmp_path / "c", other, 10) is None and not (tmp_path / "c").exists()
    assert len(caplog.records) == 1 and "was dropped; training begins anew" in caplog.text


def test_one_beyond_the_end_is_dropped(tmp_path):
    checkpoint.save(tmp_path / "c", tensors(k=11))
    assert checkpoint.read(tmp_path / "c", ROWS, 10) is None


@pytest.mark.parametrize("seed", range(12))
def test_a_place_that_holds_no_file_is_dropped_or_a_sentence(tmp_path, seed):
    path = tmp_path / "c"
    checkpoint.save(path, tensors())
    damage(path, random.Random(f"place {seed}"))
    assert checkpoint.read(path, ROWS, 10) is None or path.is_file()
