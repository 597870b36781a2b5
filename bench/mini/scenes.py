"""The scene world of `mini`: small photo-like pictures of one or two coloured objects on a background, with captions.

Shapes: S is the working side (twice the picture's); local object coordinates in [-1, 1], y down; colours in [0, 1].
A `Scene` holds every choice that was made, so `render(scene)` is a pure function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

SIDE = 64
WORK = 128  # pixels on a side before the final 2 x 2 average

COLOURS = {
    "red": (0.80, 0.08, 0.08),
    "orange": (0.95, 0.48, 0.05),
    "yellow": (0.95, 0.86, 0.10),
    "green": (0.08, 0.55, 0.14),
    "blue": (0.08, 0.22, 0.80),
    "purple": (0.45, 0.10, 0.60),
    "pink": (0.98, 0.50, 0.70),
    "white": (0.94, 0.94, 0.92),
}
NOUNS = {
    "house": ("house", "cottage", "home"),
    "tree": ("tree",),
    "car": ("car", "automobile"),
    "boat": ("boat", "sailboat", "ship"),
    "person": ("person", "human", "figure"),
    "dog": ("dog", "puppy"),
    "cat": ("cat", "kitten"),
    "bird": ("bird",),
    "fish": ("fish",),
    "flower": ("flower", "blossom"),
    "mushroom": ("mushroom", "toadstool"),
    "cup": ("cup", "mug"),
    "chair": ("chair",),
    "lamp": ("lamp", "table lamp"),
    "umbrella": ("umbrella", "parasol"),
    "rocket": ("rocket", "spaceship"),
}
PLACES = {
    "beach": ("on a beach", "at the beach", "on the beach", "on the sand by the sea"),
    "meadow": ("in a meadow", "on green grass", "in a grass field", "on the grass"),
    "brick wall": ("on a brick wall", "in front of a brick wall", "against a brick wall", "with a brick wall behind"),
    "snow": ("in the snow", "on snow", "in a snowy landscape", "with snow around"),
    "night sky": ("in front of a night sky", "under a night sky", "under the stars", "at night"),
    "wooden floor": ("on a wooden floor", "on top of a wooden floor", "on wooden planks", "on a wood floor"),
    "city": ("in a city", "in the city", "with a city in the background", "in front of a city skyline"),
    "desert": ("in a desert", "in the desert", "on desert dunes", "among sand dunes"),
}
OBJECTS = tuple(NOUNS)
BACKGROUNDS = tuple(PLACES)


@dataclass(frozen=True)
class Thing:
    """One object: centre and half-size in picture units [-1, 1]."""

    object: str
    colour: str
    x: float
    y: float
    size: float
    flip: bool
    seed: int


@dataclass(frozen=True)
class Scene:
    """Everything that decides the pixels of one picture."""

    things: tuple[Thing, ...]
    background: str
    light: tuple[float, float]  # towards the light; y down, so the second is negative
    warmth: float  # -1 cold .. 1 warm, mild, never captioned
    exposure: float
    contrast: float
    grading: str | None
    seed: int

    @property
    def object(self) -> str:
        return self.things[0].object

    @property
    def colour(self) -> str:
        return self.things[0].colour


# ---------------------------------------------------------------------------------------------------- drawing


def _noise(rng: np.random.Generator, cells: int, side: int) -> np.ndarray:
    """Smooth noise (side, side), roughly in [-1, 1]."""
    grid = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC))


class Pen:
    """Paints shaded shapes, given in local coordinates, onto one transparent layer (S, S, 4)."""

    def __init__(self, thing: Thing, light: tuple[float, float], side: int = WORK):
        self.rgb = np.zeros((side, side, 3), np.float32)
        self.alpha = np.zeros((side, side), np.float32)
        self.side, self.thing = side, thing
        self.rng = np.random.default_rng(thing.seed)
        self.sign = -1.0 if thing.flip else 1.0
        self.light = (light[0] * self.sign, light[1])
        axis = (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1
        self.u = self.sign * (axis - thing.x) / thing.size  # (S,)
        self.v = (axis - thing.y) / thing.size  # (S,)
        self.pixel = 2 / side / thing.size
        self.grain = 1 + 0.07 * _noise(self.rng, 24, side) + 0.05 * _noise(self.rng, 6, side)

    def _paint(self, box, distance: Callable, colour, relief: float) -> None:
        """Cover where distance(u, v) <= 0 inside box (u0, v0, u1, v1); tone follows the light across the box."""
        margin = 2 * self.pixel
        cols = np.flatnonzero((self.u > box[0] - margin) & (self.u < box[2] + margin))
        rows = np.flatnonzero((self.v > box[1] - margin) & (self.v < box[3] + margin))
        if not len(cols) or not len(rows):
            return
        part = (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))
        u, v = self.u[part[1]][None, :], self.v[part[0]][:, None]
        d = distance(u, v)
        cover = np.clip(0.5 - d / self.pixel, 0, 1)
        nu = (2 * u - box[0] - box[2]) / (box[2] - box[0])
        nv = (2 * v - box[1] - box[3]) / (box[3] - box[1])
        rim = np.exp(np.minimum(d, 0) / 0.07)
        tone = (1 + relief * (0.34 * (nu * self.light[0] + nv * self.light[1]) - 0.30 * rim)) * self.grain[part]
        shaded = np.asarray(colour, np.float32) * tone[..., None]
        glint = np.clip((nu * self.light[0] + nv * self.light[1]) - 0.35, 0, None) * 0.28 * relief
        shaded = shaded + glint[..., None]
        keep = cover[..., None]
        self.rgb[part] = self.rgb[part] * (1 - keep) + shaded * keep
        self.alpha[part] = np.maximum(self.alpha[part], cover)

    def ellipse(self, x, y, rx, ry, colour, angle=0.0, relief=1.0) -> None:
        c, s = np.cos(angle), np.sin(angle)
        reach = (abs(rx * c) + abs(ry * s), abs(rx * s) + abs(ry * c))

        def distance(u, v):
            p, q = (u - x) * c + (v - y) * s, -(u - x) * s + (v - y) * c
            return (np.sqrt((p / rx) ** 2 + (q / ry) ** 2) - 1) * min(rx, ry)

        self._paint((x - reach[0], y - reach[1], x + reach[0], y + reach[1]), distance, colour, relief)

    def box(self, x, y, rx, ry, colour, corner=0.02, relief=0.8) -> None:
        def distance(u, v):
            p, q = np.abs(u - x) - rx + corner, np.abs(v - y) - ry + corner
            return np.hypot(np.maximum(p, 0), np.maximum(q, 0)) + np.minimum(np.maximum(p, q), 0) - corner

        self._paint((x - rx, y - ry, x + rx, y + ry), distance, colour, relief)

    def stroke(self, x0, y0, x1, y1, width, colour, relief=0.8) -> None:
        def distance(u, v):
            h = ((u - x0) * (x1 - x0) + (v - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)
            h = np.clip(h, 0, 1)
            return np.hypot(u - x0 - h * (x1 - x0), v - y0 - h * (y1 - y0)) - width

        box = (min(x0, x1) - width, min(y0, y1) - width, max(x0, x1) + width, max(y0, y1) + width)
        self._paint(box, distance, colour, relief)

    def ring(self, x, y, radius, width, colour, relief=0.8) -> None:
        def distance(u, v):
            return np.abs(np.hypot(u - x, v - y) - radius) - width

        reach = radius + width
        self._paint((x - reach, y - reach, x + reach, y + reach), distance, colour, relief)

    def polygon(self, points, colour, relief=0.8) -> None:
        def distance(u, v):
            u, v = np.broadcast_arrays(u, v)
            best, inside = np.full(u.shape, np.inf, np.float32), np.zeros(u.shape, bool)
            for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
                ex, ey = x1 - x0, y1 - y0
                h = np.clip(((u - x0) * ex + (v - y0) * ey) / (ex * ex + ey * ey), 0, 1)
                best = np.minimum(best, np.hypot(u - x0 - h * ex, v - y0 - h * ey))
                if ey:
                    inside ^= ((y0 > v) != (y1 > v)) & (u < ex * (v - y0) / ey + x0)
            return np.where(inside, -best, best)

        xs, ys = zip(*points, strict=True)
        self._paint((min(xs), min(ys), max(xs), max(ys)), distance, colour, relief)


DARK, SKIN, WOOD, GLASS, METAL = (
    (0.12, 0.11, 0.12),
    (0.90, 0.70, 0.55),
    (0.42, 0.27, 0.15),
    (0.62, 0.78, 0.88),
    (0.6, 0.6, 0.63),
)


def _mix(a, b, share: float) -> tuple[float, ...]:
    return tuple(float((1 - share) * p + share * q) for p, q in zip(a, b, strict=True))


def _shade(colour, factor: float) -> tuple[float, ...]:
    return tuple(float(c * factor) for c in colour)


def _house(pen: Pen, c, rng) -> None:
    wide = rng.uniform(0.6, 0.8)
    pen.box(0.4, -0.62, 0.1, 0.26, _mix(WOOD, (0.5, 0.3, 0.25), 0.5))
    pen.box(0, 0.38, wide, 0.58, c)
    pen.polygon([(-wide - 0.2, -0.12), (0, -0.95), (wide + 0.2, -0.12)], _shade(c, 0.55))
    pen.box(rng.choice([-0.3, 0.0, 0.3]), 0.62, 0.16, 0.34, WOOD)
    for x in (-0.42, 0.42):
        pen.box(x, 0.1, 0.15, 0.15, GLASS)


def _tree(pen: Pen, c, rng) -> None:
    pen.box(0, 0.6, 0.13, 0.42, WOOD)
    for x, y, r in ((-0.42, 0.0, 0.42), (0.42, 0.0, 0.42), (0, -0.45, 0.5), (0, 0.02, 0.5)):
        pen.ellipse(x + rng.uniform(-0.05, 0.05), y, r, r * 0.9, c)
    for _ in range(5):
        pen.ellipse(*rng.uniform((-0.6, -0.6), (0.6, 0.2)), 0.09, 0.09, _shade(c, rng.uniform(0.7, 1.15)))


def _car(pen: Pen, c, rng) -> None:
    pen.polygon([(-0.55, -0.02), (-0.38, -0.48), (0.3, -0.48), (0.6, -0.02)], c)
    pen.polygon([(-0.42, -0.05), (-0.3, -0.38), (-0.06, -0.38), (-0.06, -0.05)], GLASS)
    pen.polygon([(0.03, -0.05), (0.03, -0.38), (0.24, -0.38), (0.45, -0.05)], GLASS)
    pen.box(0, 0.2, 1.0, 0.27, c, corner=0.14)
    pen.box(0.9, 0.12, 0.08, 0.07, (1.0, 0.95, 0.6))
    for x in (-0.55, 0.55):
        pen.ellipse(x, 0.44, 0.25, 0.25, DARK)
        pen.ellipse(x, 0.44, 0.11, 0.11, METAL)


def _boat(pen: Pen, c, rng) -> None:
    pen.box(0.02, -0.25, 0.04, 0.72, WOOD)
    pen.polygon([(0.1, -0.9), (0.1, 0.28), (0.82, 0.28)], _mix(c, (1, 1, 1), 0.15))
    pen.polygon([(-0.06, -0.75), (-0.06, 0.28), (-0.6, 0.28)], _mix(c, (1, 1, 1), 0.35))
    pen.polygon([(-0.95, 0.4), (0.98, 0.4), (0.62, 0.9), (-0.62, 0.9)], c)
    pen.box(0, 0.47, 0.85, 0.04, _mix(c, (1, 1, 1), 0.6))


def _person(pen: Pen, c, rng) -> None:
    trousers = _mix(DARK, (0.2, 0.22, 0.35), rng.uniform(0, 1))
    swing = rng.uniform(0.05, 0.35)
    for side in (-1, 1):
        pen.stroke(side * 0.14, 0.4, side * 0.2, 0.95, 0.12, trousers)
        pen.stroke(side * 0.3, -0.25, side * (0.38 + swing), 0.25, 0.1, _shade(c, 0.9))
        pen.ellipse(side * (0.4 + swing), 0.32, 0.09, 0.09, SKIN)
    pen.box(0, 0.1, 0.34, 0.5, c, corner=0.16)
    pen.ellipse(0, -0.66, 0.24, 0.28, SKIN)
    pen.ellipse(0, -0.83, 0.27, 0.17, _mix(DARK, WOOD, rng.uniform(0, 1)))
    for x in (-0.09, 0.09):
        pen.ellipse(x, -0.64, 0.035, 0.035, DARK)


def _dog(pen: Pen, c, rng) -> None:
    lift = rng.uniform(-0.1, 0.2)
    pen.stroke(-0.7, -0.05, -0.95, -0.4 - lift, 0.08, c)
    for x in (-0.6, -0.38, 0.28, 0.48):
        pen.stroke(x, 0.25, x, 0.85, 0.1, _shade(c, 0.85))
    pen.ellipse(-0.08, 0.12, 0.72, 0.34, c)
    pen.ellipse(0.58, -0.35, 0.32, 0.3, c)
    pen.ellipse(0.86, -0.25, 0.18, 0.13, _mix(c, (1, 1, 1), 0.25))
    pen.ellipse(0.98, -0.3, 0.06, 0.06, DARK)
    pen.ellipse(0.4, -0.28, 0.12, 0.3, _shade(c, 0.5), angle=0.3)
    pen.ellipse(0.66, -0.43, 0.05, 0.05, DARK)


def _cat(pen: Pen, c, rng) -> None:
    bend = rng.uniform(0.0, 0.2)
    pen.stroke(0.35, 0.75, 0.8, 0.55, 0.09, c)
    pen.stroke(0.8, 0.55, 0.82 - bend, 0.0, 0.09, c)
    pen.ellipse(0, 0.45, 0.48, 0.52, c)
    for side in (-1, 1):
        pen.polygon([(side * 0.44, -0.95), (side * 0.08, -0.6), (side * 0.46, -0.4)], c)
        pen.polygon([(side * 0.37, -0.8), (side * 0.18, -0.6), (side * 0.38, -0.5)], (0.95, 0.65, 0.65))
    pen.ellipse(0, -0.35, 0.48, 0.4, c)
    for side in (-1, 1):
        pen.ellipse(side * 0.19, -0.4, 0.09, 0.1, (0.75, 0.85, 0.3))
        pen.ellipse(side * 0.19, -0.4, 0.035, 0.09, DARK)
        pen.ellipse(side * 0.22, 0.88, 0.17, 0.11, _mix(c, (1, 1, 1), 0.35))
    pen.ellipse(0, -0.2, 0.06, 0.04, (0.85, 0.4, 0.45))


def _bird(pen: Pen, c, rng) -> None:
    for x in (-0.1, 0.12):
        pen.stroke(x, 0.45, x + 0.04, 0.92, 0.035, (0.85, 0.55, 0.15))
    pen.polygon([(-0.45, 0.0), (-1.0, 0.15), (-0.95, 0.42), (-0.35, 0.35)], _shade(c, 0.7))
    pen.ellipse(0, 0.12, 0.6, 0.44, c, angle=-0.25)
    pen.ellipse(0.45, -0.4, 0.32, 0.31, c)
    pen.polygon([(0.72, -0.5), (1.02, -0.33), (0.72, -0.24)], (0.95, 0.65, 0.1))
    pen.ellipse(-0.12, 0.1, 0.4, 0.23, _shade(c, 0.65), angle=rng.uniform(0.0, 0.5))
    pen.ellipse(0.53, -0.46, 0.06, 0.06, DARK)


def _fish(pen: Pen, c, rng) -> None:
    pen.polygon([(-0.5, 0.0), (-1.0, -0.48), (-0.85, 0.0), (-1.0, 0.48)], _shade(c, 0.75))
    pen.polygon([(-0.25, -0.3), (0.1, -0.72), (0.3, -0.3)], _shade(c, 0.75))
    pen.ellipse(0.15, 0.0, 0.8, 0.45, c)
    for x in (-0.2, 0.05, 0.3):
        pen.stroke(x, -0.22, x - 0.05, 0.22, 0.035, _mix(c, (1, 1, 1), 0.55))
    pen.ellipse(0.62, -0.1, 0.11, 0.11, (0.97, 0.97, 0.97))
    pen.ellipse(0.65, -0.1, 0.055, 0.055, DARK)


def _flower(pen: Pen, c, rng) -> None:
    green = (0.15, 0.5, 0.18)
    pen.stroke(0, 0.0, rng.uniform(-0.1, 0.1), 0.98, 0.055, green)
    pen.ellipse(-0.28, 0.65, 0.28, 0.1, green, angle=0.5)
    pen.ellipse(0.28, 0.75, 0.28, 0.1, green, angle=-0.5)
    turn = rng.uniform(0, 1)
    for k in range(6):
        a = (k + turn) * np.pi / 3
        pen.ellipse(0.4 * np.cos(a), -0.3 + 0.4 * np.sin(a), 0.33, 0.22, c, angle=a)
    pen.ellipse(0, -0.3, 0.21, 0.21, (0.45, 0.28, 0.08))


def _mushroom(pen: Pen, c, rng) -> None:
    pen.box(0, 0.45, 0.24, 0.5, (0.93, 0.89, 0.8), corner=0.15)
    angles = np.linspace(np.pi, 2 * np.pi, 14)
    pen.polygon([(0.95 * np.cos(a), 0.1 + 0.95 * np.sin(a)) for a in angles], c)
    pen.ellipse(0, 0.1, 0.95, 0.12, _shade(c, 0.6))
    dots = (0.97, 0.95, 0.9) if c[1] < 0.85 or c[2] < 0.85 else (0.8, 0.2, 0.15)
    for x, y, r in ((-0.45, -0.2, 0.13), (0.05, -0.5, 0.15), (0.5, -0.18, 0.12), (0.0, -0.1, 0.09)):
        pen.ellipse(x + rng.uniform(-0.06, 0.06), y, r, r * 0.85, dots)


def _cup(pen: Pen, c, rng) -> None:
    pen.ring(0.62, 0.12, 0.3, 0.09, _shade(c, 0.9))
    pen.polygon([(-0.68, -0.55), (0.68, -0.55), (0.5, 0.8), (-0.5, 0.8)], c)
    pen.ellipse(0, 0.8, 0.5, 0.12, c)
    pen.ellipse(0, -0.55, 0.68, 0.2, _mix(c, (1, 1, 1), 0.45))
    pen.ellipse(0, -0.52, 0.56, 0.14, (0.3, 0.17, 0.09))


def _chair(pen: Pen, c, rng) -> None:
    for x, low in ((-0.5, 0.8), (0.35, 0.8), (-0.32, 0.95), (0.56, 0.95)):
        pen.stroke(x, 0.2, x, low, 0.07, _shade(c, 0.7))
    pen.box(-0.52, -0.35, 0.08, 0.6, c)
    pen.box(0.36, -0.35, 0.08, 0.6, c)
    for y in (-0.78, -0.42, -0.1):
        pen.box(-0.08, y, 0.5, 0.1, c)
    pen.polygon([(-0.62, 0.1), (0.42, 0.1), (0.66, 0.36), (-0.4, 0.36)], _mix(c, (1, 1, 1), 0.12))


def _lamp(pen: Pen, c, rng) -> None:
    pen.ellipse(0, 0.86, 0.42, 0.12, METAL)
    pen.box(0, 0.4, 0.06, 0.46, METAL)
    pen.polygon([(-0.36, -0.9), (0.36, -0.9), (0.8, 0.08), (-0.8, 0.08)], c)
    pen.ellipse(0, 0.08, 0.8, 0.13, _mix(c, (1.0, 0.95, 0.7), 0.75))


def _umbrella(pen: Pen, c, rng) -> None:
    pen.box(0.0, 0.25, 0.045, 0.62, WOOD)
    pen.ring(0.14, 0.82, 0.14, 0.05, WOOD)
    for x0, x1, tint in ((-1.0, -0.4, 0.8), (-0.4, 0.4, 1.0), (0.4, 1.0, 0.8)):
        xs = np.linspace(x0, x1, 8)
        rim = [(x, 0.02 + 0.12 * abs((x - x0) / (x1 - x0) - 0.5)) for x in xs[::-1]]
        top = [(x, 0.05 - 0.85 * np.sqrt(max(0.0, 1 - x * x))) for x in xs]
        pen.polygon(top + rim, _shade(c, tint))
    pen.box(0, -0.88, 0.035, 0.1, DARK)


def _rocket(pen: Pen, c, rng) -> None:
    flame = rng.uniform(0.1, 0.25)
    pen.polygon([(-0.2, 0.6), (0.2, 0.6), (0, 0.75 + flame)], (1.0, 0.65, 0.1), relief=0.2)
    for side in (-1, 1):
        pen.polygon([(side * 0.25, 0.1), (side * 0.75, 0.72), (side * 0.25, 0.6)], _shade(c, 0.6))
    pen.polygon([(-0.34, -0.3), (0.34, -0.3), (0.3, 0.62), (-0.3, 0.62)], c)
    pen.polygon([(-0.34, -0.3), (-0.2, -0.68), (0, -0.98), (0.2, -0.68), (0.34, -0.3)], _mix(c, METAL, 0.55))
    pen.ellipse(0, -0.08, 0.18, 0.18, METAL)
    pen.ellipse(0, -0.08, 0.13, 0.13, GLASS)


DRAW: dict[str, Callable] = {name: globals()[f"_{name}"] for name in NOUNS}


# ------------------------------------------------------------------------------------------------ backgrounds


class Ground:
    """Canvas of a background: coordinates, a generator and the horizon."""

    def __init__(self, rng: np.random.Generator, side: int = WORK):
        axis = (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1
        self.x, self.y = np.meshgrid(axis, axis)  # (S, S) each
        self.rng, self.side = rng, side

    def noise(self, cells: int) -> np.ndarray:
        return _noise(self.rng, cells, self.side)

    def jitter(self, colour, amount=0.04) -> np.ndarray:
        return np.asarray(colour, np.float32) + self.rng.uniform(-amount, amount, 3).astype(np.float32)

    def blend(self, top, bottom, share) -> np.ndarray:
        """(S, S, 3): `top` where share is 0, `bottom` where it is 1."""
        top, bottom = np.asarray(top, np.float32), np.asarray(bottom, np.float32)
        return top + (bottom - top) * np.clip(share, 0, 1)[..., None]

    def over(self, below, colour, mask, soft=0.02) -> np.ndarray:
        """Paint `colour` where mask > 0, with a soft border."""
        share = np.clip(0.5 + mask / soft, 0, 1)[..., None]
        return below * (1 - share) + np.asarray(colour, np.float32) * share

    def sky(self, high, low) -> np.ndarray:
        rgb = self.blend(self.jitter(high), self.jitter(low), (self.y + 1) / 1.2)
        cloud = np.clip(self.noise(5) + 0.5 * self.noise(11) - self.rng.uniform(0.1, 0.9), 0, 1)[..., None]
        return rgb * (1 - 0.7 * cloud) + 0.7 * cloud


def _beach(g: Ground) -> np.ndarray:
    h = g.rng.uniform(-0.35, -0.05)
    rgb = g.sky((0.35, 0.62, 0.92), (0.75, 0.88, 0.97))
    waves = 0.05 * np.sin(40 * g.y + 4 * g.noise(6))[..., None]
    rgb = np.where((g.y > h)[..., None], g.jitter((0.05, 0.48, 0.66)) + waves, rgb)
    shore = g.y - h - 0.3 - 0.08 * g.noise(4)
    rgb = g.over(rgb, (0.95, 0.97, 0.97), shore + 0.06)
    sand = g.jitter((0.90, 0.80, 0.58)) * (1 + 0.08 * g.noise(40) + 0.05 * g.noise(8))[..., None]
    return g.over(rgb, sand, shore)


def _meadow(g: Ground) -> np.ndarray:
    h = g.rng.uniform(-0.5, 0.0) + 0.12 * g.noise(3)
    rgb = g.sky((0.42, 0.68, 0.95), (0.80, 0.90, 0.98))
    blades = np.asarray(Image.fromarray(g.rng.uniform(-1, 1, (18, 64)).astype(np.float32)).resize((g.side, g.side)))
    grass = g.jitter((0.33, 0.62, 0.20)) * (1 + 0.18 * blades + 0.15 * g.noise(5))[..., None]
    return g.over(rgb, grass * (1.1 - 0.25 * g.y[..., None]), g.y - h)


def _brick_wall(g: Ground) -> np.ndarray:
    rows, cols = g.rng.integers(7, 11), g.rng.integers(4, 6)
    r = (g.y + 1) / 2 * rows
    c = (g.x + 1) / 2 * cols + 0.5 * (np.floor(r) % 2)
    tone = 1 + 0.16 * g.rng.uniform(-1, 1, (rows + 2, cols + 2))[np.floor(r).astype(int), np.floor(c).astype(int)]
    brick = g.jitter((0.58, 0.30, 0.24)) * (tone * (1 + 0.08 * g.noise(32)))[..., None]
    gap = np.minimum(np.minimum(r % 1, 1 - r % 1) / rows, np.minimum(c % 1, 1 - c % 1) / cols) * 2
    return g.over(brick.astype(np.float32), g.jitter((0.78, 0.74, 0.69)), 0.022 - gap, soft=0.02)


def _snow(g: Ground) -> np.ndarray:
    h = g.rng.uniform(-0.4, -0.05)
    rgb = g.sky((0.55, 0.66, 0.80), (0.82, 0.87, 0.93))
    ridge = h - 0.35 + 0.4 * np.abs(g.noise(5)) + 0.15 * np.abs(g.noise(12))
    rgb = g.over(rgb, g.blend((0.92, 0.95, 1.0), (0.45, 0.52, 0.62), (g.y - ridge) * 2.5), g.y - ridge)
    drift = (0.90 + 0.07 * g.noise(4) + 0.03 * g.noise(20))[..., None] * np.asarray((0.95, 0.98, 1.05), np.float32)
    return g.over(rgb, drift, g.y - h - 0.08 * g.noise(3))


def _night_sky(g: Ground) -> np.ndarray:
    rgb = g.blend(g.jitter((0.02, 0.03, 0.12), 0.015), g.jitter((0.10, 0.11, 0.28)), (g.y + 1) / 2)
    rgb = rgb + 0.05 * np.clip(g.noise(4), 0, 1)[..., None] * np.asarray((0.6, 0.4, 1.0), np.float32)
    for _ in range(g.rng.integers(25, 45)):
        x, y, r, glow = *g.rng.uniform(-1, 1, 2), g.rng.uniform(0.012, 0.03), g.rng.uniform(0.5, 1)
        i, j = int((y + 1) / 2 * g.side), int((x + 1) / 2 * g.side)
        p = (slice(max(i - 4, 0), i + 5), slice(max(j - 4, 0), j + 5))
        rgb[p] += glow * np.exp(-((g.x[p] - x) ** 2 + (g.y[p] - y) ** 2) / r**2)[..., None]
    x, y = g.rng.choice([-0.7, 0.7]), g.rng.uniform(-0.75, -0.55)
    return g.over(rgb, (0.96, 0.94, 0.82), g.rng.uniform(0.14, 0.22) - np.hypot(g.x - x, g.y - y))


def _wooden_floor(g: Ground) -> np.ndarray:
    h = g.rng.uniform(-0.55, -0.2)
    depth = 1 / np.maximum(g.y - h + 0.35, 0.05)
    plank = g.x * depth * 2.6 + 40
    tone = g.rng.uniform(0.82, 1.15, 128)[np.floor(plank).astype(int) % 128]
    veins = 0.06 * np.sin(9 * plank + 3 * g.noise(6))
    wood = g.jitter((0.66, 0.43, 0.23)) * (tone + veins)[..., None]
    wood = g.over(wood.astype(np.float32), wood * 0.45, 0.045 - np.minimum(plank % 1, 1 - plank % 1), soft=0.06)
    wall = g.jitter((0.86, 0.82, 0.74), 0.05) * (1 + 0.03 * g.noise(9))[..., None]
    wall = g.over(wall, (0.93, 0.91, 0.87), g.y - h + 0.1)
    return g.over(wall, wood, g.y - h)


def _city(g: Ground) -> np.ndarray:
    rgb = g.sky((0.55, 0.70, 0.86), (0.88, 0.88, 0.86))
    x = -1.05
    while x < 1:
        w, top = g.rng.uniform(0.22, 0.45), g.rng.uniform(-0.9, -0.2)
        wall = g.jitter((0.50, 0.51, 0.55), 0.08)
        inside = np.minimum(np.minimum(g.x - x, x + w - g.x), g.y - top)
        rgb = g.over(rgb, wall, inside)
        pane = np.minimum(0.045 - np.abs((g.x - x) % 0.15 - 0.075), 0.05 - np.abs((g.y - top) % 0.18 - 0.09))
        rgb = g.over(rgb, g.jitter((0.82, 0.85, 0.70)), np.minimum(pane, inside - 0.03))
        x += w
    road = g.jitter((0.32, 0.32, 0.34)) * (1 + 0.1 * g.noise(30))[..., None]
    h = g.rng.uniform(0.3, 0.55)
    rgb = g.over(rgb, (0.70, 0.69, 0.67), g.y - h + 0.1)
    rgb = g.over(rgb, road, g.y - h)
    return g.over(rgb, (0.9, 0.9, 0.85), np.minimum(0.02 - np.abs(g.y - 0.85), 0.2 - np.abs(g.x % 0.6 - 0.3)))


def _desert(g: Ground) -> np.ndarray:
    rgb = g.sky((0.95, 0.72, 0.45), (0.99, 0.88, 0.65))
    for level, tone in ((g.rng.uniform(-0.35, -0.1), 0.86), (0.1, 0.95), (0.5, 1.05)):
        a, b = g.rng.uniform(1.5, 3.5), g.rng.uniform(0, 6)
        crest = g.y - level - 0.15 * np.sin(a * g.x + b) - 0.04 * g.noise(6)
        ripple = 1 + 0.06 * np.sin(50 * crest + 3 * g.noise(5)) + 0.12 * np.cos(a * g.x + b)
        rgb = g.over(rgb, g.jitter((0.86, 0.52, 0.24)) * tone * ripple[..., None], crest)
    return rgb


BACKDROP: dict[str, Callable] = {name: globals()["_" + name.replace(" ", "_")] for name in PLACES}
UPRIGHT = ("brick wall", "night sky")  # no ground to stand on


# --------------------------------------------------------------------------------------------------- gradings


def _tint(rgb: np.ndarray, dark, light) -> np.ndarray:
    grey = (rgb @ np.asarray((0.3, 0.59, 0.11), np.float32))[..., None]
    return np.asarray(dark, np.float32) * (1 - grey) + np.asarray(light, np.float32) * grey


def _contrast(rgb: np.ndarray, gain: float) -> np.ndarray:
    return (rgb - 0.5) * gain + 0.5


GRADINGS: dict[str, tuple[str, Callable]] = {  # name -> words, function of rgb (S, S, 3) in [0, 1]
    "warm": ("in warm light", lambda rgb: rgb * np.float32((1.15, 0.95, 0.62)) + np.float32((0.06, 0.02, 0.0))),
    "cold": ("in cold light", lambda rgb: rgb * np.float32((0.65, 0.92, 1.1)) + np.float32((0.0, 0.02, 0.08))),
    "dusk": ("at dusk", lambda rgb: rgb**1.3 * np.float32((0.75, 0.48, 0.62)) + np.float32((0.06, 0.0, 0.12))),
    "harsh": ("in high contrast", lambda rgb: _contrast(rgb, 2.0)),
    "faded": (
        "in faded colors",
        lambda rgb: 0.55 * _tint(rgb, (0.3, 0.3, 0.3), (0.95, 0.93, 0.88)) + 0.45 * (0.25 + 0.65 * rgb),
    ),
    "misty": ("in thick fog", lambda rgb: 0.4 * rgb + 0.6 * np.float32((0.84, 0.86, 0.88))),
    "dark": ("in dim light", lambda rgb: 0.38 * rgb**1.2),
    "bright": ("overexposed", lambda rgb: 1 - (1 - np.clip(rgb, 0, 1)) ** 2.4),
    "vivid": ("in vivid colors", lambda rgb: rgb + 0.9 * (rgb - rgb.mean(-1, keepdims=True))),
    "negative": ("in inverted colors", lambda rgb: 1 - rgb),
    "red tint": ("in red tones", lambda rgb: _tint(rgb, (0.18, 0.0, 0.02), (1.0, 0.72, 0.68))),
    "blue tint": ("in blue tones", lambda rgb: _tint(rgb, (0.0, 0.04, 0.2), (0.72, 0.86, 1.0))),
    "green tint": ("in green tones", lambda rgb: _tint(rgb, (0.0, 0.14, 0.04), (0.78, 1.0, 0.72))),
    "purple tint": ("in purple tones", lambda rgb: _tint(rgb, (0.12, 0.0, 0.2), (0.92, 0.78, 1.0))),
}


def _lit(rgb: np.ndarray, scene: Scene) -> np.ndarray:
    """Mild, uncaptioned variation of light; then the captioned grading, if any."""
    w = scene.warmth
    rgb = rgb * np.float32((1 + 0.06 * w, 1.0, 1 - 0.09 * w)) * scene.exposure
    rgb = np.clip(_contrast(rgb, scene.contrast), 0, 1)
    return GRADINGS[scene.grading][1](rgb) if scene.grading else rgb


# ------------------------------------------------------------------------------------------------------ scene


def _thing(rng: np.random.Generator, x: float, size: tuple[float, float], not_this: Thing | None = None) -> Thing:
    others = [o for o in OBJECTS if not not_this or o != not_this.object]
    half = float(rng.uniform(*size))
    return Thing(
        object=str(rng.choice(others)),
        colour=str(rng.choice(list(COLOURS))),
        x=x + float(rng.uniform(-0.12, 0.12)),
        y=float(np.clip(rng.uniform(0.0, 0.35), None, 0.95 - half)),
        size=half,
        flip=bool(rng.random() < 0.5),
        seed=int(rng.integers(2**31)),
    )


def sample_scene(rng: np.random.Generator, pairs: float = 0.12, graded: float = 0.0) -> Scene:
    """Draw a scene; `pairs` is the share with two objects, `graded` the share with a captioned grading."""
    if rng.random() < pairs:
        left = _thing(rng, -0.48, (0.36, 0.46))
        things: tuple[Thing, ...] = (left, _thing(rng, 0.48, (0.36, 0.46), not_this=left))
    else:
        things = (_thing(rng, float(rng.uniform(-0.15, 0.15)), (0.45, 0.72)),)
    angle = rng.uniform(0.2, 0.8) * np.pi
    return Scene(
        things=things,
        background=str(rng.choice(BACKGROUNDS)),
        light=(float(np.cos(angle)), float(-np.sin(angle))),
        warmth=float(rng.uniform(-1, 1)),
        exposure=float(rng.uniform(0.85, 1.12)),
        contrast=float(rng.uniform(0.85, 1.12)),
        grading=str(rng.choice(list(GRADINGS))) if rng.random() < graded else None,
        seed=int(rng.integers(2**31)),
    )


def ungraded(scene: Scene) -> Scene:
    return replace(scene, grading=None)


def _shadow(alpha: np.ndarray, thing: Thing, scene: Scene) -> np.ndarray:
    """Soft shadow (S, S) in [0, 1] of a layer's coverage: cast on the wall, or lying on the ground."""
    s = len(alpha)
    if scene.background in UPRIGHT:
        shift = (int(0.05 * s), int(-scene.light[0] * 0.07 * s))
        return 0.5 * gaussian_filter(np.roll(alpha, shift, (0, 1)), 3)
    axis = (np.arange(s, dtype=np.float32) + 0.5) * (2 / s) - 1
    x = (axis[None, :] - thing.x + 0.35 * thing.size * scene.light[0]) / (0.95 * thing.size)
    y = (axis[:, None] - thing.y - 0.92 * thing.size) / (0.2 * thing.size)
    return 0.6 * np.exp(-((x**2 + y**2) ** 1.2))


def render(scene: Scene) -> np.ndarray:
    """Draw a scene: uint8 (64, 64, 3)."""
    ground = Ground(np.random.default_rng(scene.seed))
    rgb = np.clip(BACKDROP[scene.background](ground).astype(np.float32), 0, 1)
    falloff = 1 + 0.10 * (ground.x * scene.light[0] + ground.y * scene.light[1])
    rgb = rgb * falloff[..., None]
    for thing in scene.things:
        pen = Pen(thing, scene.light)
        colour = np.asarray(COLOURS[thing.colour]) + pen.rng.uniform(-0.03, 0.03, 3)
        DRAW[thing.object](pen, tuple(np.clip(colour, 0, 1)), pen.rng)
        rgb = rgb * (1 - _shadow(pen.alpha, thing, scene))[..., None]
        rgb = rgb * (1 - pen.alpha[..., None]) + pen.rgb * pen.alpha[..., None]
    rgb = np.clip(_lit(rgb, scene), 0, 1)
    rgb = rgb.reshape(SIDE, 2, SIDE, 2, 3).mean((1, 3))
    grain = ground.rng.normal(0, 0.008, (SIDE, SIDE, 1))
    return np.clip((rgb + grain) * 255 + 0.5, 0, 255).astype(np.uint8)


# --------------------------------------------------------------------------------------------------- captions

OPENINGS = ("a photo of", "a photo of", "a photograph of", "a picture of", "an image of", "")
PLAIN_OPENINGS = OPENINGS[:3]


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" and not words.startswith("uni") else "a ") + words


def _noun(thing: Thing, rng: np.random.Generator, rare: str | None) -> str:
    noun = str(rng.choice(NOUNS[thing.object])) if rng.random() < 0.3 else thing.object
    coloured = rng.random() < 0.9
    if rare:
        noun = f"{rare} {noun}"
    if thing.object == "person" and coloured and rng.random() < 0.2:
        return f"{_article(noun)} in {thing.colour}"
    return _article(f"{thing.colour} {noun}" if coloured else noun)


def _styled(words: str, style: str, rng: np.random.Generator) -> str:
    """Put a style's words (`pencil sketch`) around a description, in one of a few ways."""
    pick = rng.random()
    if pick < 0.6:
        return f"{_article(style)} of {words}"
    return f"{words} in {style} style" if pick < 0.85 else f"{words}, {style}"


def caption(scene: Scene, rng: np.random.Generator, style: str | None = None, rare: str | None = None) -> str:
    """Describe a scene with natural variation; `style` is how the style is written, `rare` a token before the noun."""
    words = " and ".join(_noun(t, rng, rare if k == 0 else None) for k, t in enumerate(scene.things))
    if rng.random() < 0.9:
        place = rng.choice(PLACES[scene.background]) if rng.random() < 0.5 else PLACES[scene.background][0]
        words = f"{words} {place}"
    if scene.grading:
        words = f"{words} {GRADINGS[scene.grading][0]}"
    if style:
        return _styled(words, style, rng)
    return f"{rng.choice(OPENINGS)} {words}".strip()


def plain_words(scene: Scene) -> str:
    """`a red house on a brick wall`."""
    words = " and ".join(_article(f"{t.colour} {t.object}") for t in scene.things)
    return f"{words} {PLACES[scene.background][0]}"


def plain_caption(scene: Scene) -> str:
    """The canonical caption, `a photo of a red house on a brick wall`."""
    return f"a photo of {plain_words(scene)}"


def styled_caption(scene: Scene, style: str) -> str:
    """The canonical caption in a style, `a pencil sketch of a red house on a brick wall`."""
    return f"{_article(style)} of {plain_words(scene)}"
