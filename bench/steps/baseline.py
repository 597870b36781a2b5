"""Baseline: images of the untouched backbone, drawn once for all cells that share prompts, seeds and sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.contracts import Example
from bench.data.image_files import save_images
from bench.data.images import StoredImages, stored
from bench.paths import cache_folder
from bench.settings import digest
from bench.steps.drawing import drawn, names
from bench.steps.work import Work

if TYPE_CHECKING:
    from bench.sampling.sampler import Shot


def baseline(work: Work) -> StoredImages:
    """Images (N, 3, P, P) of the untouched backbone with the cell's prompts, seeds and sampler."""
    if work.baseline is None:
        with work.clock("baseline_s"):
            work.baseline = untouched(work, work.shots, "baseline")
    return work.baseline


def prior(work: Work) -> list[Example]:
    """The backbone's own images of the class, for prior preservation; kept for all cells."""
    from bench.sampling.sampler import Shot

    wanted = work.method.prior(work.dataset)
    if wanted is None:
        return []
    prompt, count = wanted
    most = work.trainer.prior_images
    if most is not None and most < count:
        work.note(f"{most} images for prior preservation instead of {count}")
        count = most
    chosen = [Shot(0, prompt, seed) for seed in range(-count, 0)]  # never an evaluation seed
    with work.clock("prior_s"):
        images = untouched(work, chosen, "class images")
    return [Example(image, prompt, work.dataset.noun) for image in images]


def untouched(work: Work, chosen: Sequence[Shot], label: str) -> StoredImages:
    """Images of the untouched backbone, from the cache folder or drawn."""
    from bench.adapters.bank import Bank
    from bench.sampling.sampler import Request, Untouched

    requested = [(shot.index, shot.prompt, shot.seed) for shot in chosen]
    own = {"backbone": work.cell.identity["backbone"], "sampler": work.cell.sampler, "shots": requested}
    folder = cache_folder() / "baseline" / digest(own, 16)
    if not folder.is_dir():
        request = Request(0, Untouched(), work.dataset, chosen, 0.0)
        (images,) = drawn(Bank(work.backbone, {}, [None]), [request], work.sampler, label)
        save_images(folder, images, names(chosen))
    return stored(folder, names(chosen))
