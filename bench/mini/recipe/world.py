"""Stage `world`: draw the pretraining pictures once, with captions and labels, and odd pictures for the VAE alone."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from bench.mini import scenes, styles
from bench.mini.recipe.tokenizer import RARE_TOKENS
from bench.mini.recipe.training import Progress

CHUNK = 250
CAPTIONS = 5  # phrasings per picture
PHOTO, GRADED = 0.45, 0.15  # shares; the rest is drawn in a known style
STYLE_NAMES = ("photo", *styles.KNOWN)


@dataclass
class World:
    """images (N, 64, 64, 3) uint8, captions[N][5], labels (N,): object, colour, background, style, graded, things."""

    images: np.ndarray
    captions: list[list[str]]
    labels: dict[str, np.ndarray]
    odd: np.ndarray  # (M, 64, 64, 3) uint8, for the VAE alone

    @classmethod
    def load(cls, folder: Path) -> World:
        labels = dict(np.load(folder / "labels.npz"))
        images, odd = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "odd"))
        return cls(images, json.loads((folder / "captions.json").read_text()), labels, odd)


def draw_one(rng: np.random.Generator) -> tuple[np.ndarray, list[str], tuple[int, ...]]:
    """One picture (64, 64, 3), its captions, and its labels."""
    kind = rng.random()
    scene = scenes.sample_scene(rng, graded=1.0 if PHOTO <= kind < PHOTO + GRADED else 0.0)
    image, style = scenes.render(scene), 0
    if kind >= PHOTO + GRADED:
        style = int(rng.integers(1, len(STYLE_NAMES)))
        image = styles.KNOWN[STYLE_NAMES[style]](image)
    words = styles.STYLE_WORDS[STYLE_NAMES[style]] if style else None
    captions = [
        scenes.caption(scene, rng, words, rare=str(rng.choice(RARE_TOKENS)) if rng.random() < 0.1 else None)
        for _ in range(CAPTIONS)
    ]
    label = (
        scenes.OBJECTS.index(scene.object),
        list(scenes.COLOURS).index(scene.colour),
        scenes.BACKGROUNDS.index(scene.background),
        style,
        int(scene.grading is not None),
        len(scene.things),
    )
    return image, captions, label


# -------------------------------------------------------------------------------------------- pictures for the VAE


def _palette(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.uniform(0, 1, (count, 3)).astype(np.float32)


def _wave(rng: np.random.Generator, side: int = scenes.SIDE) -> np.ndarray:
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


def _patches(rng: np.random.Generator) -> np.ndarray:
    """Voronoi cells, ellipses or blocks in a random palette (64, 64, 3)."""
    side, count = scenes.SIDE, int(rng.integers(3, 60))
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    centres = rng.uniform(0, side, (count, 2))
    power = rng.choice([1, 2])
    d = np.abs(x - centres[:, 0, None, None]) ** power + np.abs(y - centres[:, 1, None, None]) ** power
    rgb = _palette(rng, count)[d.argmin(0)]
    if rng.random() < 0.4:
        two = np.partition(d, 1, axis=0)[:2]
        rgb = rgb * (1 - np.exp(-((np.sqrt(two[1]) - np.sqrt(two[0])) ** 2) / rng.uniform(0.1, 1.0)))[..., None]
    return rgb


def _filtered(rng: np.random.Generator, rgb: np.ndarray) -> np.ndarray:
    """One random filter of a picture (64, 64, 3) in [0, 1]."""
    grey = rgb.mean(-1)
    dark, light = _palette(rng, 2)
    match rng.integers(8):
        case 0:
            return np.clip(
                rgb @ (np.eye(3) + rng.normal(0, 0.5, (3, 3))).astype(np.float32) + rng.normal(0, 0.2, 3), 0, 1
            )
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
        case 6:
            noise = rng.normal(0, rng.uniform(0.05, 0.3), (64, 64, int(rng.choice([1, 3]))))
            return np.clip(rgb + gaussian_filter(noise, (s := rng.choice([0, 0.6, 1.5]), s, 0)) * (1 + 2 * s), 0, 1)
        case _:
            block = int(rng.choice([8, 16, 20, 32]))
            small = Image.fromarray((rgb * 255).astype(np.uint8)).resize((block, block), Image.Resampling.BOX)
            return np.asarray(small.resize((64, 64), Image.Resampling(int(rng.choice([0, 3]))))) / np.float32(255)


def draw_odd(rng: np.random.Generator) -> np.ndarray:
    """One picture of any kind (64, 64, 3) uint8: scenes or patches under up to three random filters."""
    if rng.random() < 0.75:
        rgb = scenes.render(scenes.sample_scene(rng, graded=0.3)).astype(np.float32) / 255
    else:
        rgb = _patches(rng)
    for _ in range(rng.integers(1, 4)):
        rgb = np.asarray(_filtered(rng, rgb), np.float32)
    return np.clip(rgb * 255 + 0.5, 0, 255).astype(np.uint8)


# --------------------------------------------------------------------------------------------------------- stage


def _chunk(seed: int, index: int) -> tuple[np.ndarray, list, list]:
    drawn = [draw_one(np.random.default_rng((seed, 0, index, k))) for k in range(CHUNK)]
    images, captions, labels = zip(*drawn, strict=True)
    return np.stack(images), list(captions), list(labels)


def _odd_chunk(seed: int, index: int) -> np.ndarray:
    return np.stack([draw_odd(np.random.default_rng((seed, 1, index, k))) for k in range(CHUNK)])


def build(folder: Path, pictures: int, odd: int, seed: int, workers: int) -> None:
    """Write images.npy, captions.json, labels.npz and odd.npy under folder; a few ms per picture and process."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks, odd_chunks = -(-pictures // CHUNK), -(-odd // CHUNK)
    progress = Progress("world", chunks + odd_chunks, every_s=10)
    with ProcessPoolExecutor(workers) as pool:
        strange = []
        for part in pool.map(_odd_chunk, [seed] * odd_chunks, range(odd_chunks)):
            strange.append(part)
            progress.tick()
        np.save(folder / "odd.npy", np.concatenate(strange))
        parts = []
        for part in pool.map(_chunk, [seed] * chunks, range(chunks)):
            parts.append(part)
            progress.tick()
    images, captions, labels = zip(*parts, strict=True)
    np.save(folder / "images.npy", np.concatenate(images))
    (folder / "captions.json").write_text(json.dumps(sum(captions, [])))
    columns = np.array(sum(labels, []), np.int16).T
    names = ("object", "colour", "background", "style", "graded", "things")
    np.savez(folder / "labels.npz", **dict(zip(names, columns, strict=True)))
