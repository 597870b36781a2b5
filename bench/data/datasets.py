"""Datasets: `datasets/<name>/dataset.yaml` described, identified, checked and loaded into `contracts.Dataset`.

Shapes: P pixels per side; images leave as uint8 (3, P, P); style functions and PIL work on uint8 (P, P, 3).
The keys of a dataset.yaml are explained in datasets/README.md. Nothing here imports torch.
"""

from __future__ import annotations

import csv
import difflib
import functools
import hashlib
import importlib.metadata
import io
import json
import struct
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.contracts import BenchError, Dataset, Example, Pair
from bench.data.fetch import File, cache_folder, checksums, human, sha256, verify
from bench.data.images import StoredImages
from bench.data.prompt_lists import left_out
from bench.data.style_folder import laid_out, seen_in_both
from bench.files import atomic_write
from bench.paths import ROOT

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

FOLDER = ROOT / "datasets"
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
CONTROLS = 8
KEYS: dict[str, Any] = {  # every key of a dataset.yaml with its default
    "name": None,
    "version": 1,
    "licence": None,
    "source": None,
    "style_words": None,
    "noun": None,
    "caption": "a photo of a {noun}",
    "prompts": (),
    "seeds": (0, 1),
    "root": None,
    "pair": None,
    "references": None,
    "person": None,
    "background": None,
    "person_nouns": (),
    "auxiliary": None,
    "reference_set": None,
    "controls": ("scenes",),
    "oracle": None,
    "files": None,
    "rendered": None,
}
FOLDERS = ("references", "person", "background", "auxiliary", "reference_set")  # roles of images, by folder or list
NOT_IDENTITY = ("licence", "source", "root", "files", "pair", *FOLDERS)  # of the last ones, contents count
SCENES, ALL = "scenes", "all"  # words in `controls` and in a role
QUIET = threading.Lock()  # filters of warnings belong to the process, not to a thread


# --- describe ----------------------------------------------------------------------------------------------------


@functools.cache
def names() -> list[str]:
    """Names of all datasets, sorted; a nested folder gives `dreambooth/duck_toy`."""
    return sorted(path.parent.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("dataset.yaml"))


def describe(name: str) -> dict[str, Any]:
    """The dataset.yaml with its bases merged in, and every known key present. Raises BenchError."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), 3) or names()
        raise BenchError(f"no dataset is called {name!r}; did you mean {', '.join(near)}? (folders of datasets/)")
    spec = {**json.loads(json.dumps(KEYS)), **_merged(FOLDER / name / "dataset.yaml")}
    spec["name"] = name
    return _known(spec)


@functools.cache
def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        return yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    except (OSError, yaml.YAMLError) as error:
        raise BenchError(f"{path} cannot be read as YAML ({error}); correct it.") from error


def _merged(path: Path) -> dict[str, Any]:
    """One yaml over those that its `base` names (paths relative to it; the later wins)."""
    own = dict(_yaml(path))
    bases = own.pop("base", [])
    spec: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        spec = _over(spec, _merged((path.parent / base).resolve()))
    return _over(spec, own)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`; mappings are merged, everything else is replaced."""
    both = dict(below)
    for key, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = _over(both[key], value) if nested else value
    return both


def _known(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with defaults and the folders of `root` filled in. Raises BenchError for unknown keys, wrong kinds."""
    spec = {**KEYS, **spec}
    for key in spec:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(KEYS)}."
            raise BenchError(f"dataset {spec['name']} has the unknown key {key!r}; {hint}")
    if not spec["noun"] or not isinstance(spec["noun"], str):
        raise BenchError(f"dataset {spec['name']} has no class word; type dataset.noun=dog.")
    if _table(spec):
        _a_table(spec)
    else:
        _a_list(spec, "prompts", str, "dataset.prompts=['a photo of a cat','a photo of a car']")
    _a_list(spec, "seeds", int, "dataset.seeds=[0,1]")
    return laid_out(spec)


def _a_list(spec: Mapping[str, Any], key: str, kind: type, example: str) -> None:
    value = spec[key]
    if not isinstance(value, (list, tuple)) or not value or not all(type(item) is kind for item in value):
        raise BenchError(f"dataset {spec['name']} has {key}: {value!r}; a list is needed, type {example}.")


def _table(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """`prompts` where it names a table {file, column, seeds, left_out}; empty where it is a list."""
    return spec["prompts"] if isinstance(spec["prompts"], Mapping) else {}


def _a_table(spec: Mapping[str, Any]) -> None:
    table = _table(spec)
    named = [isinstance(table.get(key), str) for key in ("file", "column")]
    if set(table) - {"file", "column", "seeds", "left_out"} or not all(named):
        raise BenchError(
            f"dataset {spec['name']} has prompts: {dict(table)!r}; a list is needed, or a table as in "
            "prompts: {file: prompts.csv, column: prompt, seeds: seed} (seeds may be left out; datasets/README.md)."
        )


# --- files -------------------------------------------------------------------------------------------------------


def files(spec: Mapping[str, Any]) -> list[File]:
    """Every file that the dataset stages, its controls' files included."""
    controls = [file for other, count in _control_datasets(spec) for file in _first(other, count)]
    return [*_own_files(spec).values(), *controls]


def _own_files(spec: Mapping[str, Any]) -> dict[str, File]:
    """Staged files by their name in the yaml."""
    wanted = spec.get("files") or {"sha256": {}}
    sizes = wanted.get("size") or {}
    return {
        name: File(f"{wanted['folder']}/{name}", f"{wanted['url']}/{name}", digest, sizes.get(name))
        for name, digest in wanted["sha256"].items()
    }


def _control_datasets(spec: Mapping[str, Any]) -> list[tuple[dict[str, Any], int]]:
    """The datasets whose photographs serve as controls, and how many of each."""
    others = [name for name in spec.get("controls") or () if name != SCENES]
    return [(describe(name), -(-CONTROLS // len(others))) for name in others]


def _first(spec: Mapping[str, Any], count: int) -> list[File]:
    return list(_own_files(spec).values())[:count]


def _place(spec: Mapping[str, Any], name: str) -> Path:
    """Where an image named in the spec lies: a staged file by its name in the yaml, or the user's own path."""
    staged = _own_files(spec).get(name)
    return _verified(spec, staged) if staged else Path(name).expanduser()


def _verified(spec: Mapping[str, Any], file: File) -> Path:
    """Where a staged file lies, its checksum compared. Raises BenchError."""
    place = file.place()
    if place is None:
        raise BenchError(str(missing(spec)))
    remedy = f"delete it and type python -m bench.fetch {spec['name']} (or correct the mirror)."
    verify(place, file.sha256 or checksums().get(file.path), remedy)
    return place


def image_count(spec: Mapping[str, Any]) -> int:
    """Evaluation images at one strength. Raises BenchError when the table of prompts is not here."""
    prompts, own_seeds = _asked(_known(spec))
    return sum(map(len, own_seeds)) if own_seeds else len(prompts) * len(spec["seeds"])


def missing(spec: Mapping[str, Any]) -> str | None:
    """One sentence when images that the dataset needs are not on this machine, else None."""
    spec = _known(spec)
    absent = [file for file in files(spec) if file.place() is None]
    if absent:
        first = absent[0]
        return (
            f"dataset {spec['name']} needs {len(absent)} files that are not on this machine, first {first.path} "
            f"({human(first.size)}, from {first.url}; licence: {spec['licence']}); type python -m bench.fetch "
            f"{spec['name']} where there is network, or set BENCH_MIRROR to a folder that holds {first.path}."
        )
    if not (_table(spec) or any(spec[key] for key in ("rendered", "pair", "references", "person", "background"))):
        return (
            f"dataset {spec['name']} names no images; type dataset.pair=[plain.png,stylised.png] or "
            "dataset.references=/path/to/a/folder or dataset.root=/path/to/a/style (bench/data/style_folder.py)."
        )
    try:
        gone = [path for path in _named(spec) if not path.is_file()]
    except BenchError as error:
        return str(error)
    if gone:
        return f"dataset {spec['name']} names {gone[0]}, which is no file here; correct the path."
    both = _trained_and_compared(spec)
    return f"{both} of the reference set is trained on, too; take it out of one of them." if both else None


def _trained_and_compared(spec: Mapping[str, Any]) -> Path | None:
    """An image that is trained on and compared with."""
    if not spec["reference_set"]:
        return None
    training = [
        _place(spec, name) for role in ("references", "person", "background") for name in _images_of(spec, role)
    ]
    return seen_in_both(training, [_place(spec, name) for name in _images_of(spec, "reference_set")])


def _named(spec: Mapping[str, Any]) -> list[Path]:
    """The user's own files, folders opened."""
    named = [name for names in _roles(spec).values() for name in names]
    staged = _own_files(spec)
    return [Path(name).expanduser() for name in named if name not in staged]


def _roles(spec: Mapping[str, Any]) -> dict[str, list[str]]:
    """The images of each role by name, in order, and the table of prompts where there is one."""
    pairs = [name for pair in _pairs_of(spec) for name in pair]
    tables = {"prompts": [_table(spec)["file"]]} if _table(spec) else {}
    return {"pair": pairs, **{role: _images_of(spec, role) for role in FOLDERS}, **tables}


def _pairs_of(spec: Mapping[str, Any]) -> list[list[str]]:
    """`pair` as a list of pairs: [plain, stylised], or [plain] where the oracle makes the other half."""
    pair = spec["pair"] or []
    one = not isinstance(pair, str) and pair and all(isinstance(name, str) for name in pair)
    pairs = [pair] if one else pair
    lengths = (1, 2) if spec["oracle"] else (2,)
    if isinstance(pairs, str) or any(isinstance(p, str) or len(p) not in lengths for p in pairs):
        raise BenchError(
            f"dataset {spec['name']} has pair: {spec['pair']!r}; two images are needed, "
            "type dataset.pair=[plain.png,stylised.png]."
        )
    return [list(p) for p in pairs]


def _images_of(spec: Mapping[str, Any], role: str) -> list[str]:
    """Names of the images of a role: `all` staged ones, those in a folder, or a list."""
    value = spec[role]
    if value == ALL:
        return [name for name in _own_files(spec) if Path(name).suffix.lower() in IMAGE_ENDINGS]
    return _images_in(value, role) if isinstance(value, str) else list(value or ())


def _images_in(folder: str, role: str) -> list[str]:
    here = Path(folder).expanduser()
    if not here.is_dir():
        raise BenchError(f"dataset.{role} names {here}, which is not a folder; type dataset.{role}=/path/to/a/folder.")
    found = sorted(path for path in here.iterdir() if path.suffix.lower() in IMAGE_ENDINGS and path.is_file())
    if not found:
        raise BenchError(
            f"the folder {here} of dataset.{role} is empty: it holds no images ({' '.join(IMAGE_ENDINGS)}); "
            "put some there or name another folder."
        )
    return [str(path) for path in found]


# --- evaluation prompts ------------------------------------------------------------------------------------------


def _asked(spec: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Evaluation prompts, and the seeds of each where a table gives each prompt its own."""
    table = _table(spec)
    if not table:
        return tuple(prompt.format(noun=spec["noun"]) for prompt in spec["prompts"]), ()
    rows = _tabled(_place(spec, table["file"]), table)
    return tuple(rows), tuple(map(tuple, rows.values())) if table.get("seeds") else ()


def prompts(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The evaluation prompts in their order. Raises BenchError where a table of them is not on this machine."""
    return _asked(_known(spec))[0]


def _tabled(path: Path, table: Mapping[str, Any]) -> dict[str, dict[int, None]]:
    """Prompts of a CSV or TSV file in their order, each with its seeds; a repeated row is the same image, once."""
    column, seeds = table["column"], table.get("seeds")
    lines = _lines(path, [key for key in (column, seeds) if key])
    out = left_out([line for _, line in lines], column, table.get("left_out"), path)
    rows: dict[str, dict[int, None]] = {}
    for number, line in [numbered for i, numbered in enumerate(lines) if i not in out]:
        own = rows.setdefault(line[column], {})
        if seeds:
            own[_seed(line[seeds], path, number)] = None
    if not rows:
        raise BenchError(f"{path} holds no prompts; name a table with at least one.")
    return rows


def _lines(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Rows of a CSV or TSV file, each with the number of its line. Raises BenchError when a column is absent."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        absent = [key for key in columns if key not in (lines.fieldnames or ())]
        if absent:
            raise BenchError(f"{path} has no column {absent[0]!r}, only {', '.join(lines.fieldnames or ())}.")
        return [(lines.line_num, line) for line in lines]


def _seed(text: str | None, path: Path, line: int) -> int:
    try:
        return int(text or "")
    except ValueError:
        raise BenchError(f"line {line} of {path} has the seed {text!r}; a whole number is needed.") from None


# --- identity ----------------------------------------------------------------------------------------------------


def identity(spec: Mapping[str, Any]) -> str:
    """Hash of 12 hex digits over settings, image contents and, where something is drawn, the source that draws it.

    Paths do not count, contents do. A staged file that is not here counts with its published sha256, so a run has its
    name before its data are staged.
    """
    spec = _known(spec)
    settings = {key: value for key, value in spec.items() if key not in NOT_IDENTITY}
    if _table(spec):
        settings["prompts"] = {key: value for key, value in _table(spec).items() if key != "file"}
    staged = _own_files(spec)
    content = {
        role: [
            _digest(staged[name].place() if name in staged else Path(name).expanduser(), staged.get(name))
            for name in names
        ]
        for role, names in _roles(spec).items()
    }
    controls = [
        _digest(file.place(), file) for other, count in _control_datasets(spec) for file in _first(other, count)
    ]
    drawn = spec["rendered"] or spec["oracle"] or SCENES in (spec["controls"] or ())
    text = json.dumps([settings, content, controls, _source() if drawn else None], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _digest(place: Path | None, staged: File | None) -> str:
    if place and place.is_file():
        return sha256(place)
    return (staged and staged.sha256) or "absent"


@functools.cache
def _source() -> str:
    """Hash of the source that draws scenes and styles."""
    folder = ROOT / "bench" / "mini"
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in ("scenes.py", "styles.py"))).hexdigest()


# --- decode ------------------------------------------------------------------------------------------------------


def decode(path: Path) -> Image:
    """An image file as RGB: EXIF orientation applied, transparency on white. Raises BenchError."""
    from PIL import Image, ImageOps

    try:
        # Damaged EXIF blocks only warn, damaged pixels raise.
        with QUIET, warnings.catch_warnings(action="ignore"), Image.open(path) as file:
            picture = _rgb(ImageOps.exif_transpose(file))
    except FileNotFoundError as error:
        raise BenchError(f"the image {path} does not exist; correct the path.") from error
    except IsADirectoryError as error:
        raise BenchError(f"{path} is a folder where an image is needed; name one file.") from error
    except (OSError, EOFError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise BenchError(
            f"{path} cannot be read as an image, it is truncated, damaged or of another kind ({error}); "
            "replace it or take it out."
        ) from error
    return picture


def _rgb(picture: Image) -> Image:
    from PIL import Image

    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):  # 16 bits of grey: PIL's convert would clip
        import numpy as np

        grey = np.asarray(picture, np.float64)
        return Image.fromarray((grey / (257 if grey.max() > 255 else 1)).astype("uint8")).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        paper = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(paper, picture).convert("RGB")
    return picture.convert("RGB")


def fit(picture: Image, resolution: int) -> np.ndarray:
    """Short side to P with antialiasing, then the centre: uint8 (3, P, P)."""
    import numpy as np
    from PIL import Image, ImageOps

    square = ImageOps.fit(picture, (resolution, resolution), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def read(path: Path, resolution: int) -> np.ndarray:
    """An image file as uint8 (3, P, P)."""
    return fit(decode(path), resolution)


# --- load --------------------------------------------------------------------------------------------------------


def load(spec: Mapping[str, Any], resolution: int) -> Dataset:
    """The dataset with its images at `resolution` pixels per side. Raises BenchError with the file and the remedy."""
    spec = _known(spec)
    lacking = missing(spec)
    if lacking:
        raise BenchError(lacking)
    roles = _rendered(spec, resolution) if spec["rendered"] else _read(spec, resolution)
    prompts, own_seeds = _asked(spec)
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
        oracle=_oracle(spec),
        content_hash=identity(spec),
        **roles,
    )


def _oracle(spec: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray] | None:
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


def _read(spec: Mapping[str, Any], resolution: int) -> dict[str, Any]:
    """Roles from image files."""
    caption = spec["caption"].format(noun=spec["noun"])

    def examples(role: str, person: bool = spec["noun"] in spec["person_nouns"]) -> tuple[Example, ...]:
        places = [_place(spec, name) for name in _images_of(spec, role)]
        return tuple(Example(read(place, resolution), caption, spec["noun"], person) for place in places)

    compared = reference_images([_place(spec, name) for name in _images_of(spec, "reference_set")], resolution)
    return {
        "pairs": tuple(_pair(spec, pair, caption, resolution) for pair in _pairs_of(spec)),
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


def _pair(spec: Mapping[str, Any], pair: Sequence[str], caption: str, resolution: int) -> Pair:
    places = [_place(spec, name) for name in pair]
    pictures = [decode(place) for place in places]
    if len({picture.size for picture in pictures}) > 1:
        (w, h), (v, g) = (picture.size for picture in pictures)
        raise BenchError(
            f"pair of different sizes: {places[0]} has {w} x {h} pixels and {places[1]} has {v} x {g}; "
            "the two must be the same picture, aligned pixel by pixel, so export them at one size."
        )
    images = [fit(picture, resolution) for picture in pictures]
    oracle = _oracle(spec)
    if len(images) == 1 and oracle:
        images.append(oracle(images[0]))
    content, style = (Example(image, caption, spec["noun"]) for image in images)
    return Pair(content, style)


def _controls(spec: Mapping[str, Any], resolution: int) -> list[Example]:
    """Content images that have nothing to do with the training images: photographs of other datasets, or scenes."""
    examples = [
        Example(read(_verified(other, file), resolution), other["caption"].format(noun=other["noun"]), other["noun"])
        for other, count in _control_datasets(spec)
        for file in _first(other, count)
    ]
    if SCENES in (spec["controls"] or ()):
        examples += _control_scenes(spec["noun"], resolution)
    return examples


# --- rendered scenes ---------------------------------------------------------------------------------------------

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


def _rendered(spec: Mapping[str, Any], resolution: int) -> dict[str, Any]:
    """Roles drawn by the project: pairs, references, auxiliary pictures and the reference set."""
    plan, seed, oracle = spec["rendered"], spec["rendered"]["seed"], _oracle(spec)
    if oracle is None:
        raise BenchError(f"dataset {spec['name']} is rendered but names no style; set oracle in its dataset.yaml.")
    from bench.mini.styles import KNOWN

    manners, asked = sorted(KNOWN), _asked(spec)[0]
    scenes = [_scene(seed, PAIRS, k, only=[spec["noun"]]) for k in range(plan["pairs"])]
    references = [_scene(seed, REFERENCES, k, unlike=asked) for k in range(plan["references"])]
    auxiliary = [_scene(seed, AUXILIARY, k, unlike=asked) for k in range(plan["auxiliary"])]
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


def _control_scenes(noun: str, resolution: int) -> list[Example]:
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
    scenes = functools.partial(_kept, ["scenes", *key], plain)
    return _kept([style, *key], lambda: np.stack([stylise(style, image) for image in scenes()]))


def _kept(key: list[Any], make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array from the cache folder, made and written (atomically) when it is not there or damaged."""
    import numpy as np

    name = hashlib.sha256(json.dumps([_source(), *key]).encode()).hexdigest()[:16]
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
