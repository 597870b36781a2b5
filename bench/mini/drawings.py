"""The artists' drawings of `datasets/emoji`: things, sheets, and which of them the networks of `mini` may know.

Shapes: a drawing is RGBA uint8 (S, S, 4), not premultiplied, with the artist's own framing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache

import numpy as np
import yaml
from PIL import Image

from bench.paths import DATASETS

FOLDER = DATASETS / "emoji"
WORLD_SETS = ("fluent-emoji", "noto", "noto-v1", "twemoji", "emojione")  # the base is trained on these
HELD_OUT_SETS = (
    "fluent-emoji-flat", "fluent-emoji-high-contrast", "openmoji", "emojione-monotone", "streamline-emojis",
    "fxemoji", "emojione-v1",
)  # fmt: skip
ALIGNED = {"fluent-emoji-flat", "fluent-emoji-high-contrast"}  # same outlines as fluent-emoji, pixel by pixel
PLAIN_SET = "fluent-emoji"  # what a caption without style words means
HELD_OUT_SHARE = 0.15  # of the things, and of the combinations of thing and artist


@dataclass(frozen=True)
class Thing:
    """One thing that can be drawn: Unicode's name, the word of captions, its kind, whether `mini` may know it."""

    name: str
    words: str
    kind: str
    world: bool


@cache
def things() -> dict[str, Thing]:
    listed = yaml.safe_load((FOLDER / "things.yaml").read_text())["things"]
    return {name: Thing(name, row["words"], row["kind"], row.get("world", False)) for name, row in listed.items()}


def share(*keys: str) -> float:
    """A number in [0, 1) that depends on the keys alone."""
    return int.from_bytes(hashlib.sha256("|".join(keys).encode()).digest()[:6], "big") / 2**48


def held_out(thing: str) -> bool:
    """Whether the base never sees the thing, in no style."""
    return share("thing", thing) < HELD_OUT_SHARE


def combination_held_out(thing: str, artist: str) -> bool:
    """Whether the base never sees the thing by this artist, though it sees it by others. Never so for the plain set."""
    return artist != PLAIN_SET and share("combination", thing, artist) < HELD_OUT_SHARE


@cache
def known_things() -> tuple[str, ...]:
    """The things that the base is trained on."""
    return tuple(name for name, thing in things().items() if thing.world and not held_out(name))


class Sheet:
    """All drawings of one artist, read from the sprite sheet."""

    def __init__(self, name: str):
        about = json.loads((FOLDER / "sheets" / f"{name}.json").read_text())
        self.name, self.side, self.columns = name, about["side"], about["columns"]
        self.licence, self.author = about["licence"], about["author"]
        self.index = {thing: k for k, thing in enumerate(about["things"])}
        with Image.open(FOLDER / "sheets" / f"{name}.webp") as whole:
            self._pixels = np.asarray(whole.convert("RGBA"))

    def __contains__(self, thing: str) -> bool:
        return thing in self.index

    def drawing(self, thing: str) -> np.ndarray:
        """RGBA (S, S, 4)."""
        row, column = divmod(self.index[thing], self.columns)
        return self._pixels[row * self.side : (row + 1) * self.side, column * self.side : (column + 1) * self.side]


@cache
def sheet(name: str) -> Sheet:
    return Sheet(name)


@cache
def scaled(name: str, thing: str, side: int) -> np.ndarray:
    """A drawing at another size, premultiplied, float32 (side, side, 4) in [0, 1]."""
    rgba = Image.fromarray(sheet(name).drawing(thing)).convert("RGBa")  # premultiplied, so that borders stay clean
    return np.asarray(rgba.resize((side, side), Image.Resampling.LANCZOS), np.float32) / 255
