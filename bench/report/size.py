"""How large a page will be at least, before any of its tables is made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.report import gather
from bench.report.gallery import Gallery
from bench.report.thumbnails import training
from bench.store.record import Record

SAMPLE = 3  # records and galleries that are looked at
SHARE = 0.5  # of the size of the first records that the others have, at least


def least_bytes(
    records: Sequence[Record], galleries: Sequence[Gallery], datasets: Mapping[str, str], root: Path, side: int
) -> int:
    """Bytes of cells and training images, from the first of each; thumbnails of results come on top."""
    cells = len(json.dumps(gather.cells(records[:SAMPLE], root, datasets), default=str)) / SAMPLE
    shown = [training(gallery, side)["images"] for gallery in galleries[:SAMPLE]]
    pictures = min((sum(len(one["data"]) for one in images) for images in shown), default=0)
    return int(SHARE * cells * len(records) + pictures * len(galleries))
