"""Tiny cells on `mini` for the tests of the GPU paths: on which device, and what is compared of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest.mock import patch

import numpy as np

from bench.cell import Cell
from bench.store.record import Record

DEVICE = os.environ.get("BENCH_TEST_DEVICE", "cuda")
STEPS = 4
METRICS = ("clip_score", "lpips_leakage", "style_gram")

# One method of each family and of each kind of adapter: what its yaml is told beside the number of steps.
FAMILIES: dict[str, tuple[str, ...]] = {
    "zero_shot": (),
    "pair": ("method.content_steps=2",),
    "dreambooth": (),
    "dreambooth_full": (),
    "slider": (),
    "slider_text": (),
    "styleforge_lora": (),
    "styleforge": (),
    "multi_styleforge_lora": (),
    "taming": ("method.class_images=2",),
    "ip_adapter": (),
    "ip_adapter_train": (),
}
UNTRAINED = ("zero_shot", "ip_adapter")
FULL = ("dreambooth_full", "styleforge")  # full fine-tuning is a pack of one
SETTINGS = ("dataset=halftone", "dataset.prompts=[a photo of a red tree on a beach]", "dataset.seeds=[0,1]",
            "sampler.steps=3", "trainer.prior_images=2", "tracker=none")  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a cell left: losses (steps, n), images uint8 (2, 3, 64, 64), its record."""

    losses: np.ndarray
    images: np.ndarray
    record: Record


def a_cell(method: str, dtype: str, device: str, results: Path, seed: int = 0, more: Sequence[str] = ()) -> Cell:
    from hydra import compose, initialize_config_dir

    from bench.runs import CONF, cell, register_datasets

    recipe = () if method in UNTRAINED else (f"method.recipe.steps={STEPS}",)
    own = (f"method={method}", f"backbone.dtype={dtype}", f"backbone.device={device}", f"seed={seed}")
    register_datasets()
    with initialize_config_dir(CONF, version_base="1.3"):
        made = cell(compose("config", [*SETTINGS, *own, *recipe, *FAMILIES[method], f"results={results}", *more]))
    return replace(made, metrics={name: made.metrics[name] for name in METRICS})


def run_cells(cells: Sequence[Cell], pack: int | None = None) -> list[Outcome]:
    """One after another or, with `pack`, together; nothing that another device or precision drew is read."""
    from bench.run import run
    from bench.sweeps.packs import run_pack

    first = cells[0].backbone
    with patch.dict(os.environ, BENCH_CACHE=_cache(first["device"], first["dtype"])):
        records = [run(cell) for cell in cells] if pack is None else run_pack(cells, pack)
    by_id = {record.run_id: record for record in records}
    return [outcome(cell, by_id[cell.run_id]) for cell in cells]


def outcome(cell: Cell, record: Record) -> Outcome:
    from bench.data.image_files import strength_folder
    from bench.data.images import stored

    assert record.status == "done", record.reason
    folder = cell.results / cell.run_id
    log = folder / "log.csv"
    lines = log.read_text().splitlines()[1:] if log.is_file() else []
    losses = [[float(value) for value in line.split(",")[2].split()] for line in lines]
    width = max(map(len, losses), default=0)
    padded = np.array([row + [np.nan] * (width - len(row)) for row in losses])  # the first steps of Pair have one loss
    (strength,) = cell.strengths
    images = stored(folder / "images" / strength_folder(strength), ["000-s0", "000-s1"])[:]
    return Outcome(padded, images, record)


@cache
def _cache(device: str, dtype: str) -> str:
    return mkdtemp(prefix=f"{device}-{dtype}-", dir=os.environ["BENCH_CACHE"])


@cache
def alone(method: str, dtype: str, device: str, more: tuple[str, ...] = ()) -> Outcome:
    """A cell by itself, run once for all tests."""
    results = Path(mkdtemp(prefix="alone-", dir=os.environ["BENCH_CACHE"]))
    (found,) = run_cells([a_cell(method, dtype, device, results, more=more)])
    return found


def distance(one: Outcome, other: Outcome) -> dict[str, Any]:
    """The largest relative difference of losses, and the mean difference of images in grey levels."""
    assert one.losses.shape == other.losses.shape and (np.isnan(one.losses) == np.isnan(other.losses)).all()
    relative = np.abs(one.losses - other.losses) / np.abs(other.losses)
    grey = np.abs(one.images.astype(float) - other.images.astype(float)).mean()
    return {"losses": float(np.nanmax(relative, initial=0.0)), "grey": float(grey)}
