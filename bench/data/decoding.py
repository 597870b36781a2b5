"""Image files as arrays of one size.

Shapes: P pixels per side; images leave as uint8 (3, P, P).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

from bench.contracts import BenchError
from bench.data.pixel_formats import UnknownRange, to_rgb
from bench.data.pixel_limit import opened

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


def decode(path: Path) -> Image:
    """An image file as RGB: EXIF orientation applied, transparency on white. Raises BenchError."""
    from PIL import ImageOps

    try:
        # Damaged EXIF blocks only warn, damaged pixels raise.
        with opened(path) as file:
            ImageOps.exif_transpose(file, in_place=True)  # in place: the tags of the format are still needed
            return to_rgb(file)
    except FileNotFoundError as error:
        raise BenchError(f"the image {path} does not exist; correct the path.") from error
    except IsADirectoryError as error:
        raise BenchError(f"{path} is a folder where an image is needed; name one file.") from error
    except UnknownRange as error:
        raise BenchError(f"the image {path} cannot be used: {error}.") from error
    except (OSError, EOFError, SyntaxError, ValueError, struct.error, OverflowError) as error:
        raise BenchError(
            f"{path} cannot be read as an image, it is truncated, damaged or of another kind ({error}); "
            "replace it or take it out."
        ) from error


def fit(picture: Image, resolution: int) -> np.ndarray:
    """Short side to P with antialiasing, then the centre: uint8 (3, P, P)."""
    import numpy as np
    from PIL import Image, ImageOps

    square = ImageOps.fit(picture, (resolution, resolution), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def read(path: Path, resolution: int) -> np.ndarray:
    """An image file as uint8 (3, P, P)."""
    return fit(decode(path), resolution)


def resized(image: np.ndarray, resolution: int) -> np.ndarray:
    """uint8 (3, P, P) at another P."""
    from PIL import Image

    if image.shape[-1] == resolution:
        return image
    return fit(Image.fromarray(image.transpose(1, 2, 0)), resolution)
