"""A labelled picture of many images: rows are methods or strengths, columns are prompts, same seeds in each column.

python -m bench.grid --where dataset=halftone,seed=0 --out grid.png     a row per method and strength, from all records
"""

from __future__ import annotations

import argparse
import io
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import paths
from bench.contracts import BenchError
from bench.files import atomic_write
from bench.store.record import Store

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from bench.work import Work

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
    sheet = Image.new("RGB", (width, top + len(rows) * (side + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, text in enumerate(texts):
        _text(draw, (left + i * (side + GAP), GAP), text)
    for j, (label, images) in enumerate(rows):
        y = top + j * (side + GAP)
        _text(draw, (GAP, y + side // 2 - LINE), _wrap(label, left - 2 * GAP))
        for i, image in enumerate(images):
            sheet.paste(_scaled(image, side), (left + i * (side + GAP), y))
    file = io.BytesIO()
    sheet.save(file, format="png")
    atomic_write(path, file.getvalue())


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
    return picture.resize((side, side), Image.Resampling.NEAREST if picture.width < side else Image.Resampling.LANCZOS)


# --- many records as one grid ------------------------------------------------------------------------------------


def drawn(root: Path, conditions: Sequence[str]) -> pd.DataFrame:
    """A line per record and strength that has images: the order of the rows."""
    from bench.analysis import frames

    rows = frames.wide(frames.where(frames.frame(Store(root).records()), conditions))
    rows = rows[(rows.status == "done") & rows.strength.notna()]
    if rows.empty:
        raise BenchError(
            f"No finished cell below {root} meets --where {' '.join(conditions)}; see python -m bench.table."
        )
    return rows.sort_values(["method", "settings", "strength", "seed"])


def collect(root: Path, conditions: Sequence[str], columns: int) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
    """Rows (label, uint8 (n, 3, P, P)) for the baseline, each method, strength and seed, and the oracle; and prompts.

    All images of a column have the same prompt and the same evaluation seed, the dataset's first.
    """
    import numpy as np

    from bench.analysis import frames
    from bench.store.finished import reopen

    lines = drawn(root, conditions)
    cells = {run_id: reopen(root / run_id) for run_id in lines.run_id.unique()}
    _alike(list(cells.values()))
    some = next(iter(cells.values()))
    first = [i for i, shot in enumerate(some.shots) if shot.seed == some.shots[0].seed][:columns]
    rows = [("backbone", some.baseline[first])]
    label = _label(lines, frames.configs(root, lines))
    rows += [(label(row), cells[row.run_id].sample(row.strength)[first]) for row in lines.itertuples()]
    if some.dataset.oracle is not None:
        rows.append(("style itself", np.stack([some.dataset.oracle(image) for image in some.baseline[first]])))
    return rows, [some.shots[i].prompt for i in first]


def _alike(cells: Sequence[Work]) -> None:
    """Raises BenchError unless the cells share what makes a column: prompts, noise and the way of sampling."""
    for key in ("dataset", "backbone", "sampler"):
        if any(cell.cell.identity[key] != cells[0].cell.identity[key] for cell in cells):
            raise BenchError(
                f"The records differ in their {key}, so their images cannot share columns; choose fewer with --where, "
                "e.g. --where dataset=halftone backbone=mini."
            )


def _label(lines: pd.DataFrame, configs: Mapping[str, Mapping[str, Any]]) -> Any:
    """What names a row: method and strength, and what tells its settings and its training seed from those of others."""
    from bench.analysis import layouts

    rows = set(zip(lines.method, lines.settings, strict=True))
    names = layouts.labels(rows, layouts.by_settings(configs))
    several = lines.seed.nunique() > 1
    return lambda row: (
        f"{names[row.method, row.settings]} {row.strength:g}" + (f" seed {row.seed:g}" if several else "")
    )


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(prog="python -m bench.grid", description="Images of many records in one picture.")
    parse.add_argument("--results", type=Path, default=paths.results_folder(), help="folder of the records")
    parse.add_argument("--where", nargs="+", action="extend", default=[], metavar="COLUMN=A,B", help="as bench.table")
    parse.add_argument("--columns", type=int, default=8, help="how many prompts")
    parse.add_argument("--out", type=Path, required=True, help="the PNG to write")
    return parse


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if not options.out.parent.is_dir():
        raise BenchError(f"--out {options.out} lies in no folder that exists; make the folder first.")
    grid(*collect(options.results, options.where, options.columns), options.out)
    print(options.out)


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"bench.grid: {error}")
