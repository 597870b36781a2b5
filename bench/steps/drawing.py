"""Images of many cells drawn in shared passes, and the names that they are stored under."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from bench.data.image_files import image_name
from bench.progress import progress

if TYPE_CHECKING:
    import numpy as np

    from bench.adapters.bank import Bank
    from bench.sampling.sampler import Request, Sampler, Shot


def names(chosen: Sequence[Shot]) -> list[str]:
    """File names, without their ending, of the images of these shots."""
    return [image_name(shot.index, shot.seed) for shot in chosen]


def drawn(
    bank: Bank, requests: Sequence[Request], sampler: Sampler, label: str, heed: Callable[[], None]
) -> list[np.ndarray]:
    """Images uint8 (N, 3, P, P) of each request, all with equally many shots; `heed` is called between batches."""
    import numpy as np

    from bench.sampling.sampler import sample

    def images() -> Iterator[tuple[np.ndarray, ...]]:
        done = 0
        heed()
        for chunk in sample(bank, requests, sampler):
            yield from zip(*chunk, strict=True)
            done += len(chunk[0])
            if done < len(requests[0].shots):  # the last batch is kept
                heed()

    rows = list(progress(images(), label, "image", len(requests[0].shots)))
    return [np.stack(column) for column in zip(*rows, strict=True)]
