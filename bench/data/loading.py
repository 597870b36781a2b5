"""A described dataset loaded into `contracts.Dataset`.

Shapes: M images, P pixels per side; images leave as uint8 (3, P, P).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.contracts import BenchError, Dataset, Example, Pair
from bench.data.artists import artist_roles, compared_things, control_drawings
from bench.data.decoding import decode, fit, read
from bench.data.evaluation import evaluation_prompts, repeated_prompts
from bench.data.identity import identity
from bench.data.images import StoredImages
from bench.data.rendering import control_scenes, rendered_roles, style_function
from bench.data.schema import SCENES, completed
from bench.data.sources import (
    control_datasets,
    first_files,
    image_place,
    images_of,
    missing,
    own_captions,
    pairs_of,
    passed_over,
    training_images,
    verified,
)
from bench.data.templates import filled
from bench.paths import cache_folder


def load(spec: Mapping[str, Any], resolution: int) -> Dataset:
    """The dataset with its images at `resolution` pixels per side. Raises BenchError with the file and the remedy."""
    spec = completed(spec)
    lacking = missing(spec)
    if lacking:
        raise BenchError(lacking)
    roles = _roles(spec, resolution)
    prompts, own_seeds = evaluation_prompts(spec)
    controls = _controls(spec, resolution)
    return Dataset(
        name=spec["name"],
        version=spec["version"],
        licence=spec["licence"],
        source=spec["source"],
        style_words=spec["style_words"],
        noun=spec["noun"],
        prompts=prompts,
        own_seeds=own_seeds,
        seeds=tuple(spec["seeds"]),
        controls=tuple(example.image for example in controls),
        control_captions=tuple(example.caption for example in controls),
        oracle=style_function(spec),
        content_hash=identity(spec),
        counts=_counts(spec, roles),
        notes=tuple(_notes(spec)),
        **roles,
    )


def _roles(spec: Mapping[str, Any], resolution: int) -> dict[str, Any]:
    """Images of every role: an artist's drawings, scenes that the project renders, or files."""
    if spec["drawings"]:
        return artist_roles(spec, resolution)
    return rendered_roles(spec, resolution) if spec["rendered"] else _read(spec, resolution)


def _counts(spec: Mapping[str, Any], roles: Mapping[str, Any]) -> dict[str, int]:
    """Images used, by role; a pair counts once."""
    plan = spec["rendered"]
    compared = plan["reference_set"] if plan else len(images_of(spec, "reference_set"))
    if spec["drawings"]:
        compared = len(compared_things(spec))
    counts = {role: len(roles[role]) for role in ("pairs", "references", "auxiliary")} | {"reference_set": compared}
    return {role: count for role, count in counts.items() if count}


def _notes(spec: Mapping[str, Any]) -> Iterator[str]:
    """What was passed over, and which captions are used."""
    if not (spec["rendered"] or spec["drawings"]):
        yield from passed_over(spec)
        captions, images = own_captions(spec), training_images(spec)
        others = "" if len(captions) == len(images) else f"; the others have {spec['caption']!r}"
        if captions:
            yield f"{len(captions)} of {len(images)} training images have a caption of their own{others}"
    repeated = repeated_prompts(spec)
    if repeated:
        yield repeated


def _read(spec: Mapping[str, Any], resolution: int) -> dict[str, Any]:
    """Roles from image files."""
    caption, captions = filled(spec["caption"], noun=spec["noun"]), own_captions(spec)

    def examples(role: str, person: bool = spec["noun"] in spec["person_nouns"]) -> tuple[Example, ...]:
        places = [image_place(spec, name) for name in images_of(spec, role)]
        return tuple(
            Example(read(place, resolution), captions.get(place, caption), spec["noun"], person) for place in places
        )

    compared = reference_images([image_place(spec, name) for name in images_of(spec, "reference_set")], resolution)
    return {
        "pairs": tuple(_pair(spec, pair, caption, captions, resolution) for pair in pairs_of(spec)),
        "references": examples("references") + examples("person", True) + examples("background", False),
        "auxiliary": examples("auxiliary"),
        "reference_set": (lambda: compared) if len(compared) else None,
    }


def reference_images(places: Sequence[Path], resolution: int) -> StoredImages:
    """Image files as uint8 (M, 3, P, P), read when they are needed; what they hash to is kept in the cache."""
    key = [importlib.metadata.version("pillow"), resolution, *map(str, places)]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    known = cache_folder() / "reference_sets" / f"{name}.json"
    return StoredImages(places, functools.partial(read, resolution=resolution), known)


def _pair(
    spec: Mapping[str, Any], pair: Sequence[str], caption: str, captions: Mapping[Path, str], resolution: int
) -> Pair:
    """Both halves show the same, so a caption of one of them serves the other, too."""
    places = [image_place(spec, name) for name in pair]
    pictures = [decode(place) for place in places]
    if len({picture.size for picture in pictures}) > 1:
        (w, h), (v, g) = (picture.size for picture in pictures)
        raise BenchError(
            f"pair of different sizes: {places[0]} has {w} x {h} pixels and {places[1]} has {v} x {g}; "
            "the two must be the same picture, aligned pixel by pixel, so export them at one size."
        )
    images = [fit(picture, resolution) for picture in pictures]
    oracle = style_function(spec)
    if len(images) == 1 and oracle:
        images.append(oracle(images[0]))
    own = [captions[place] for place in places if place in captions] or [caption]
    content, style = (Example(image, text, spec["noun"]) for image, text in zip(images, (own[0], own[-1]), strict=True))
    return Pair(content, style)


def _controls(spec: Mapping[str, Any], resolution: int) -> list[Example]:
    """Content images that have nothing to do with the training images: photographs of other datasets, or scenes."""
    examples = [
        Example(read(verified(other, file), resolution), filled(other["caption"], noun=other["noun"]), other["noun"])
        for other, count in control_datasets(spec)
        for file in first_files(other, count)
    ]
    if SCENES in (spec["controls"] or ()):
        drawn = control_drawings(spec, resolution) if spec["drawings"] else control_scenes(spec["noun"], resolution)
        examples += drawn
    return examples
