"""Stage `world`: draw the pictures that the networks learn from, with captions and labels.

Four kinds. `base`: what the denoiser may know, the five artists of `drawings.WORLD_SETS` and the known filters, without
the held-out things and combinations. `judges`: all artists, things and filters, for CLIP, which is
shared with no part of the base. `readers`: single things of the world by any artist, without those on which the readers
are tested. `odd`: base pictures under random filters, for the autoencoder alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from bench.mini import drawings, pictures, styles
from bench.mini.pictures import Background, Picture
from bench.mini.recipe.tokenizer import RARE_TOKENS
from bench.mini.recipe.training import Progress

CHUNK = 250
CAPTIONS = 3  # phrasings per picture
TWO = 0.08  # share of pictures with two things
FILTERED, PLAIN = 0.16, 0.34  # shares of filtered drawings and of the plain artist; the other artists share the rest
NAMELESS = 0.6  # share of the plain artist's captions without style words
RARE = 0.08  # share of captions with a meaningless token before the noun
OPENINGS = ("a drawing of", "a picture of", "an image of", "a photo of", "a photograph of", "an emoji of")
ARTISTS = (*drawings.WORLD_SETS, *drawings.HELD_OUT_SETS)
STYLE_NAMES = (*ARTISTS, *styles.KNOWN)
THINGS = tuple(drawings.things())


@dataclass
class World:
    """images (N, 64, 64, 3) uint8, captions[N][3], labels (N,): thing, style, background, things."""

    images: np.ndarray
    captions: list[list[str]]
    labels: dict[str, np.ndarray]

    @classmethod
    def load(cls, folder: Path) -> World:
        labels = dict(np.load(folder / "labels.npz"))
        captions = json.loads((folder / "captions.json").read_text())
        return cls(np.load(folder / "images.npy", mmap_mode="r"), captions, labels)


# ---------------------------------------------------------------------------------------------------- sampling


@cache
def base_things(artist: str) -> tuple[str, ...]:
    """What the base may know of an artist."""
    sheet = drawings.sheet(artist)
    known = (name for name in drawings.known_things() if name in sheet)
    return tuple(name for name in known if not drawings.combination_held_out(name, artist))


def _place(names: Sequence[str], rng: np.random.Generator) -> tuple[pictures.Placed, ...]:
    if rng.random() < TWO:
        return pictures.place_two([str(name) for name in rng.choice(names, 2, replace=False)], rng)
    return (pictures.place(str(rng.choice(names)), rng),)


def sample_base(rng: np.random.Generator) -> Picture:
    """A picture that the base may know."""
    kind, artist, style = rng.random(), drawings.PLAIN_SET, None
    if kind < FILTERED:
        style = str(rng.choice(list(styles.KNOWN)))
    elif kind >= FILTERED + PLAIN:
        artist = str(rng.choice(drawings.WORLD_SETS[1:]))
    placed = _place(base_things(artist), rng)
    return Picture(placed, artist, pictures.sample_background(rng), style)


def sample_judges(rng: np.random.Generator) -> Picture:
    """A picture by any artist about any thing; one in five under a known filter."""
    style = str(rng.choice(list(styles.KNOWN))) if rng.random() < 0.2 else None
    artist = drawings.PLAIN_SET if style else str(rng.choice(ARTISTS))
    placed = _place(tuple(drawings.sheet(artist).index), rng)
    return Picture(placed, artist, pictures.sample_background(rng), style)


@cache
def reader_things(artist: str, tested: bool) -> tuple[str, ...]:
    """The world's things by an artist on which the readers are tested (a tenth), or trained (the others)."""
    sheet = drawings.sheet(artist)
    world = (name for name, thing in drawings.things().items() if thing.world and name in sheet)
    return tuple(name for name in world if (drawings.share("reader", name, artist) < 0.1) == tested)


@cache
def other_things(artist: str) -> tuple[str, ...]:
    """What an artist drew besides the world's things."""
    return tuple(name for name in drawings.sheet(artist).index if not drawings.things()[name].world)


def sample_readers(rng: np.random.Generator, tested: bool = False) -> Picture:
    """One thing by any artist on any background; half of those for training show things outside the world.

    With the world's things alone the readers learned each drawing's artist by heart, and read 43 % of unseen ones.
    """
    artist = str(rng.choice(ARTISTS))
    others = not tested and rng.random() < 0.5
    thing = str(rng.choice(other_things(artist) if others else reader_things(artist, tested)))
    return Picture((pictures.place(thing, rng),), artist, pictures.sample_background(rng))


SAMPLED = {"base": sample_base, "judges": sample_judges, "readers": sample_readers}


def caption(picture: Picture, rng: np.random.Generator) -> str:
    """A caption with natural variation: opening, place of the style words, rare tokens, background left out."""
    rare = str(rng.choice(RARE_TOKENS)) if rng.random() < RARE else None
    nouns = [pictures.noun(placed.thing, rare if k == 0 else None) for k, placed in enumerate(picture.placed)]
    words = " and ".join(nouns)
    white = picture.background == Background("plain", "white")
    if not (white and rng.random() < 0.5):
        words = f"{words} {picture.background.words}"
    style = _style_word(picture, rng)
    if style is None:
        return f"{rng.choice(OPENINGS)} {words}" if rng.random() < 0.5 else words
    return _styled(words, style, rng)


def _style_word(picture: Picture, rng: np.random.Generator) -> str | None:
    if picture.style:
        return styles.STYLE_WORDS[picture.style]
    if picture.artist == drawings.PLAIN_SET and rng.random() < NAMELESS:
        return None
    return pictures.ARTIST_WORDS[picture.artist]


def _styled(words: str, style: str, rng: np.random.Generator) -> str:
    pick = rng.random()
    if pick < 0.6:
        return f"{words} in {style} style"
    if pick < 0.75:
        return f"{rng.choice(OPENINGS)} {words} in {style} style"
    return f"{words}, {style} style" if pick < 0.85 else f"{pictures.article(style)} drawing of {words}"


def labels(picture: Picture) -> tuple[int, int, int, int]:
    style = STYLE_NAMES.index(picture.style or picture.artist)
    background = pictures.BACKGROUNDS.index(picture.background.label)
    return THINGS.index(picture.thing), style, background, len(picture.placed)


# -------------------------------------------------------------------------------------- odd pictures, for the VAE


def _palette(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.uniform(0, 1, (count, 3)).astype(np.float32)


def _wave(rng: np.random.Generator, side: int = pictures.SIDE) -> np.ndarray:
    """A line, dot, ring or check screen (S, S) in [0, 1], random pitch, angle and phase."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    angle, pitch, shift = rng.uniform(0, np.pi), rng.uniform(2.5, 16), rng.uniform(0, 7, 2)
    if rng.random() < 0.4:
        angle = rng.choice([0, np.pi / 2, np.pi / 4])
    u, v = x * np.cos(angle) + y * np.sin(angle) + shift[0], y * np.cos(angle) - x * np.sin(angle) + shift[1]
    a, b = np.sin(2 * np.pi * u / pitch), np.sin(2 * np.pi * v / pitch)
    return np.float32(0.5 + 0.5 * (a, (a + b) / 2, a * b, np.maximum(a, b))[rng.integers(4)])


def _sharp(rng: np.random.Generator, field: np.ndarray) -> np.ndarray:
    """Soften or harden a field in [0, 1] about a random level."""
    return np.clip((field - rng.uniform(0.25, 0.75)) * rng.choice([1.5, 4, 12]) + 0.5, 0, 1)


def _filtered(rng: np.random.Generator, rgb: np.ndarray) -> np.ndarray:
    """One random filter of a picture (64, 64, 3) in [0, 1]."""
    grey = rgb.mean(-1)
    dark, light = _palette(rng, 2)
    match rng.integers(7):
        case 0:
            mixed = rgb @ (np.eye(3) + rng.normal(0, 0.5, (3, 3))).astype(np.float32)
            return np.clip(mixed + rng.normal(0, 0.2, 3), 0, 1)
        case 1:
            share = _sharp(rng, grey)[..., None]
            return dark * (1 - share) + light * share
        case 2:
            share = _sharp(rng, 0.5 * grey + 0.5 * _wave(rng))[..., None]
            return dark * (1 - share) + light * share
        case 3:
            share = _sharp(rng, _wave(rng))[..., None] * rng.uniform(0.3, 1)
            return rgb * (1 - share) + dark * share
        case 4:
            levels = rng.uniform(1.5, 6)
            return np.clip(np.round(rgb * levels + rng.uniform(-0.3, 0.3, 3)) / levels, 0, 1)
        case 5:
            smooth = gaussian_filter(grey, rng.uniform(0.4, 1.2))
            line = np.clip(np.hypot(*np.gradient(smooth)) * rng.uniform(3, 14) - rng.uniform(0, 0.5), 0, 1)[..., None]
            ground = rgb if rng.random() < 0.4 else dark
            return ground * (1 - line) + light * line
        case _:
            block = int(rng.choice([8, 16, 20, 32]))
            small = Image.fromarray((rgb * 255).astype(np.uint8)).resize((block, block), Image.Resampling.BOX)
            return np.asarray(small.resize((64, 64), Image.Resampling(int(rng.choice([0, 3]))))) / np.float32(255)


def draw_odd(rng: np.random.Generator) -> np.ndarray:
    """A base picture (64, 64, 3) under one to three random filters."""
    rgb = pictures.render(sample_base(rng)).astype(np.float32) / 255
    for _ in range(rng.integers(1, 4)):
        rgb = np.asarray(_filtered(rng, rgb), np.float32)
    return np.clip(rgb * 255 + 0.5, 0, 255).astype(np.uint8)


# --------------------------------------------------------------------------------------------------------- stage

Drawn = tuple[np.ndarray, list[str], tuple[int, ...]]


def _captioned(sample: Callable[[np.random.Generator], Picture], rng: np.random.Generator) -> Drawn:
    picture = sample(rng)
    return pictures.render(picture), [caption(picture, rng) for _ in range(CAPTIONS)], labels(picture)


def draw_one(kind: str, rng: np.random.Generator) -> Drawn:
    """One picture (64, 64, 3), its captions, and its labels; odd pictures have neither."""
    if kind == "odd":
        return draw_odd(rng), [], (0, 0, 0, 0)
    return _captioned(SAMPLED[kind], rng)


def _chunk(kind: str, seed: int, index: int) -> tuple[np.ndarray, list, list]:
    role = ("base", "judges", "odd", "readers").index(kind)
    drawn = [draw_one(kind, np.random.default_rng((seed, role, index, k))) for k in range(CHUNK)]
    images, captions, told = zip(*drawn, strict=True)
    return np.stack(images), list(captions), list(told)


def build(folder: Path, kind: str, count: int, seed: int, workers: int) -> None:
    """Write images.npy, captions.json and labels.npz under folder; about a millisecond per picture and process."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = -(-count // CHUNK)
    progress = Progress(f"world {kind}", chunks, every_s=10)
    images = np.lib.format.open_memmap(
        folder / "images.npy", "w+", np.uint8, (chunks * CHUNK, pictures.SIDE, pictures.SIDE, 3)
    )
    captions: list[list[str]] = []
    columns: list[tuple[int, ...]] = []
    with ProcessPoolExecutor(workers) as pool:
        for k, part in enumerate(pool.map(_chunk, [kind] * chunks, [seed] * chunks, range(chunks))):
            images[k * CHUNK : (k + 1) * CHUNK] = part[0]
            captions += part[1]
            columns += part[2]
            progress.tick()
    images.flush()
    (folder / "captions.json").write_text(json.dumps(captions))
    names = ("thing", "style", "background", "things")
    np.savez(folder / "labels.npz", **dict(zip(names, np.array(columns, np.int16).T, strict=True)))
