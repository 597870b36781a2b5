"""Roles of a dataset of one artist's drawings, from `drawings` of its dataset.yaml.

The things of each role are dealt by `bench.data.emoji`. Shapes: P pixels per side; images uint8 (3, P, P).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.contracts import BenchError, Example, Pair, Truth
from bench.data import emoji
from bench.data.evaluation import evaluation_prompts
from bench.data.identity import artists_source
from bench.data.rendering import kept
from bench.data.schema import CONTROLS

if TYPE_CHECKING:
    import numpy as np

KEYS = ("artist", "near", "pairs", "references", "auxiliary", "reference_set", "packages")
LARGEST = 128  # pixels per side up to which the sheets serve


def artist_roles(spec: Mapping[str, Any], resolution: int) -> dict[str, Any]:
    """Roles, truth and whether it is aligned. Raises BenchError for unknown artists and for pictures over the sheets'
    size without the SVG files."""
    from bench.mini import drawings

    plan = _checked(spec)
    packages, dealt = _packages(spec, resolution), emoji.split()
    artist, near = plan["artist"], plan["near"]

    def examples(things: Sequence[str], by: str, role: str) -> tuple[Example, ...]:
        drawn = emoji.examples(things, by, role, resolution, packages)
        return tuple(Example(image, caption, noun, noun in spec["person_nouns"]) for image, caption, noun in drawn)

    shown = dealt.pairs[: plan["pairs"]]
    plain, styled = (examples(shown, by, "pairs") for by in (drawings.PLAIN_SET, artist))
    return {
        "pairs": tuple(Pair(*halves) for halves in zip(plain, styled, strict=True)),
        "references": examples(dealt.references[: plan["references"]], artist, "references"),
        "auxiliary": examples(emoji.auxiliary_things(near)[: plan["auxiliary"]], near, "auxiliary"),
        "reference_set": functools.partial(_reference_set, plan, resolution, packages),
        "truth": functools.partial(_truth, artist, resolution, packages) if _known_prompts(spec) else None,
        "aligned": artist in drawings.ALIGNED,
    }


def _checked(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """`drawings` of a spec. Raises BenchError unless its keys and artists are known and its numbers can be served."""
    from bench.mini import drawings

    plan, known = spec["drawings"], (*drawings.WORLD_SETS, *drawings.HELD_OUT_SETS)
    if set(plan) != set(KEYS):
        raise BenchError(f"dataset {spec['name']} has drawings: {dict(plan)!r}; the keys are {', '.join(KEYS)}.")
    for key in ("artist", "near"):
        if plan[key] not in known:
            raise BenchError(f"dataset {spec['name']} has {key}: {plan[key]!r}; known are {', '.join(known)}.")
    most = {
        "pairs": len(emoji.PAIRED),
        "references": emoji.REFERENCES,
        "auxiliary": len(emoji.auxiliary_things(plan["near"])),
    }
    for key, limit in most.items():
        if type(plan[key]) is not int or not 0 <= plan[key] <= limit:
            raise BenchError(f"dataset {spec['name']} has {key}: {plan[key]!r}; type a number from 0 to {limit}.")
    return plan


def _packages(spec: Mapping[str, Any], resolution: int) -> str | None:
    """The folder of SVG files, where the sheets are too small."""
    packages = spec["drawings"]["packages"]
    if resolution > LARGEST and not packages:
        raise BenchError(
            f"dataset {spec['name']} was requested at {resolution} pixels, but its sheets serve up to {LARGEST}; "
            "install the npm packages @iconify-json/* of datasets/emoji/sheets and pip install resvg-py, and type "
            "dataset.drawings.packages=node_modules/@iconify-json."
        )
    return str(packages) if resolution > LARGEST else None


def compared_things(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Things of the reference set."""
    return emoji.reference_things(spec["drawings"]["artist"], spec["drawings"]["reference_set"])


def _reference_set(plan: Mapping[str, Any], resolution: int, packages: str | None) -> np.ndarray:
    """uint8 (M, 3, P, P), kept on disk."""
    draw = functools.partial(emoji.reference_set, plan["artist"], plan["reference_set"], resolution, packages)
    return kept(["drawings", artists_source(plan), resolution], draw)


def _known_prompts(spec: Mapping[str, Any]) -> bool:
    """Whether each evaluation prompt has a true picture: the user may ask for others."""
    return set(evaluation_prompts(spec)[0]) <= {*emoji.prompts(), *emoji.prompts("tuning")}


@functools.lru_cache(maxsize=64)
def _truth(artist: str, resolution: int, packages: str | None, prompt: str) -> Truth | None:
    """The artist's drawing for a prompt of the evaluation or the tuning, at its 27 placements."""
    for role in ("evaluation", "tuning"):
        if prompt in emoji.prompts(role):
            k = emoji.prompts(role).index(prompt)
            thing = getattr(emoji.split(), role)[k]
            classes = {"thing": thing, "artist": artist, "background": emoji.background(thing, role).label}
            return Truth(emoji.truth(artist, k, resolution, role, packages), classes)
    return None


def control_drawings(spec: Mapping[str, Any], resolution: int) -> list[Example]:
    """Eight drawings by the plain artist of things in no role."""
    from bench.mini import drawings

    plain, packages = drawings.PLAIN_SET, _packages(spec, resolution)
    things = emoji.auxiliary_things(plain)[-CONTROLS:]
    return [Example(*found) for found in emoji.examples(things, plain, "controls", resolution, packages)]
