"""A labelled picture of many images: a row for each label, a column for each prompt."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.files import atomic_write

if TYPE_CHECKING:
    import numpy as np

    from bench.contracts import Dataset, Images


SIDE, GAP, LINE, FONT = 160, 6, 18, 14  # pixels: least side of an image, between images, a text line, a letter
LETTER = 7.2  # mean width of a letter, pixels


def grid(rows: Sequence[tuple[str, np.ndarray]], columns: Sequence[str], path: Path | str) -> None:
    """Write a PNG with one row of images, uint8 (n, 3, P, P), per (label, images) and a text above each column."""
    from PIL import Image, ImageDraw

    side = _side(rows)
    left = _left([label for label, _ in rows])
    texts = [_wrap(column, side) for column in columns]
    top = LINE * max([text.count("\n") + 1 for text in texts], default=0) + 2 * GAP
    width = left + len(columns) * (side + GAP) + GAP
    canvas = Image.new("RGB", (width, top + len(rows) * (side + GAP)), "white")
    draw = ImageDraw.Draw(canvas)
    for i, text in enumerate(texts):
        _text(draw, (left + i * (side + GAP), GAP), text)
    for j, (label, images) in enumerate(rows):
        y = top + j * (side + GAP)
        _text(draw, (GAP, y + side // 2 - LINE), _wrap(label, left - 2 * GAP))
        for i, image in enumerate(images):
            canvas.paste(_scaled(image, side), (left + i * (side + GAP), y))
    file = io.BytesIO()
    canvas.save(file, format="png")
    atomic_write(path, file.getvalue())


def truths(dataset: Dataset, baseline: Images, prompts: Sequence[str]) -> np.ndarray | None:
    """The style itself for each of the baseline's images, uint8 (n, 3, P, P); None where the dataset does not know."""
    import numpy as np

    found = [dataset.ideal(image, prompt) for image, prompt in zip(baseline, prompts, strict=True)]
    known = [image for image in found if image is not None]
    return np.stack(known) if known and len(known) == len(found) else None


def with_pair(
    rows: Sequence[tuple[str, np.ndarray]], columns: Sequence[str], dataset: Dataset
) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
    """The training pair as first column, where the dataset has true pictures: plain in the first row, the stylised
    half in all others. Other datasets' rows stay as they are."""
    import numpy as np

    if dataset.truth is None or not dataset.pairs:
        return list(rows), list(columns)
    pair = dataset.pairs[0]
    halves = [pair.content.image, *[pair.style.image] * (len(rows) - 1)]
    shown = [(label, np.concatenate([half[None], x])) for half, (label, x) in zip(halves, rows, strict=True)]
    return shown, ["training pair", *columns]


def _side(rows: Sequence[tuple[str, np.ndarray]]) -> int:
    """Pixels per shown image: small ones are enlarged by a whole number, large ones shown at 256."""
    pixels = max((images.shape[-1] for _, images in rows if len(images)), default=SIDE)
    return pixels * -(-SIDE // pixels) if pixels < SIDE else min(pixels, 256)


def _left(labels: Sequence[str]) -> int:
    longest = max((len(label) for label in labels), default=0)
    return round(min(longest, 20) * LETTER) + 2 * GAP


def _wrap(text: str, pixels: int) -> str:
    """At most four lines that fit the width."""
    return "\n".join(textwrap.wrap(text, max(4, int(pixels / LETTER)), max_lines=4, placeholder=" ..."))


def _text(draw: Any, position: tuple[int, int], text: str) -> None:
    from PIL import ImageFont

    draw.multiline_text(position, text, fill="black", font=ImageFont.load_default(size=FONT), spacing=LINE - FONT)


def _scaled(image: np.ndarray, side: int) -> Any:
    from PIL import Image

    picture = Image.fromarray(image.transpose(1, 2, 0))
    if picture.width == side:
        return picture
    return picture.resize((side, side), Image.Resampling.BICUBIC if picture.width < side else Image.Resampling.LANCZOS)
