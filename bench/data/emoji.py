"""Datasets of one artist's drawings: pair, references, auxiliary drawings, prompts, reference set and ground truth.

The same things serve the same role for every artist: `Split` deals the things that `mini` knows and every artist drew.
A drawing of the evaluation's things stands in no other role, so the ground truth of a prompt was never seen.
Shapes: P pixels a side; pictures uint8 (3, P, P).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

EVALUATION, TUNING, REFERENCES = 24, 12, 20  # numbers of things
PAIRED = ("penguin", "sunflower", "octopus", "fire-engine")  # things of the training pairs: legible in every style
SIZES, SHIFTS = (52, 56, 60), (-2, 0, 2)  # placements of the ground truth, in 64ths of the side


@dataclass(frozen=True)
class Split:
    """Which things serve for what, the same for every artist; Unicode names."""

    evaluation: tuple[str, ...]
    tuning: tuple[str, ...]  # for choosing a strength, apart from the evaluation
    references: tuple[str, ...]
    pairs: tuple[str, ...]


@cache
def split() -> Split:
    """Things that the base knows and every artist drew, dealt by a hash of their names."""
    from bench.mini import drawings

    artists = [drawings.sheet(name) for name in (*drawings.WORLD_SETS, *drawings.HELD_OUT_SETS)]
    common = [name for name in drawings.known_things() if all(name in sheet for sheet in artists)]
    dealt = sorted((name for name in common if name not in PAIRED), key=lambda name: drawings.share("deal", name))
    a, b, c = EVALUATION, EVALUATION + TUNING, EVALUATION + TUNING + REFERENCES
    return Split(tuple(dealt[:a]), tuple(dealt[a:b]), tuple(dealt[b:c]), PAIRED)


def background(thing: str, role: str) -> Any:
    """The background of a thing in a role: any of them, by a hash."""
    from bench.mini import drawings, pictures

    names = pictures.BACKGROUNDS
    kind, colour = (names[int(drawings.share(role, thing) * len(names))].split() + [None])[:2]
    return pictures.Background(str(kind), colour, int(drawings.share("seed", role, thing) * 2**31))


def picture(thing: str, artist: str, role: str) -> Any:
    """A thing by an artist at the middle of its background; a training pair stands on white."""
    from bench.mini import pictures

    behind = pictures.Background("plain", "white") if role == "pairs" else background(thing, role)
    return pictures.Picture((pictures.centred(thing),), artist, behind)


def image(drawn: Any, resolution: int, packages: str | None = None) -> np.ndarray:
    """uint8 (3, P, P); from the sheets or, with a folder of npm packages, from the artists' SVG files."""
    import numpy as np

    from bench.mini import pictures

    return np.ascontiguousarray(pictures.render(drawn, resolution, packages).transpose(2, 0, 1))


def prompts(role: str = "evaluation") -> tuple[str, ...]:
    """`a dog on a blue background`, one for each thing of `evaluation` or `tuning`."""
    from bench.mini import pictures

    return tuple(pictures.plain_caption(picture(thing, "", role)) for thing in getattr(split(), role))


def placements(thing: str) -> list[Any]:
    """Where the ground truth may stand: three sizes, nine shifts each, all inside the picture."""
    from bench.mini import pictures

    found = []
    for size in SIZES:
        free = pictures.SIDE - size
        steps = sorted({min(max(free // 2 + shift, 0), free) for shift in SHIFTS})
        found += [pictures.Placed(thing, size, left, top) for left in steps for top in steps]
    return found


def truth(artist: str, k: int, resolution: int, role: str = "evaluation", packages: str | None = None) -> np.ndarray:
    """The artist's own drawing for prompt k at every placement, uint8 (27, 3, P, P), the centred one first."""
    import numpy as np

    from bench.mini import pictures

    thing = getattr(split(), role)[k]
    behind = background(thing, role)
    places = sorted(placements(thing), key=lambda place: place != pictures.centred(thing))
    placed = (pictures.Picture((place,), artist, behind) for place in places)
    return np.stack([image(drawn, resolution, packages) for drawn in placed])


def auxiliary_things(near: str) -> tuple[str, ...]:
    """Things of the auxiliary drawings by a near artist: known to the base, in no other role."""
    from bench.mini import drawings

    dealt, sheet = split(), drawings.sheet(near)
    used = {*dealt.evaluation, *dealt.tuning, *dealt.references, *dealt.pairs}
    free = [name for name in drawings.known_things() if name in sheet and name not in used]
    return tuple(sorted(free, key=lambda name: drawings.share("auxiliary", name)))


def reference_things(artist: str, most: int) -> tuple[str, ...]:
    """Things of the reference set: up to `most` drawings by the artist, none of them in another role or a prompt."""
    from bench.mini import drawings

    dealt = split()
    used = {*dealt.evaluation, *dealt.tuning, *dealt.references, *dealt.pairs}
    free = [name for name in drawings.sheet(artist).index if name not in used]
    return tuple(sorted(free, key=lambda name: drawings.share("reference set", name)))[:most]


def reference_set(artist: str, most: int, resolution: int, packages: str | None = None) -> np.ndarray:
    """uint8 (M, 3, P, P)."""
    import numpy as np

    return np.stack(
        [image(picture(thing, artist, "set"), resolution, packages) for thing in reference_things(artist, most)]
    )


def examples(
    things: Sequence[str], artist: str, role: str, resolution: int, packages: str | None = None
) -> list[tuple[np.ndarray, str, str]]:
    """(image, caption without style words, noun) of each thing."""
    from bench.mini import drawings, pictures

    drawn = [picture(thing, artist, role) for thing in things]
    words = [drawings.things()[thing].words for thing in things]
    return [
        (image(each, resolution, packages), pictures.plain_caption(each), noun)
        for each, noun in zip(drawn, words, strict=True)
    ]
