"""Scenes and styles that the project draws itself.

Shapes: M images, P pixels per side; images leave as uint8 (3, P, P).
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.contracts import BenchError, Example, Pair
from bench.data.decoding import fit
from bench.data.evaluation import evaluation_prompts
from bench.data.identity import drawing_source
from bench.data.schema import CONTROLS
from bench.files import atomic_write
from bench.paths import cache_folder

if TYPE_CHECKING:
    import numpy as np


def style_function(spec: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray] | None:
    """The style function on (3, P, P), picklable. Raises BenchError for a style nobody wrote."""
    if not spec["oracle"]:
        return None
    from bench.mini.styles import HELD_OUT, KNOWN

    if spec["oracle"] not in {**HELD_OUT, **KNOWN}:
        raise BenchError(
            f"dataset {spec['name']} has oracle: {spec['oracle']!r}, no style of bench/mini/styles.py; "
            f"known are {', '.join({**HELD_OUT, **KNOWN})}."
        )
    return functools.partial(stylise, spec["oracle"])


def stylise(style: str, image: np.ndarray) -> np.ndarray:
    """A style of `bench.mini.styles` by name, uint8 (3, P, P) -> uint8 (3, P, P)."""
    import numpy as np

    from bench.mini.styles import HELD_OUT, KNOWN

    drawn = {**KNOWN, **HELD_OUT}[style](np.ascontiguousarray(image.transpose(1, 2, 0)))
    return np.ascontiguousarray(drawn.transpose(2, 0, 1))


# One generator per role and picture: asking for more pictures leaves the earlier ones as they are.
PAIRS, REFERENCES, AUXILIARY, REFERENCE_SET, CONTROL = range(5)


def _scene(seed: int, role: int, k: int, only: Sequence[str] = (), unlike: Sequence[str] = ()) -> Any:
    """Scene k of a role: about one of the objects `only`, and not captioned as any of `unlike`."""
    import numpy as np

    from bench.mini.scenes import plain_caption, sample_scene

    rng = np.random.default_rng([seed, role, k])
    while True:
        scene = sample_scene(rng, pairs=0.0)
        if only:
            scene = replace(scene, things=(replace(scene.things[0], object=only[k % len(only)]),))
        if plain_caption(scene) not in unlike:
            return scene


def _draw(scene: Any, resolution: int) -> np.ndarray:
    """A scene as uint8 (3, P, P)."""
    from PIL import Image

    from bench.mini.scenes import render

    return fit(Image.fromarray(render(scene)), resolution)


def rendered_roles(spec: Mapping[str, Any], resolution: int) -> dict[str, Any]:
    """Roles drawn by the project: pairs, references, auxiliary pictures and the reference set."""
    plan, seed, oracle = spec["rendered"], spec["rendered"]["seed"], style_function(spec)
    if oracle is None:
        raise BenchError(f"dataset {spec['name']} is rendered but names no style; set oracle in its dataset.yaml.")
    from bench.mini.styles import KNOWN

    manners, requested = sorted(KNOWN), evaluation_prompts(spec)[0]
    scenes = [_scene(seed, PAIRS, k, only=[spec["noun"]]) for k in range(plan["pairs"])]
    references = [_scene(seed, REFERENCES, k, unlike=requested) for k in range(plan["references"])]
    auxiliary = [_scene(seed, AUXILIARY, k, unlike=requested) for k in range(plan["auxiliary"])]
    persons = spec["person_nouns"]
    return {
        "pairs": tuple(
            Pair(_example(scene, resolution), _example(scene, resolution, spec["oracle"])) for scene in scenes
        ),
        "references": tuple(_example(scene, resolution, spec["oracle"], persons) for scene in references),
        "auxiliary": tuple(_example(scene, resolution, manners[k % len(manners)]) for k, scene in enumerate(auxiliary)),
        "reference_set": functools.partial(reference_set, spec["oracle"], plan, resolution),
    }


def _example(scene: Any, resolution: int, style: str | None = None, persons: Sequence[str] = ()) -> Example:
    from bench.mini.scenes import plain_caption

    image = _draw(scene, resolution)
    drawn = stylise(style, image) if style else image
    return Example(drawn, plain_caption(scene), scene.object, scene.object in persons)


def control_scenes(noun: str, resolution: int) -> list[Example]:
    """Eight plain scenes about eight objects, none of them `noun`."""
    from bench.mini.scenes import OBJECTS

    others = [name for name in OBJECTS if name != noun]
    return [_example(_scene(0, CONTROL, k, only=others), resolution) for k in range(CONTROLS)]


def reference_set(style: str, plan: Mapping[str, Any], resolution: int) -> np.ndarray:
    """`plan['reference_set']` scenes in a style, uint8 (M, 3, P, P), about objects that no pair shows; kept on disk."""
    import numpy as np

    def plain() -> np.ndarray:
        from tqdm import tqdm

        from bench.mini.scenes import OBJECTS

        others = [name for name in OBJECTS if name not in plan["kept_for_pairs"]]
        count = range(plan["reference_set"])
        return np.stack(
            [
                _draw(_scene(plan["reference_seed"], REFERENCE_SET, k, only=others), resolution)
                for k in tqdm(count, desc="reference set: scenes", mininterval=1)
            ]
        )

    key = [plan["reference_seed"], plan["reference_set"], plan["kept_for_pairs"], resolution]
    scenes = functools.partial(kept, ["scenes", *key], plain)
    return kept([style, *key], lambda: np.stack([stylise(style, image) for image in scenes()]))


def kept(key: list[Any], make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array from the cache folder, made and written (atomically) when it is not there or damaged."""
    import numpy as np

    name = hashlib.sha256(json.dumps([drawing_source(), *key]).encode()).hexdigest()[:16]
    path = cache_folder() / "reference_sets" / f"{name}.npy"
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        array = make()
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, buffer.getvalue())
    return array
