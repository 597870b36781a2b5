"""Draw the sprite sheets of `datasets/emoji/sheets` from a folder of npm packages.

    npm install @iconify-json/{fluent-emoji,noto,twemoji,...}       (the names of `SETS`)
    python -m bench.mini.sheets --packages node_modules/@iconify-json [--out datasets/emoji/sheets] [--side 128]

Needs `pip install resvg-py`. A sheet is a lossless WebP of square cells, 25 in a row, with transparent ground, in the
order of its `things`; the JSON file beside it holds that list, the artist, the licence and the package's version.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from pathlib import Path

import yaml
from PIL import Image

COLUMNS = 25
SETS = (
    "fluent-emoji", "fluent-emoji-flat", "fluent-emoji-high-contrast", "noto", "noto-v1", "twemoji", "openmoji",
    "emojione", "emojione-v1", "emojione-monotone", "streamline-emojis", "fxemoji",
)  # fmt: skip
ALIASES = {  # where an artist's name of a thing is not Unicode's
    "fxemoji": {
        "panda": "pandaface", "fox": "foxsmiling", "hamster": "hampster", "eggplant": "aubergine",
        "ear-of-corn": "earofmaize", "two-hump-camel": "bactriancamel", "dragon-face": "dragonhead",
        "dragon": "dragonside", "gem-stone": "gem", "flashlight": "electrictorch", "bathtub": "bath",
        "wrapped-gift": "present", "hot-pepper": "chilipepper", "rabbit-face": "bunny", "rabbit": "bunnyside",
        "locked": "lock", "evergreen-tree": "evergreen", "deciduous-tree": "deciduoustree", "high-heeled-shoe": "heels",
        "castle": "europeancastle", "hourglass-done": "hourglass", "bow-and-arrow": "bow", "scissors": "blackscissors",
        "camel": "dromedarycamel", "house": "housebuilding", "snowman-without-snow": "snowmanwithoutsnow",
    },
}  # fmt: skip


def icon_of(thing: str, names: set[str], aliases: dict[str, str]) -> str | None:
    """The artist's name of a thing: its own, an alias, one without hyphens, or the first of numbered variants."""
    plain = {re.sub(r"-\d+$", "", name): name for name in sorted(names, reverse=True)}
    joined = {name.replace("-", ""): name for name in sorted(names, reverse=True)}
    tries = (
        (names, thing), (names, aliases.get(thing, "")), (plain, thing), (joined, thing.replace("-", "")),
        (plain, f"{thing}-face"),
    )  # fmt: skip
    for known, key in tries:
        if key and key in known:
            return known[key] if isinstance(known, dict) else key
    return None


class Package:
    """One artist's set: SVG bodies by name."""

    def __init__(self, folder: Path):
        self.name = folder.name
        self.icons = json.loads((folder / "icons.json").read_text())
        self.info = json.loads((folder / "info.json").read_text())
        self.version = json.loads((folder / "package.json").read_text())["version"]
        self.names = {*self.icons["icons"], *self.icons.get("aliases", {})}

    def svg(self, icon: str) -> str:
        """A whole SVG document of an icon."""
        while icon not in self.icons["icons"]:
            icon = self.icons["aliases"][icon]["parent"]
        entry = self.icons["icons"][icon]
        sizes = [entry.get(side, self.icons.get(side, 16)) for side in ("width", "height")]
        box = f"0 0 {sizes[0]} {sizes[1]}"
        # a monochrome set draws in the text's colour
        body = entry["body"].replace("currentColor", "#000")
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{body}</svg>'

    def draw(self, icon: str, side: int) -> Image.Image:
        """RGBA picture (side, side)."""
        import resvg_py

        data = resvg_py.svg_to_bytes(svg_string=self.svg(icon), width=side, height=side)
        drawn = Image.open(io.BytesIO(bytes(data))).convert("RGBA")
        if drawn.size == (side, side):
            return drawn
        whole = Image.new("RGBA", (side, side))
        whole.paste(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
        return whole

    def things(self, listed: list[str]) -> dict[str, str]:
        """thing -> icon, for the things that this artist drew."""
        aliases = ALIASES.get(self.name, {})
        found = {thing: icon_of(thing, self.names, aliases) for thing in listed}
        return {thing: icon for thing, icon in found.items() if icon is not None}


def sheet(package: Package, things: dict[str, str], side: int) -> Image.Image:
    rows = -(-len(things) // COLUMNS)
    whole = Image.new("RGBA", (COLUMNS * side, rows * side))
    for k, icon in enumerate(things.values()):
        whole.paste(package.draw(icon, side), (k % COLUMNS * side, k // COLUMNS * side))
    return whole


def write(package: Package, listed: list[str], side: int, out: Path) -> None:
    things = package.things(listed)
    sheet(package, things, side).save(out / f"{package.name}.webp", lossless=True, quality=100, method=6, exact=False)
    info = package.info
    about = {
        "set": package.name,
        "title": info["name"],
        "author": info["author"]["name"],
        "source": info["author"]["url"],
        "licence": info["license"]["spdx"],
        "package": f"@iconify-json/{package.name} {package.version}",
        "side": side,
        "columns": COLUMNS,
        "things": list(things),
    }
    (out / f"{package.name}.json").write_text(json.dumps(about, indent=1) + "\n")
    size = (out / f"{package.name}.webp").stat().st_size / 2**20
    print(f"{package.name}: {len(things)} of {len(listed)} things, {size:.1f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("datasets/emoji/sheets"))
    parser.add_argument("--things", type=Path, default=Path("datasets/emoji/things.yaml"))
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--sets", default=",".join(SETS))
    args = parser.parse_args()
    listed = list(yaml.safe_load(args.things.read_text())["things"])
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.sets.split(","):
        write(Package(args.packages / name), listed, args.side, args.out)


if __name__ == "__main__":
    main()
