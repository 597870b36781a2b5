"""Styles as plain functions uint8 (H, W, 3) -> uint8 (H, W, 3), so that the stylised truth exists for every image.

`KNOWN` styles are named in pretraining captions; `HELD_OUT` styles are never seen by any network of `mini`.
Every function is deterministic and its features scale with the picture: one unit is H / 64 pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

Array = np.ndarray
Style = Callable[[Array], Array]

STYLE_WORDS = {
    "pencil": "pencil sketch",
    "watercolor": "watercolor painting",
    "oil": "oil painting",
    "charcoal": "charcoal drawing",
    "cartoon": "cartoon",
    "pastel": "pastel drawing",
    "sepia": "sepia photo",
    "monochrome": "black and white photo",
    "neon": "neon drawing",
    "night_vision": "night vision image",
    "thermal": "thermal image",
    "crayon": "crayon drawing",
    "posterise": "poster",
    "halftone": "halftone print",
    "mosaic": "mosaic",
    "ink": "ink drawing",
    "blueprint": "blueprint",
    "stained_glass": "stained glass window",
    "pixel_art": "pixel art",
    "engraving": "engraving",
    "duotone": "duotone print",
    "risograph": "risograph print",
    "linocut": "linocut print",
    "chalkboard": "chalkboard drawing",
}

# ------------------------------------------------------------------------------------------------- ingredients


def _unit(x: Array) -> float:
    return x.shape[0] / 64


def _float(image: Array) -> Array:
    return image.astype(np.float32) / 255


def _bytes(x: Array) -> Array:
    return np.clip(x * 255 + 0.5, 0, 255).astype(np.uint8)


def _grey(x: Array) -> Array:
    return x @ np.float32((0.30, 0.59, 0.11))


def _blur(x: Array, units: float) -> Array:
    sigma = units * _unit(x)
    return gaussian_filter(x, (sigma, sigma, 0)[: x.ndim])


def _edges(x: Array, units: float = 0.6) -> Array:
    """Gradient magnitude (H, W) per unit of the strongest channel, about 0..1 at object borders."""
    smooth = _blur(x, units)
    dy, dx = np.gradient(smooth, axis=(0, 1))
    return np.hypot(dx, dy).max(-1) * _unit(x) * 3


def _grain(x: Array, cells: int, seed: int) -> Array:
    """Fixed smooth noise (H, W) in [-1, 1]."""
    grid = np.random.default_rng(seed).uniform(-1, 1, (cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize(x.shape[1::-1], Image.Resampling.BICUBIC))


def _axes(x: Array) -> tuple[Array, Array]:
    """Pixel centres in units: rows (H, 1), columns (1, W)."""
    unit = _unit(x)
    return ((np.arange(x.shape[0], dtype=np.float32) + 0.5) / unit)[:, None], (
        (np.arange(x.shape[1], dtype=np.float32) + 0.5) / unit
    )[None, :]


def _between(low, high, share: Array) -> Array:
    """(H, W, 3): `low` where share is 0, `high` where it is 1."""
    share = np.clip(share, 0, 1)[..., None]
    return np.float32(low) * (1 - share) + np.float32(high) * share


def _step(x: Array, at: float, width: float) -> Array:
    return np.clip((x - at) / width + 0.5, 0, 1)


def _saturate(x: Array, gain: float) -> Array:
    grey = _grey(x)[..., None]
    return np.clip(grey + gain * (x - grey), 0, 1)


def _ramp(share: Array, colours) -> Array:
    """Piecewise linear colour scale over share in [0, 1]: (H, W, 3)."""
    stops = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(share, stops, channel) for channel in np.transpose(colours)], -1).astype(np.float32)


def _nearest(x: Array, palette) -> Array:
    palette = np.float32(palette) / 255
    return palette[((x[..., None, :] - palette) ** 2).sum(-1).argmin(-1)]


def _tiles(x: Array, units: float) -> Array:
    """Replace every square tile by its mean."""
    count = (round(x.shape[0] / _unit(x) / units), round(x.shape[1] / _unit(x) / units))
    small = Image.fromarray(_bytes(x)).resize(count[::-1], Image.Resampling.BOX)
    return _float(np.asarray(small.resize(x.shape[1::-1], Image.Resampling.NEAREST)))


def _cells(x: Array, units: float, seed: int) -> tuple[Array, Array]:
    """Jittered-grid Voronoi cells: label (H, W), and how much nearer the nearest seed is, in units."""
    rows, cols = _axes(x)
    n, m = int(np.ceil(rows.max() / units)) + 2, int(np.ceil(cols.max() / units)) + 2
    jitter = np.random.default_rng(seed).uniform(0.15, 0.85, (n, m, 2)).astype(np.float32)
    label = np.zeros(x.shape[:2], np.int64)
    first = np.full(x.shape[:2], np.inf, np.float32)
    second = first.copy()
    r, c = (rows // units).astype(int) + 1, (cols // units).astype(int) + 1
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            a, b = np.clip(r + i, 0, n - 1), np.clip(c + j, 0, m - 1)
            seed_at = jitter[a, b]
            d = np.hypot(rows - (a - 1 + seed_at[..., 0]) * units, cols - (b - 1 + seed_at[..., 1]) * units)
            nearer = d < first
            second = np.where(nearer, first, np.minimum(second, d))
            label, first = np.where(nearer, a * m + b, label), np.where(nearer, d, first)
    return label, second - first


# ------------------------------------------------------------------------------------------------ known styles


def pencil(image: Array) -> Array:
    x = _float(image)
    rows, cols = _axes(x)
    hatch = 0.5 + 0.5 * np.sin((rows + cols) * 2.1)
    tone = 0.97 - 0.5 * (1 - _grey(x)) * (0.35 + 0.65 * hatch) - 0.9 * np.clip(_edges(x) - 0.06, 0, 0.7)
    return _bytes(_between((0.16, 0.16, 0.18), (0.97, 0.97, 0.95), tone + 0.03 * _grain(x, 48, 1)))


def watercolor(image: Array) -> Array:
    x = _float(image)
    wash = _saturate(_blur(x, 1.1), 1.5)
    wash = 1 - (1 - wash) * (0.62 + 0.22 * _grain(x, 12, 2)[..., None])
    return _bytes(wash - 0.35 * np.clip(_edges(x, 1.2) - 0.1, 0, 0.5)[..., None])


def oil(image: Array) -> Array:
    x = _saturate(_blur(_float(image), 0.9), 1.5)
    dab = _grain(x, 20, 3) * 0.5 + _grain(x, 34, 4) * 0.5
    relief = np.gradient(_blur(_grey(x) + 0.5 * dab, 0.5), axis=1) * _unit(x)
    return _bytes((np.round(x * 5 + 0.35 * dab[..., None]) / 5 - 0.5) * 1.12 + 0.48 + 0.55 * relief[..., None])


def charcoal(image: Array) -> Array:
    x = _float(image)
    tone = 1.15 * _blur(_grey(x), 0.8) + 0.12 - 1.2 * _edges(x, 0.9)
    tone = np.clip(tone, 0, 1) ** 1.4 + 0.13 * _grain(x, 40, 5) + 0.06 * _grain(x, 64, 6)
    return _bytes(_between((0.07, 0.07, 0.07), (0.80, 0.78, 0.74), tone))


def cartoon(image: Array) -> Array:
    x = _saturate(_blur(_float(image), 0.8), 1.7)
    flat = np.round(x * 3.2 + 0.1) / 3.2
    flat = np.clip(flat * 0.9 + 0.12, 0, 1)
    return _bytes(flat * (1 - _step(_edges(x, 0.5), 0.36, 0.2))[..., None])


def pastel(image: Array) -> Array:
    x = 0.5 * _saturate(_blur(_float(image), 1.0), 1.2) + 0.5
    chalk = _step(_grain(x, 64, 7) * 0.7 + _grain(x, 30, 8) * 0.5, -0.35, 1.1)[..., None]
    return _bytes(x * chalk + np.float32((0.97, 0.93, 0.88)) * (1 - chalk))


def sepia(image: Array) -> Array:
    return _bytes(_between((0.17, 0.09, 0.03), (0.99, 0.88, 0.68), _grey(_float(image))))


def monochrome(image: Array) -> Array:
    grey = np.clip((_grey(_float(image)) - 0.5) * 1.25 + 0.5, 0, 1)
    return _bytes(np.repeat(grey[..., None], 3, -1))


def neon(image: Array) -> Array:
    x = _float(image)
    glow = _step(_edges(x, 0.6), 0.28, 0.45)
    hue = _saturate(np.clip(_blur(x, 1.5) + 0.25, 0, 1), 2.6)
    return _bytes(np.float32((0.03, 0.0, 0.08)) + hue * (glow + 0.45 * _blur(glow, 1.6))[..., None])


def night_vision(image: Array) -> Array:
    x = _float(image)
    rows, cols = _axes(x)
    lines = 0.88 + 0.12 * np.sin(rows * np.pi)
    fall = 1.05 - 0.35 * ((rows / 32 - 1) ** 2 + (cols / 32 - 1) ** 2) / 2
    return _bytes(_between((0.0, 0.06, 0.01), (0.55, 1.0, 0.45), _grey(x) ** 0.8 * lines * fall))


def thermal(image: Array) -> Array:
    heat = _blur(_grey(_float(image)), 0.7)
    stops = [(0.0, 0.0, 0.1), (0.25, 0.0, 0.55), (0.8, 0.1, 0.5), (1.0, 0.5, 0.05), (1.0, 0.9, 0.2), (1, 1, 0.9)]
    return _bytes(_ramp(heat, stops))


def crayon(image: Array) -> Array:
    x = _saturate(_blur(_float(image), 0.9), 2.0)
    rows, cols = _axes(x)
    wax = 0.5 + 0.5 * np.sin((rows * 0.6 - cols) * 1.9 + 2 * _grain(x, 10, 9)) + 0.5 * _grain(x, 50, 10)
    cover = (0.45 + 0.55 * _step(wax, 0.45, 0.7))[..., None]
    return _bytes(x * cover + np.float32((0.99, 0.98, 0.94)) * (1 - cover))


# --------------------------------------------------------------------------------------------- held-out styles

POSTER = [
    (26, 24, 60),
    (244, 236, 212),
    (206, 38, 50),
    (244, 126, 30),
    (250, 200, 70),
    (0, 118, 118),
    (86, 60, 150),
    (120, 196, 170),
]
PIXELS = [
    (20, 12, 40), (68, 36, 92), (48, 52, 140), (34, 110, 180), (90, 200, 220), (40, 110, 60), (110, 190, 60),
    (210, 224, 90), (250, 240, 190), (244, 170, 60), (224, 90, 40), (160, 32, 50), (230, 110, 160), (130, 120, 130),
    (190, 190, 200), (110, 64, 40),
]  # fmt: skip


def posterise(image: Array) -> Array:
    x = _saturate(_blur(_float(image), 0.4), 1.6)
    return _bytes(_nearest((x - 0.5) * 1.3 + 0.5, POSTER))


def halftone(image: Array) -> Array:
    x = _float(image)
    rows, cols = _axes(x)
    pitch = 16 / 3
    ink = 1.2 - 1.35 * _tiles(_grey(x)[..., None].repeat(3, -1), pitch)[..., 0]
    radius = 0.65 * pitch * np.sqrt(np.clip(ink, 0.02, 1))
    dots = _step(radius - np.hypot(rows % pitch - pitch / 2, cols % pitch - pitch / 2), 0.0, 1.2)
    return _bytes(_between((0.98, 0.94, 0.82), (0.45, 0.05, 0.42), dots))


def mosaic(image: Array) -> Array:
    x = _float(image)
    rows, cols = _axes(x)
    pitch = 6.4
    r, c = rows % pitch, cols % pitch
    inside = np.minimum(np.minimum(r, pitch - r), np.minimum(c, pitch - c))
    bevel = (0.05 * (pitch - r - c))[..., None]
    tile = np.round(_saturate(_tiles(x, pitch), 1.8) * 4) / 4 + bevel
    return _bytes(_between((0.13, 0.10, 0.12), (1, 1, 1), _step(inside, 0.6, 0.9)) * tile)


def ink(image: Array) -> Array:
    x = _float(image)
    line = _step(_edges(x, 0.8), 0.22, 0.22)
    fill = _step(0.26 - _blur(_grey(x), 0.6), 0.0, 0.12)
    return _bytes(_between((0.96, 0.95, 0.90), (0.05, 0.05, 0.12), np.maximum(line, fill)))


def blueprint(image: Array) -> Array:
    x = _float(image)
    rows, cols = _axes(x)
    grid = 0.10 * np.maximum(_step(0.5 - rows % 8, 0, 0.4), _step(0.5 - cols % 8, 0, 0.4))
    line = 0.95 * _step(_edges(x, 0.8), 0.20, 0.26)
    return _bytes(_between((0.03, 0.16, 0.50), (0.92, 0.96, 1.0), np.maximum(line, grid) + 0.16 * _grey(x)))


def stained_glass(image: Array) -> Array:
    x = _float(image)
    label, gap = _cells(x, 10, 11)
    flat, pixels = np.unique(label, return_inverse=True)[1].ravel(), x.reshape(-1, 3)
    count = np.bincount(flat)
    mean = np.stack([np.bincount(flat, pixels[:, k]) / count for k in range(3)], -1).astype(np.float32)
    glass = _saturate((mean[flat].reshape(x.shape) - 0.5) * 1.3 + 0.5, 2.2)
    return _bytes(_between((0.04, 0.04, 0.05), (1, 1, 1), _step(gap, 1.1, 1.0)) * glass)


def pixel_art(image: Array) -> Array:
    return _bytes(_nearest(_saturate(_tiles(_float(image), 4), 1.5), PIXELS))


def engraving(image: Array) -> Array:
    x = _float(image)
    rows, cols = _axes(x)
    wave = np.abs((rows + 0.8 * np.sin(cols / 5)) * (3 / 8) % 2 - 1)  # triangle, 16 / 3 units long
    dark = _step(1.15 - 1.35 * _blur(_grey(x), 0.4) - wave, 0.0, 0.4)
    return _bytes(_between((0.91, 0.84, 0.67), (0.22, 0.13, 0.08), dark))


def duotone(image: Array) -> Array:
    grey = np.clip((_grey(_float(image)) - 0.5) * 1.3 + 0.5, 0, 1)
    return _bytes(_ramp(grey, [(0.34, 0.0, 0.36), (0.20, 0.42, 0.66), (0.80, 1.0, 0.74)]))


def risograph(image: Array) -> Array:
    x = _blur(_float(image), 0.5)
    shift = max(1, round(_unit(x)))
    pink = np.clip(1.05 - x[..., 1], 0, 1)
    teal = np.roll(np.clip(1.05 - x[..., 0], 0, 1), (shift, shift), (0, 1))
    ground = np.float32((0.97, 0.95, 0.90))
    layers = (1 - pink[..., None] * np.float32((0.0, 0.72, 0.40))) * (
        1 - teal[..., None] * np.float32((0.95, 0.35, 0.30))
    )
    return _bytes(ground * layers)


def linocut(image: Array) -> Array:
    x = _float(image)
    rows, cols = _axes(x)
    cut = (
        _blur(_grey(x), 0.7) + 0.13 * np.sin((rows - cols) * (2 * np.pi / 5.6)) - 0.4 * np.clip(_edges(x) - 0.15, 0, 1)
    )
    return _bytes(_between((0.05, 0.22, 0.17), (0.95, 0.90, 0.78), _step(cut, 0.52, 0.14)))


def chalkboard(image: Array) -> Array:
    x = _float(image)
    chalk = 0.9 * _step(_edges(x, 0.8), 0.24, 0.4) + 0.30 * _blur(_grey(x), 0.8) * (1 + 0.5 * _grain(x, 56, 12))
    return _bytes(_between((0.10, 0.22, 0.17), (0.96, 0.95, 0.85), chalk + 0.03 * _grain(x, 16, 13)))


KNOWN: dict[str, Style] = {
    f.__name__: f
    for f in (
        pencil,
        watercolor,
        oil,
        charcoal,
        cartoon,
        pastel,
        sepia,
        monochrome,
        neon,
        night_vision,
        thermal,
        crayon,
    )
}
HELD_OUT: dict[str, Style] = {
    f.__name__: f
    for f in (
        posterise,
        halftone,
        mosaic,
        ink,
        blueprint,
        stained_glass,
        pixel_art,
        engraving,
        duotone,
        risograph,
        linocut,
        chalkboard,
    )
}
