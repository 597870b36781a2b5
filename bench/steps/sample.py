"""Sample: the images of a cell at each strength, drawn together with those of other cells where that is possible."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.contracts import Impossible
from bench.data.image_files import save_images, strength_folder
from bench.data.images import StoredImages, stored
from bench.paths import cache_folder
from bench.settings import digest
from bench.steps.baseline import baseline
from bench.steps.drawing import drawn, names
from bench.steps.work import Work

if TYPE_CHECKING:
    import numpy as np

CLASS_IMAGES = 16  # of the customised model without its token, for metrics that ask for them

log = logging.getLogger(__name__)


def sample(works: Sequence[Work]) -> None:
    """Draw together what works of one bank lack; what cannot be drawn together is left for each to draw alone."""
    sound = [work for work in works if work.error is None]
    for strength in dict.fromkeys(s for work in sound for s in work.cell.strengths):
        for group in _groups([work for work in sound if _to_draw(work, strength)]):
            try:
                for work, images in zip(group, draw(group, strength), strict=True):
                    keep(work, strength, images)
            except Exception as error:
                log.warning("%d cells could not be sampled together (%s); each is sampled alone.", len(group), error)


def _to_draw(work: Work, strength: float) -> bool:
    """Whether images must be drawn."""
    if strength not in work.cell.strengths or not _lacks_images(work, strength):
        return False
    return work.attempt(lambda: undrawn(work, strength)) is None and work.error is None


def _groups(works: Sequence[Work]) -> Iterator[list[Work]]:
    """Works with equally many images, so few that together they fill one batch of the sampler.

    One whose own images fill it is drawn alone: rows of one cell are quicker than as many rows of several.
    """
    by_count: dict[int, list[Work]] = {}
    for work in works:
        by_count.setdefault(len(work.shots), []).append(work)
    for group in by_count.values():
        most = max(1, group[0].sampler.batch // max(1, len(group[0].shots)))
        parts = [group[i : i + most] for i in range(0, len(group), most)]
        yield from (part for part in parts if len(part) > 1)


def draw(works: Sequence[Work], strength: float) -> list[np.ndarray]:
    """Images (N, 3, P, P) of each of some cells on one bank, with equally many images each, in shared passes."""
    from bench.sampling.sampler import Request

    first, started = works[0], time.perf_counter()
    requests = [Request(work.slot or 0, work.method, work.dataset, work.shots, strength) for work in works]
    label = f"sample {first.cell.run_id}{f' and {len(works) - 1} more' * (len(works) > 1)} strength {strength:g}"
    images = drawn(first.bank, requests, first.sampler, label, first.heed)
    for work, own in zip(works, images, strict=True):
        if work.method.recipe is None:
            save_images(_seedless(work, strength), own, names(work.shots))
        work.spend("sample_s", (time.perf_counter() - started) / len(works))
        work.spend("images", len(work.shots))
    return images


# --- the images of one cell


def images(work: Work, strength: float) -> StoredImages:
    """Images (N, 3, P, P) at one strength, drawn or, when they are stored, read."""
    if _lacks_images(work, strength):
        ready = undrawn(work, strength)
        keep(work, strength, draw([work], strength)[0] if ready is None else ready)
    else:
        _check(work, _folder(work, strength))
    return stored(_folder(work, strength), names(work.shots))


def undrawn(work: Work, strength: float) -> np.ndarray | None:
    """Images that need no drawing: the method makes them out of the baseline's, or, as it trains nothing, a cell of
    another seed drew the same."""
    made = work.method.from_baseline(baseline(work), work.dataset)
    if made is None and work.method.recipe is None and _seedless(work, strength).is_dir():
        work.note("images of a cell with another training seed: this method trains nothing")
        made = stored(_seedless(work, strength), names(work.shots))[:]
    return made


def keep(work: Work, strength: float, made: np.ndarray) -> None:
    _save(work, _folder(work, strength), made, names(work.shots))


def _save(work: Work, folder: Path, made: np.ndarray, called: Sequence[str]) -> None:
    if work.store is not None:
        work.store.check_mine(work.cell.run_id)
    save_images(folder, made, called)
    work.drawn.add(folder.relative_to(work.folder).as_posix())


def _check(work: Work, folder: Path) -> None:
    """Raises BenchError unless stored images of a finished cell are those that its record lists."""
    path = folder.relative_to(work.folder).as_posix()
    if path not in work.drawn:
        work.check(path)


def class_images(work: Work, strength: float) -> StoredImages:
    """What the customised model makes of the bare class, (16, 3, P, P); kept beside the cell's images."""
    from bench.sampling.sampler import Plain, Request, Shot

    if work.method.from_baseline(baseline(work), work.dataset) is not None:
        raise Impossible(f"The method {work.cell.method['name']} draws no images of its own.")
    prompt, place = f"a photo of a {work.dataset.noun}", len(work.dataset.prompts)
    chosen = [Shot(place, prompt, seed) for seed in range(CLASS_IMAGES)]
    folder = work.folder / "class_images" / strength_folder(strength)
    if not folder.is_dir():
        request = Request(work.slot or 0, Plain(work.method), work.dataset, chosen, strength)
        (made,) = drawn(work.bank, [request], work.sampler, f"class images {strength:g}", work.heed)
        _save(work, folder, made, names(chosen))
    else:
        _check(work, folder)
    return stored(folder, names(chosen))


def _lacks_images(work: Work, strength: float) -> bool:
    return not _folder(work, strength).is_dir()


def _folder(work: Work, strength: float) -> Path:
    return work.folder / "images" / strength_folder(strength)


def _seedless(work: Work, strength: float) -> Path:
    """Where images are kept that no training seed has a part in."""
    own = {key: value for key, value in work.cell.identity.items() if key != "seed"}
    return cache_folder() / "untrained" / digest({**own, "strength": strength}, 16)
