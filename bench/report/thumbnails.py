"""Small pictures as text that a page can hold, in the order of the gallery's rule, until the page is full."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.contracts import BenchError
from bench.report.gallery import Gallery

if TYPE_CHECKING:
    import numpy as np

PREFIX = "data:image/webp;base64,"
PAIRS, REFERENCES = 2, 4  # training images shown: pairs, or, without pairs, references
Place = tuple[int, int, int]  # gallery, row, column


def encoded(picture: Any, side: int, quality: int = 85) -> str:
    """A PIL picture, at most `side` pixels wide and high, as base64 of a WebP file."""
    from PIL import Image

    small = picture.convert("RGB")
    if max(small.size) > side:
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, format="webp", quality=quality, method=4)
    return base64.b64encode(file.getvalue()).decode()


def of_file(path: Path, side: int) -> str | None:
    """The thumbnail of an image file; None when it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return encoded(picture, side)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


@dataclass
class Budget:
    """How many bytes of the page are left."""

    left: int
    full: bool = False

    def take(self, size: int) -> bool:
        """Whether this fits; once something did not, nothing more is taken."""
        self.full = self.full or size > self.left
        if not self.full:
            self.left -= size
        return not self.full


@dataclass
class Filled:
    """Thumbnails by gallery and "row column", and what became of the others."""

    chunks: list[dict[str, str]]
    shown: int = 0
    left_out: int = 0
    broken: list[Path] = field(default_factory=list)


def fill(galleries: Sequence[Gallery], budget: Budget, side: int) -> Filled:
    """As many thumbnails as the budget holds, the rule's own columns first."""
    filled = Filled([{} for _ in galleries])
    for g, r, c in dict.fromkeys(wanted(galleries)):
        path = galleries[g].rows[r].files[galleries[g].shots[c]]
        text = None if budget.full else of_file(path, side)
        if text is None and not budget.full:
            filled.broken.append(path)
        elif text is not None and budget.take(len(text) + len(f'"{r} {c}":"",')):
            filled.chunks[g][f"{r} {c}"] = text
            filled.shown += 1
        else:
            filled.left_out += 1
    return filled


def wanted(galleries: Sequence[Gallery]) -> Iterator[Place]:
    """Every image, the rule's rows and columns first, then its columns in every row, then all; galleries take turns."""
    for tier in (_ruled, _picked, _all):
        turns = zip_longest(*[tier(g, gallery) for g, gallery in enumerate(galleries)])
        yield from (place for place in chain.from_iterable(turns) if place is not None)


def _ruled(g: int, gallery: Gallery) -> Iterator[Place]:
    yield from (place for place in _picked(g, gallery) if gallery.rows[place[1]].main)


def _picked(g: int, gallery: Gallery) -> Iterator[Place]:
    column = {shot: c for c, shot in enumerate(gallery.shots)}
    for part in gallery.picks().values():
        for shot in part:
            yield from ((g, r, column[shot]) for r, row in enumerate(gallery.rows) if shot in row.files)
    for r, row in enumerate(gallery.rows):
        yield from ((g, r, column[shot]) for shot in gallery.own_worst(row))


def _all(g: int, gallery: Gallery) -> Iterator[Place]:
    for c, shot in enumerate(gallery.shots):
        yield from ((g, r, c) for r, row in enumerate(gallery.rows) if shot in row.files)


# --- what the cells were trained on -------------------------------------------------------------------------------


def training(gallery: Gallery, side: int) -> dict[str, Any]:
    """The training images of a gallery's dataset as {"images": [{label, caption, data}], "reason"}."""
    from bench.data import identity, loading

    config = gallery.rows[0].record.config
    spec = config.get("requested", {}).get("dataset")
    if spec is None:
        return {"images": [], "reason": "the record does not say what it was trained on"}
    try:
        dataset = loading.load(_fewer(spec), config["backbone"]["resolution"])
        changed = config["dataset"].get("content") not in (None, identity.identity(spec))
    except (BenchError, OSError, KeyError, TypeError) as error:
        return {"images": [], "reason": str(error)}
    reason = "these images have changed since the cells were run" if changed else ""
    return {"images": [_shown(*found, side) for found in _examples(dataset)], "reason": reason}


def _fewer(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The dataset without what no viewer sees: drawn pictures do not depend on how many are drawn."""
    drawn = spec.get("rendered")
    few = {"rendered": {**drawn, "references": REFERENCES, "auxiliary": 0}} if drawn else {}
    return {**spec, "controls": [], **few}


def _examples(dataset: Any) -> Iterator[tuple[str, str, Any]]:
    for pair in dataset.pairs[:PAIRS]:
        yield "training pair: plain", pair.content.caption, pair.content.image
        yield "training pair: in style", pair.style.caption, pair.style.image
    for example in dataset.references[: 0 if dataset.pairs else REFERENCES]:
        yield "training image", example.caption, example.image


def _shown(label: str, caption: str, image: np.ndarray, side: int) -> dict[str, str]:
    from PIL import Image

    return {"label": label, "caption": caption, "data": encoded(Image.fromarray(image.transpose(1, 2, 0)), side)}
