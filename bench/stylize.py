"""A real image in the style that a finished cell learned.

python -m bench.stylize --record results/<run id> --image photo.png --strength 6 --start-t 600 --out out.png
DDIM inversion to an intermediate timestep, then the method's own guidance (`sampling.inversion`). A method that draws
nothing is applied to the image itself.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.contracts import BenchError
from bench.environment import one_sentence
from bench.files import atomic_write, check_place
from bench.settings import finite

if TYPE_CHECKING:
    import numpy as np

    from bench.steps.work import Work


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(
        prog="python -m bench.stylize", description="Stylise an image with a finished cell."
    )
    parse.add_argument("--record", type=Path, required=True, help="folder of the cell, results/<run id>")
    parse.add_argument("--image", type=Path, required=True, help="a square image; any size")
    parse.add_argument("--out", type=Path, required=True, help="the PNG to write")
    parse.add_argument("--fit", action="store_true", help="cut the centre out of an image that is not square")
    parse.add_argument("--prompt", help="what the image shows; default: a photo of a <noun of the cell's dataset>")
    parse.add_argument("--strength", type=finite, help="default: the method's own; Pair Customization took 6 here")
    parse.add_argument("--start-t", type=finite, default=600, help="timestep to go back to; more is more freedom")
    parse.add_argument("--steps", type=int, help="DDIM steps of the whole way; default: as the cell was sampled")
    parse.add_argument("--refine", type=int, default=1, help="fixed-point steps per inversion step; 0: DDIM inversion")
    parse.add_argument("--cfg", type=finite, default=1.0, help="classifier-free guidance; at 1 strength 0 is the image")
    return parse


def main(arguments: Sequence[str] | None = None) -> None:
    from bench.steps.reopen import read, reopen

    options = parser().parse_args(arguments)
    read(options.record)
    _writable(options.out)
    _square(options.image, options.fit)
    work = reopen(options.record)
    prompt = options.prompt or f"a photo of a {work.dataset.noun}"
    strength = work.method.strength if options.strength is None else options.strength
    image = stylised(work, options, prompt, strength)
    _write(options.out, image)
    print(f"{options.out}: {work.cell.run_id}, strength {strength:g}, prompt {prompt!r}")


def stylised(work: Work, options: argparse.Namespace, prompt: str, strength: float) -> np.ndarray:
    """uint8 (3, P, P)"""
    from bench.data.decoding import read
    from bench.sampling.inversion import stylise
    from bench.sampling.sampler import Request, Shot

    image = read(options.image, work.backbone.resolution)
    made = work.method.from_baseline(image[None], work.dataset)
    if made is not None:
        return made[0]
    steps = options.steps or work.sampler.steps
    sampler = replace(work.sampler, steps=steps, cfg=options.cfg, start_t=options.start_t)
    request = Request(0, work.method, work.dataset, [Shot(0, prompt, 0)], strength)
    try:
        return stylise(work.bank, request, image, sampler, options.refine)
    finally:
        work.close()


def _square(path: Path, fit: bool) -> None:
    """Raises BenchError for what is no image, or not square."""
    from bench.data.decoding import decode

    width, height = decode(path).size
    if width != height and not fit:
        raise BenchError(
            f"{path} has {width} x {height} pixels, and images are drawn square; cut it yourself, or type --fit "
            "to take its centre."
        )


def _writable(path: Path) -> None:
    check_place("--out", path)
    if path.suffix.lower() != ".png":
        raise BenchError(f"--out {path} cannot be written; give a name that ends in .png.")


def _write(path: Path, image: np.ndarray) -> None:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, format="png")
    atomic_write(path, file.getvalue())


if __name__ == "__main__":
    with one_sentence("bench.stylize"):
        main()
