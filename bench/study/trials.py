"""What is compared with what: seed-matched pairs of images, balanced over methods, datasets and sides by one seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from bench.contracts import BenchError
from bench.report.gallery import Gallery, Row

KINDS = ("compare", "repeat", "check")


@dataclass(frozen=True)
class Side:
    """One image of a trial, and whose it is."""

    item: str  # method, and its settings where it has several
    run_id: str
    strength: float
    path: Path


@dataclass(frozen=True)
class Trial:
    """Two images of one prompt and one noise; `left` is shown on the left."""

    id: str  # random, says nothing
    kind: str  # of KINDS
    gallery: int
    prompt: int  # its place
    seed: int
    left: Side | None  # None in a check, whose pictures are drawn
    right: Side | None
    answer: str | None = None  # the right answer of a check: left | right
    of: str | None = None  # the trial that a repeat repeats, sides exchanged


def trials(galleries: Sequence[Gallery], count: int, checks: int, repeats: int, seed: int) -> list[Trial]:
    """`count` comparisons, `repeats` of them again with sides exchanged, `checks` attention checks, in a mixed order.

    Pairs of methods take turns, and so do the datasets of a pair; each pair has each side equally often, but for one.
    Raises BenchError when no two methods have images of the same prompt and noise.
    """
    rng = random.Random(f"study {seed}")
    compared = _compared(_offers(galleries, rng), count, rng)
    again = [
        Trial(_id(rng), "repeat", t.gallery, t.prompt, t.seed, t.right, t.left, of=t.id)
        for t in rng.sample(compared, min(repeats, len(compared)))
    ]
    requested = [
        Trial(_id(rng), "check", -1, 0, 0, None, None, answer=("left", "right")[(k + seed) % 2]) for k in range(checks)
    ]
    made = compared + again + requested
    rng.shuffle(made)
    return made


Offer = tuple[int, tuple[int, int], Row, Row]  # gallery, (prompt index, seed), two rows


def _offers(galleries: Sequence[Gallery], rng: random.Random) -> dict[tuple[str, str], list[Offer]]:
    """Pair of items -> everything that could be requested of it; datasets take turns."""
    offers: dict[tuple[str, str], list[list[Offer]]] = {}
    for g, gallery in enumerate(galleries):
        rows = sorted((row for row in gallery.rows if row.main), key=lambda row: item(gallery, row))
        for a, b in combinations(rows, 2):
            shots = [shot for shot in a.files if shot in b.files]
            rng.shuffle(shots)
            offers.setdefault((item(gallery, a), item(gallery, b)), []).append([(g, shot, a, b) for shot in shots])
    if not any(part for parts in offers.values() for part in parts):
        raise BenchError("No two methods have images of the same prompt and noise; run another method, or see --where.")
    return {pair: _turns(parts) for pair, parts in sorted(offers.items())}


def item(gallery: Gallery, row: Row) -> str:
    """What is compared: the method, with its settings where one dataset has several of it."""
    method, settings = row.key
    several = len({other.key for other in gallery.rows if other.key[0] == method}) > 1
    return f"{method} {settings}" if several else method


def _turns(parts: Sequence[Sequence[Any]]) -> list[Any]:
    longest = max(map(len, parts), default=0)
    return [part[k] for k in range(longest) for part in parts if k < len(part)]


def _compared(offers: dict[tuple[str, str], list[Offer]], count: int, rng: random.Random) -> list[Trial]:
    order = _turns([[(pair, offer) for offer in some] for pair, some in offers.items()])
    if len(order) < count:
        raise BenchError(
            f"{count} comparisons were requested, the records give {len(order)}; type --trials {len(order)}."
        )
    requested = order[:count]
    exchanged = {pair: _halves(sum(pair == other for other, _ in requested), rng) for pair in offers}
    return [_trial(pair, offer, exchanged[pair].pop(), rng) for pair, offer in requested]


def _halves(count: int, rng: random.Random) -> list[bool]:
    """As many True as False, but for one, in a random order."""
    made = [k % 2 == 0 for k in range(count)]
    made = made if rng.random() < 0.5 else [not exchanged for exchanged in made]
    rng.shuffle(made)
    return made


def _trial(pair: tuple[str, str], offer: Offer, exchanged: bool, rng: random.Random) -> Trial:
    g, shot, *rows = offer
    sides = [Side(name, row.record.run_id, row.strength, row.files[shot]) for name, row in zip(pair, rows, strict=True)]
    left, right = reversed(sides) if exchanged else sides
    return Trial(_id(rng), "compare", g, shot[0], shot[1], left, right)


def _id(rng: random.Random) -> str:
    return f"{rng.getrandbits(64):016x}"
