"""Images of many cells drawn in shared passes, and the names that they are stored under."""

from __future__ import annotations

from collections.abc import Sequence
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


def drawn(bank: Bank, requests: Sequence[Request], sampler: Sampler, label: str) -> list[np.ndarray]:
    """Images uint8 (N, 3, P, P) of each request, which all have equally many shots."""
    import numpy as np

    from bench.sampling.sampler import sample

    chunks = (images for chunk in sample(bank, requests, sampler) for images in zip(*chunk, strict=True))
    rows = list(progress(chunks, label, "image", len(requests[0].shots)))
    return [np.stack(column) for column in zip(*rows, strict=True)]
