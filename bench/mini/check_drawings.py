"""Measure a base that was trained on the artists' drawings against its bars.

    python -m bench.mini.check_drawings --weights DIR [--count 300] [--json FILE]

DIR is `weights` of a recipe folder (diffusion, readers). It replaces `bench.mini.check` when such a base ships.
Samples are read by the readers, whose own accuracy on real drawings is printed beside.
Shapes: N pictures, uint8 (N, 3, 64, 64).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.mini import drawings, pictures
from bench.mini.check import Bundle, _psnr, load_seconds, sample_seconds
from bench.mini.pictures import Picture
from bench.mini.readers import Readers

BARS = {  # what -> least, or most where the name ends in _s or _mb
    "thing": 0.90, "background": 0.98, "style": 0.90, "unseen": 0.75, "decoder_db": 30.0, "decoder_held_out_db": 30.0,
    "reader_artist": 0.98, "reader_thing": 0.90, "load_s": 2.0, "sample_16_s": 8.0, "bundle_mb": 48.0,
}  # fmt: skip


def combinations(unseen: bool) -> list[tuple[str, str]]:
    """(thing, artist) of the base's world that it saw in training, or that it never saw though it knows both."""
    found = [(t, a) for a in drawings.WORLD_SETS for t in drawings.known_things() if t in drawings.sheet(a)]
    return [(t, a) for t, a in found if drawings.combination_held_out(t, a) == unseen]


def requested(unseen: bool, count: int, seed: int) -> list[Picture]:
    """Pictures to ask for: combinations in a shuffled order, each on a background of the world."""
    rng = np.random.default_rng((seed, unseen))
    names = combinations(unseen)
    chosen = [names[k] for k in rng.permutation(len(names))[:count]]
    return [Picture((pictures.centred(t),), a, pictures.sample_background(rng)) for t, a in chosen]


def right(said: dict[str, list[str]], asked: Sequence[Picture]) -> dict[str, float]:
    """Share of pictures that are read as requested, by question."""
    expected = {
        "thing": [picture.thing for picture in asked],
        "artist": [picture.artist for picture in asked],
        "background": [picture.background.label for picture in asked],
    }
    return {k: float(np.mean([a == b for a, b in zip(said[k], v, strict=True)])) for k, v in expected.items()}


def samples_read(bundle: Bundle, readers: Readers, count: int) -> dict[str, float]:
    """Seen combinations by question; `unseen` is the thing and the artist both read rightly."""
    asked, strange = requested(False, count, 0), requested(True, count, 0)
    shares = right(readers.read(bundle.sample([pictures.styled_caption(p) for p in asked], seed=5000)), asked)
    said = readers.read(bundle.sample([pictures.styled_caption(p) for p in strange], seed=9000))
    both = [t == p.thing and a == p.artist for t, a, p in zip(said["thing"], said["artist"], strange, strict=True)]
    known = {"thing": shares["thing"], "background": shares["background"], "style": shares["artist"]}
    return known | {"unseen": float(np.mean(both))}


def drawn(artists: Sequence[str], count: int, seed: int = 104) -> Tensor:
    """Real drawings by some artists on the world's backgrounds (count, 3, 64, 64)."""
    rng, out = np.random.default_rng(seed), []
    for k in range(count):
        artist = artists[k % len(artists)]
        thing = str(rng.choice(list(drawings.sheet(artist).index)))
        out.append(pictures.render(Picture((pictures.place(thing, rng),), artist, pictures.sample_background(rng))))
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).contiguous()


def measure(folder: Path, count: int) -> dict[str, float]:
    """Every number of `BARS`."""
    bundle, readers = Bundle(folder), Readers.load(folder / "readers")
    accuracy = json.loads((folder / "readers" / "config.json").read_text())["accuracy"]
    found = {"load_s": load_seconds(folder), "sample_16_s": sample_seconds(bundle)}
    found["bundle_mb"] = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**20
    found["decoder_db"] = _psnr(bundle.pipe.vae, drawn(drawings.WORLD_SETS, 100))
    found["decoder_held_out_db"] = _psnr(bundle.pipe.vae, drawn(drawings.HELD_OUT_SETS, 140))
    found |= {f"reader_{k}": share for k, share in accuracy.items()}
    return found | samples_read(bundle, readers, count)


def met(name: str, value: float) -> bool:
    """Whether a number meets its bar: seconds and megabytes from above, all others from below."""
    return value <= BARS[name] if name.endswith(("_s", "_mb")) else value >= BARS[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--count", type=int, default=300, help="samples of seen, and of unseen combinations")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(options.weights, options.count)
    for name, bar in BARS.items():
        verdict = "met" if met(name, found[name]) else "missed"
        print(f"{name:20} {found[name]:8.3f}   bar {bar:6.2f}   {verdict}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
