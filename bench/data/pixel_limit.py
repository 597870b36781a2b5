"""Opens image files of pixel formats, up to a number of pixels: a small file can describe a picture that fills memory.

BENCH_MAX_PIXELS=400000000 python -m bench ...      raises the limit
"""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BenchError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 178_956_970  # 512 MiB of RGB; Pillow refuses more, too
VARIABLE = "BENCH_MAX_PIXELS"
NO_PIXELS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # EPS runs Ghostscript; Pillow only recognises the others
LOCK = threading.RLock()  # filters of warnings and Pillow's own limit belong to the process, not to a thread


def max_pixels() -> int:
    """Most pixels of an image file, from BENCH_MAX_PIXELS. Raises BenchError when that is no positive whole number."""
    text = os.environ.get(VARIABLE) or str(MAX_PIXELS)
    if not text.isdecimal() or int(text) < 1:
        raise BenchError(f"{VARIABLE}={text} was requested; type a number of pixels, for example {VARIABLE}=400000000.")
    return int(text)


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats of Pillow that hold pixels and that it decodes by itself."""
    from PIL import Image

    Image.init()
    return tuple(sorted(set(Image.OPEN) - set(NO_PIXELS)))


@functools.cache
def endings() -> tuple[str, ...]:
    """The endings of files in such formats, in lower case."""
    from PIL import Image

    known = {*formats(), "MPO"}  # several JPEGs in one file, opened as JPEG
    return tuple(sorted(ending for ending, kind in Image.registered_extensions().items() if kind in known))


@contextmanager
def opened(path: Path) -> Iterator[Image]:
    """An image file, not yet decoded. Raises BenchError above the limit, and what Pillow raises for a damaged file."""
    from PIL import Image

    limit, own = max_pixels(), Image.MAX_IMAGE_PIXELS
    with LOCK, warnings.catch_warnings(action="ignore"):
        Image.MAX_IMAGE_PIXELS = (limit + 1) // 2  # Pillow raises above twice this number
        try:
            with Image.open(path, formats=formats()) as file:
                if file.width * file.height > limit:
                    raise Image.DecompressionBombError(f"{file.width} x {file.height} pixels")
                yield file
        except Image.DecompressionBombError as error:
            raise BenchError(
                f"{path} has more than {limit:,} pixels ({error}); make it smaller, "
                f"or raise the limit: {VARIABLE}=<number of pixels>."
            ) from error
        finally:
            Image.MAX_IMAGE_PIXELS = own
