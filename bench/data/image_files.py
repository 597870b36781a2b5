"""The images of a cell as files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.environment import using
from bench.errors import BenchError
from bench.files import replace_folder, write_through

if TYPE_CHECKING:
    import numpy as np


def strength_folder(strength: float) -> str:
    """Folder name of the images of one strength: "strength=3"."""
    return f"strength={strength:g}"


def image_name(prompt: int, seed: int) -> str:
    """File name, without its ending, of the image for one prompt index and evaluation seed: "004-s1000000"."""
    return f"{prompt:03d}-s{seed}"


def save_images(folder: Path | str, images: np.ndarray, names: Sequence[str]) -> None:
    """Write images, uint8 (N, 3, P, P), as <name>.png without loss; the folder appears only when all are in it."""
    from PIL import Image

    folder = Path(folder)
    with using(folder.parent, images.nbytes):
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            for image, name in zip(images, names, strict=True):
                with open(part / f"{name}.png", "wb") as file:
                    Image.fromarray(image.transpose(1, 2, 0)).save(file, format="png", compress_level=1)
                    write_through(file, b"")
            os.chmod(part, 0o755)
            replace_folder(part, folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def load_image(path: Path) -> np.ndarray:
    """One image of a record as uint8 (3, P, P). Raises BenchError."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BenchError(
            f"The image {path} cannot be read ({error}); delete its cell's folder and run it again."
        ) from None
