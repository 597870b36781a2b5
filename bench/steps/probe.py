"""How many cells to train together: some throwaway steps of one cell, in 1, 2, 4, ... slots, show what pays."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from statistics import median

import torch

from bench.adapters.bank import Bank
from bench.contracts import FullSpec
from bench.seeding import generator
from bench.steps.job import training_job
from bench.steps.work import Work
from bench.training.trainer import Job, Training

MOST = 16
UNPROBED = 4  # where all training together is hardly longer than the probe
GAIN = 1.05  # a pack twice as large must do this much more per second
TICKS, SECONDS = 3, 0.6  # of each size, after one to warm up: no fewer ticks, no less time
MEMORY = 0.9  # of what is free on a GPU

log = logging.getLogger(__name__)
_known: dict[str, int] = {}


def best_size(work: Work, most: int = MOST) -> int:
    """How many cells like this one, at most `most`, train in one pack at the highest rate of steps per second."""
    specs, recipe, most = work.specs(), work.method.recipe, max(1, min(most, MOST))
    if recipe is None or most == 1 or any(isinstance(spec, FullSpec) for spec in specs.values()):
        return 1
    if recipe.steps * most < 3 * TICKS * MOST:
        return min(most, UNPROBED)
    key = json.dumps([dict(work.cell.backbone), repr(specs), recipe.batch_size, most], sort_keys=True, default=str)
    if key not in _known:
        _known[key] = _fastest(work, most)
    return _known[key]


def _fastest(work: Work, most: int) -> int:
    job, best, rates = replace(training_job(work), checkpoint=None), 1, {}
    for size in (2**i for i in range(most.bit_length())):
        rate, fits_twice = _rate(work, job, size)
        rates[size] = rate
        if size == 1 or rate > GAIN * rates[best]:
            best = size
        if best != size or not fits_twice:
            break
    log.info("steps per second by cells in a pack: %s", rates)
    return best


def _rate(work: Work, job: Job, size: int) -> tuple[float, bool]:
    """Steps per second of all cells together, and whether a pack of twice the size fits into memory."""
    slots = [generator("adapters", job.seed) for _ in range(size)]
    free = _free()
    bank = Bank(work.backbone, work.specs(), slots)
    try:
        training = Training(bank)
        for slot in range(size):
            training.add(replace(job, cell=slot), 2 * job.recipe.steps // 3)
        seconds = _seconds(training)
    except torch.OutOfMemoryError:
        return 0.0, False
    finally:
        bank.close()
    return size / seconds, _free() is None or 2 * _peak() < MEMORY * (free or 0)


def _seconds(training: Training) -> float:
    """Of one step of all cells: the median of some, which a machine that others use, too, disturbs least."""
    steps: list[float] = []
    started = time.perf_counter()
    while training.live and (len(steps) <= TICKS or sum(steps[1:]) < SECONDS):
        if list(training.tick()):
            now = time.perf_counter()
            steps.append(now - started)
            started = now
    return median(steps[1:] or steps or [float("inf")])


def _free() -> int | None:
    """Free bytes of the GPU, its peak forgotten; None without one."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.mem_get_info()[0]


def _peak() -> int:
    return torch.cuda.max_memory_allocated()
