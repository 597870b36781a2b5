"""Image files as arrays of one size.

Shapes: P pixels per side; images leave as uint8 (3, P, P).
"""

from __future__ import annotations

import struct
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from bench.contracts import BenchError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


QUIET = threading.Lock()  # filters of warnings belong to the process, not to a thread


def decode(path: Path) -> Image:
    """An image file as RGB: EXIF orientation applied, transparency on white. Raises BenchError."""
    from PIL import Image, ImageOps

    try:
        # Damaged EXIF blocks only warn, damaged pixels raise.
        with QUIET, warnings.catch_warnings(action="ignore"), Image.open(path) as file:
            picture = _rgb(ImageOps.exif_transpose(file))
    except FileNotFoundError as error:
        raise BenchError(f"the image {path} does not exist; correct the path.") from error
    except IsADirectoryError as error:
        raise BenchError(f"{path} is a folder where an image is needed; name one file.") from error
    except (OSError, EOFError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise BenchError(
            f"{path} cannot be read as an image, it is truncated, damaged or of another kind ({error}); "
            "replace it or take it out."
        ) from error
    return picture


def _rgb(picture: Image) -> Image:
    from PIL import Image

    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):  # 16 bits of grey: PIL's convert would clip
        import numpy as np

        grey = np.asarray(picture, np.float64)
        return Image.fromarray((grey / (257 if grey.max() > 255 else 1)).astype("uint8")).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        paper = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(paper, picture).convert("RGB")
    return picture.convert("RGB")


def fit(picture: Image, resolution: int) -> np.ndarray:
    """Short side to P with antialiasing, then the centre: uint8 (3, P, P)."""
    import numpy as np
    from PIL import Image, ImageOps

    square = ImageOps.fit(picture, (resolution, resolution), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def read(path: Path, resolution: int) -> np.ndarray:
    """An image file as uint8 (3, P, P)."""
    return fit(decode(path), resolution)
