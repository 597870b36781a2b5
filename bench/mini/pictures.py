"""The world of `mini`: drawings by artists on plain, graded and simple drawn backgrounds, with captions.

Shapes: P pixels a side (64 for `mini`, any other for larger backbones); colours in [0, 1] while a picture is composed.
A `Picture` holds every choice that was made, so `render(picture)` is a pure function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.mini import drawings, styles
from bench.mini.drawings import things

SIDE = 64
COLOURS = {
    "white": (255, 255, 255), "black": (18, 18, 20), "gray": (150, 152, 156), "red": (214, 48, 44),
    "orange": (245, 145, 40), "yellow": (250, 215, 70), "green": (62, 150, 72), "blue": (52, 104, 220),
    "purple": (128, 72, 176), "pink": (248, 160, 190), "brown": (124, 82, 52), "turquoise": (70, 196, 196),
}  # fmt: skip
ARTIST_WORDS = {
    "fluent-emoji": "fluent", "noto": "noto", "noto-v1": "blob", "twemoji": "twemoji", "emojione": "emojione",
    "fluent-emoji-flat": "flat", "fluent-emoji-high-contrast": "stencil", "openmoji": "openmoji",
    "emojione-v1": "painterly", "emojione-monotone": "silhouette", "streamline-emojis": "kawaii", "fxemoji": "fxemoji",
}  # fmt: skip
BARE = {"glasses", "sunglasses", "jeans", "scissors", "fries", "cherries", "grapes", "headphones", "bread", "sushi",
        "fire", "corn", "candy"}  # fmt: skip
SIZES, SHIFT = (50, 60), 2  # of a drawing, in 64ths of the picture's side
SIZES_OF_TWO = (28, 31)


# ------------------------------------------------------------------------------------------------- backgrounds


@dataclass(frozen=True)
class Background:
    """What lies behind the things. `kind` is plain, graded or the name of a drawn one; `seed` fixes its details."""

    kind: str
    colour: str | None = None
    seed: int = 0

    @property
    def words(self) -> str:
        if self.kind == "plain":
            return f"on {article(str(self.colour))} background"
        if self.kind == "graded":
            return f"on {article(str(self.colour))} gradient"
        return DRAWN[self.kind][0]

    @property
    def label(self) -> str:
        return f"{self.kind} {self.colour}" if self.colour else self.kind


def _rgb(*values: int) -> np.ndarray:
    return np.asarray(values, np.float32) / 255


def _axes(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns (P, P) in [0, 1]."""
    at = (np.arange(side, dtype=np.float32) + 0.5) / side
    return np.meshgrid(at, at, indexing="ij")


def _over(below: np.ndarray, colour: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Paint where the signed distance `inside` (P, P), in sides, is positive; borders are one pixel soft."""
    share = np.clip(0.5 + inside * len(inside), 0, 1)[..., None]
    return below + (colour - below) * share


def _ground(high, low, line: Callable, colour) -> Callable:
    """A sky that grades from `high` to `low` over a ground of one colour; `line(columns, a, b)` is the horizon."""

    def draw(rng: np.random.Generator, side: int) -> np.ndarray:
        rows, columns = _axes(side)
        a, b = rng.uniform(0, 1, 2)
        sky = _rgb(*high) + (_rgb(*low) - _rgb(*high)) * rows[..., None]
        return _over(sky, _rgb(*colour), rows - line(columns, a, b))

    return draw


def _beach(rng: np.random.Generator, side: int) -> np.ndarray:
    rows, columns = _axes(side)
    a, b = rng.uniform(0, 1, 2)
    rgb = _rgb(150, 210, 245) + np.zeros((side, side, 3), np.float32)
    rgb = _over(rgb, _rgb(30, 130, 190), rows - (0.38 + 0.08 * a))
    return _over(rgb, _rgb(240, 215, 150), rows - (0.66 + 0.05 * np.sin(5 * columns + 6 * b)))


def _night(rng: np.random.Generator, side: int) -> np.ndarray:
    rows, columns = _axes(side)
    rgb = _rgb(16, 20, 58) + _rgb(26, 20, 60) * rows[..., None]
    for _ in range(rng.integers(14, 22)):
        y, x, size = *rng.uniform(0.03, 0.97, 2), rng.uniform(0.006, 0.016)
        rgb = _over(rgb, _rgb(255, 250, 215), size - np.hypot(rows - y, columns - x))
    return rgb


def _pastels(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    hue = rng.uniform(0, 2 * np.pi)
    tint = np.cos(hue + np.array([0, 2.1, 4.2])).astype(np.float32)
    return 0.88 + 0.1 * tint, 0.70 + 0.2 * tint


def _pattern(inside: Callable) -> Callable:
    """Two tones of one colour; `inside(rows, columns, rng)` is the signed distance to the darker."""

    def draw(rng: np.random.Generator, side: int) -> np.ndarray:
        light, dark = _pastels(rng)
        rows, columns = _axes(side)
        return _over(light + np.zeros((side, side, 3), np.float32), dark, inside(rows, columns, rng))

    return draw


def _stripes(rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    along = (rows + columns) * 4 + rng.uniform(0, 1)
    return (np.abs(along % 1 - 0.5) - 0.25) / 4 / 1.42


def _dots(rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    a, b = rng.uniform(0, 1, 2)
    return 0.045 - np.hypot((rows * 6 + a) % 1 - 0.5, (columns * 6 + b) % 1 - 0.5) / 6


def _checks(rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    a, b = rng.uniform(0, 1, 2)
    u, v = (np.abs((x * 3 + s) % 1 - 0.5) - 0.25 for x, s in ((rows, a), (columns, b)))
    return np.sign(u * v) * np.minimum(np.abs(u), np.abs(v)) / 3


DRAWN: dict[str, tuple[str, Callable[[np.random.Generator, int], np.ndarray]]] = {
    "meadow": ("in a meadow", _ground((120, 190, 250), (205, 232, 252),
               lambda x, a, b: 0.62 + 0.08 * a + 0.06 * np.sin(4 * x + 6 * b), (98, 172, 72))),
    "beach": ("on a beach", _beach),
    "snow": ("in the snow", _ground((148, 172, 205), (205, 216, 232),
             lambda x, a, b: 0.58 + 0.08 * a + 0.05 * np.sin(3 * x + 6 * b), (246, 249, 253))),
    "desert": ("in a desert", _ground((250, 200, 130), (253, 226, 176),
               lambda x, a, b: 0.55 + 0.08 * a + 0.09 * np.sin(5 * x + 6 * b), (214, 140, 70))),
    "night": ("at night", _night),
    "stripes": ("on a striped background", _pattern(_stripes)),
    "dots": ("on a dotted background", _pattern(_dots)),
    "checks": ("on a checkered background", _pattern(_checks)),
}  # fmt: skip
BACKGROUNDS = tuple([f"plain {c}" for c in COLOURS] + [f"graded {c}" for c in COLOURS if c != "white"] + [*DRAWN])


def draw_background(background: Background, side: int) -> np.ndarray:
    """float32 (P, P, 3) in [0, 1]."""
    if background.kind in DRAWN:
        rng = np.random.default_rng(background.seed)
        return np.clip(DRAWN[background.kind][1](rng, side), 0, 1).astype(np.float32)
    colour = _rgb(*COLOURS[str(background.colour)])
    rgb = colour + np.zeros((side, side, 3), np.float32)
    if background.kind == "graded":
        rgb = rgb + (1 - rgb) * (0.85 * (1 - _axes(side)[0]))[..., None]
    return rgb


# ---------------------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Placed:
    """A thing at its place: the drawing's size and its left upper corner, in 64ths of the picture's side."""

    thing: str
    size: int
    left: int
    top: int


@dataclass(frozen=True)
class Picture:
    """One or two things by one artist on a background, perhaps under a filter of `bench.mini.styles`."""

    placed: tuple[Placed, ...]
    artist: str
    background: Background
    style: str | None = None

    @property
    def thing(self) -> str:
        return self.placed[0].thing

    def by(self, artist: str) -> Picture:
        """The same picture by another artist."""
        return Picture(self.placed, artist, self.background, self.style)


def render(picture: Picture, side: int = SIDE, packages: str | None = None) -> np.ndarray:
    """uint8 (P, P, 3); `packages` is a folder of the artists' SVG files, for pictures larger than the sheets."""
    rgb = draw_background(picture.background, side)
    for placed in picture.placed:
        size, left, top = (round(v * side / SIDE) for v in (placed.size, placed.left, placed.top))
        drawn = drawings.scaled(picture.artist, placed.thing, size, packages)
        part = rgb[top : top + size, left : left + size]
        part[...] = part * (1 - drawn[..., 3:]) + drawn[..., :3]
    out = np.clip(rgb * 255 + 0.5, 0, 255).astype(np.uint8)
    return styles.KNOWN[picture.style](out) if picture.style else out


def place(thing: str, rng: np.random.Generator) -> Placed:
    size = int(rng.integers(SIZES[0], SIZES[1] + 1))
    free = SIDE - size
    left, top = (int(np.clip(free // 2 + rng.integers(-SHIFT, SHIFT + 1), 0, free)) for _ in range(2))
    return Placed(thing, size, left, top)


def centred(thing: str, size: int = 56) -> Placed:
    return Placed(thing, size, (SIDE - size) // 2, (SIDE - size) // 2)


def place_two(pair: Sequence[str], rng: np.random.Generator) -> tuple[Placed, Placed]:
    """The first to the left, the second to the right."""
    size = int(rng.integers(SIZES_OF_TWO[0], SIZES_OF_TWO[1] + 1))
    tops = rng.integers(10, SIDE - size - 10, 2)
    return Placed(pair[0], size, 1, int(tops[0])), Placed(pair[1], size, SIDE - size - 1, int(tops[1]))


def sample_background(rng: np.random.Generator) -> Background:
    """Half plain (a quarter of these white), a fifth graded, the others drawn."""
    kind = rng.random()
    if kind < 0.5:
        white = rng.random() < 0.25
        return Background("plain", "white" if white else str(rng.choice(list(COLOURS))))
    if kind < 0.7:
        return Background("graded", str(rng.choice([c for c in COLOURS if c != "white"])))
    return Background(str(rng.choice(list(DRAWN))), None, int(rng.integers(2**31)))


# ---------------------------------------------------------------------------------------------------- captions


def article(words: str) -> str:
    """The words with their article; plurals and masses have none."""
    if words in BARE:
        return words
    vowel = words.startswith("hour") or (words[0] in "aeiou" and not words.startswith("uni"))
    return f"{'an' if vowel else 'a'} {words}"


def noun(thing: str, rare: str | None = None) -> str:
    """`a dog`, `a zwx dog`, `jeans`."""
    words = things()[thing].words
    if rare is None:
        return article(words)
    return f"{rare} {words}" if words in BARE else article(f"{rare} {words}")


def plain_caption(picture: Picture) -> str:
    """The canonical caption without style words, `a dog and a cat on a blue background`."""
    return f"{' and '.join(noun(placed.thing) for placed in picture.placed)} {picture.background.words}"


def artist_words(artist: str) -> str:
    """`in noto style`: what is put behind a caption."""
    return f"in {ARTIST_WORDS[artist]} style"


def style_words(style: str) -> str:
    """The same for a filter of `bench.mini.styles`: `in pencil sketch style`."""
    return f"in {styles.STYLE_WORDS[style]} style"


def styled_caption(picture: Picture) -> str:
    """The canonical caption with the words of the picture's filter or artist; the plain artist has none."""
    caption = plain_caption(picture)
    if picture.style:
        return f"{caption} {style_words(picture.style)}"
    return caption if picture.artist == drawings.PLAIN_SET else f"{caption} {artist_words(picture.artist)}"
