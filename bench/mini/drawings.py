"""The artists' drawings of `datasets/emoji`: things, sheets, and which of them the networks of `mini` may know.

Shapes: a drawing is RGBA uint8 (S, S, 4), not premultiplied, with the artist's own framing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml
from PIL import Image

from bench.errors import BenchError
from bench.paths import DATASETS

if TYPE_CHECKING:
    from bench.mini.sheets import Package

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
        self.licence, self.author, self.package = about["licence"], about["author"], about["package"]
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
def scaled(name: str, thing: str, side: int, packages: str | None = None) -> np.ndarray:
    """A drawing at another size, premultiplied, float32 (side, side, 4) in [0, 1].

    It is resized from the sheet or, with a folder of npm packages, drawn at that size from the artist's SVG.
    """
    rgba = Image.fromarray(sheet(name).drawing(thing)) if packages is None else _vector(name, thing, side, packages)
    premultiplied = rgba.convert("RGBa")  # so that borders stay clean
    return np.asarray(premultiplied.resize((side, side), Image.Resampling.LANCZOS), np.float32) / 255


def _vector(name: str, thing: str, side: int, packages: str) -> Image.Image:
    package = _package(name, packages)
    return package.draw(package.things([thing])[thing], side)


@cache
def _package(name: str, packages: str) -> Package:
    """The npm package of an artist, in the version of the sheet. Raises BenchError."""
    from bench.mini.sheets import Package

    folder, expected = Path(packages).expanduser() / name, sheet(name).package
    installed = " ".join(f"@iconify-json/{artist}" for artist in (*WORLD_SETS, *HELD_OUT_SETS))
    if not (folder / "icons.json").is_file():
        raise BenchError(
            f"The drawings of {name} were requested from {folder}, which holds no icons.json; type npm install "
            f"{installed} and dataset.drawings.packages=node_modules/@iconify-json."
        )
    try:
        import resvg_py  # noqa: F401
    except ImportError:
        raise BenchError(
            f"The drawings of {name} were requested from {folder}, but resvg-py is not installed; "
            "type pip install resvg-py."
        ) from None
    package = Package(folder)
    found = f"@iconify-json/{name} {package.version}"
    if found != expected:
        raise BenchError(f"{folder} holds {found}, but the sheet was drawn from {expected}; install that version.")
    return package
