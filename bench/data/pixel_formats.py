"""Every pixel format that Pillow decodes as RGB of 8 bits: scaled by the range of the format, or refused.

Floating-point pixels must lie in 0 to 1. Integers of 16 bits are divided by the largest value that the file format
can hold. Integers of 32 bits have no agreed range and are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
SIGNED, WHITE_IS_ZERO = 2, 0  # values of the last two
SIXTEEN_BITS = ("PNG", "PPM", "JPEG2000")  # Pillow scales their samples of more than 8 bits to 16
REMEDY = "export it with 8 or 16 bits per channel"


class UnknownRange(ValueError):
    """The brightness that the pixels stand for is not known."""


def to_rgb(picture: Image) -> Image:
    """A decoded picture as RGB, transparency on white. Raises UnknownRange for pixels without a known range."""
    from PIL import Image

    if picture.mode == "F" or picture.mode.startswith("I"):
        return _grey(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        paper = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(paper, picture).convert("RGB")
    return picture.convert("RGB")


def _grey(picture: Image) -> Image:
    """One channel of floats, or of integers of more than 8 bits."""
    import numpy as np
    from PIL import Image

    values = np.asarray(picture, np.float64)
    share = _of_floats(values) if picture.mode == "F" else _of_integers(values, _largest(picture))
    if _tag(picture, PHOTOMETRIC) == WHITE_IS_ZERO:
        share = 1 - share
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        share = np.where(values == clear, 1.0, share)
    return Image.fromarray(np.rint(share * 255).astype("uint8")).convert("RGB")


def _of_floats(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise UnknownRange(f"its floating-point pixels range from {low:g} to {high:g} and not from 0 to 1; {REMEDY}")
    return values


def _of_integers(values: np.ndarray, largest: int) -> np.ndarray:
    low, high = values.min(), values.max()
    if low < 0 or high > largest:
        raise UnknownRange(f"its pixels range from {low:g} to {high:g} and not from 0 to {largest}; {REMEDY}")
    if 0 < high <= 255 < largest:
        raise UnknownRange(f"its pixels reach {high:g} of {largest}, which is black; export it with 8 bits per channel")
    return values / largest


def _largest(picture: Image) -> int:
    """The largest integer that the file format holds. Raises UnknownRange where that is not known."""
    bits = _tag(picture, BITS)
    if picture.format == "TIFF" and isinstance(bits, int) and bits <= 16:
        return 2 ** (bits - (_tag(picture, SAMPLE_FORMAT) == SIGNED)) - 1
    if picture.format in SIXTEEN_BITS:
        return 2**16 - 1
    kind = f"{bits} bits" if bits else f"mode {picture.mode}"
    raise UnknownRange(f"its pixels are integers of {kind} without a known range; {REMEDY}")


def _tag(picture: Image, number: int) -> object:
    """The first value of a tag of a TIFF file, or None."""
    value = getattr(picture, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) and value else value
