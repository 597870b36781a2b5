"""The image files of a dataset: which there are, where they lie, and which are missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench.contracts import BenchError
from bench.data.captions import captions_of
from bench.data.files import File, checksums, human, verify
from bench.data.image_folder import image_folder
from bench.data.schema import ALL, CONTROLS, FOLDERS, SCENES, completed, describe, prompt_table
from bench.data.style_folder import seen_in_both

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
IMAGES = ("rendered", "drawings", "pair", "references", "person", "background")  # keys, one of which must be there
NOT_TRAINED = ("reference_set", "prompts")  # keys of `image_roles` that name no training image


def files(spec: Mapping[str, Any]) -> list[File]:
    """Every file that the dataset stages, its controls' files included."""
    controls = [file for other, count in control_datasets(spec) for file in first_files(other, count)]
    return [*own_files(spec).values(), *controls]


def own_files(spec: Mapping[str, Any]) -> dict[str, File]:
    """Staged files by their name in the yaml."""
    wanted = spec.get("files") or {"sha256": {}}
    sizes = wanted.get("size") or {}
    return {
        name: File(f"{wanted['folder']}/{name}", f"{wanted['url']}/{quote(name)}", digest, sizes.get(name))
        for name, digest in wanted["sha256"].items()
    }


def control_datasets(spec: Mapping[str, Any]) -> list[tuple[dict[str, Any], int]]:
    """The datasets whose photographs serve as controls, and how many of each."""
    others = [name for name in spec.get("controls") or () if name != SCENES]
    return [(describe(name), -(-CONTROLS // len(others))) for name in others]


def first_files(spec: Mapping[str, Any], count: int) -> list[File]:
    return list(own_files(spec).values())[:count]


def image_place(spec: Mapping[str, Any], name: str) -> Path:
    """Where an image named in the spec lies: a staged file by its name in the yaml, or the user's own path."""
    staged = own_files(spec).get(name)
    return verified(spec, staged) if staged else Path(name).expanduser()


def verified(spec: Mapping[str, Any], file: File) -> Path:
    """Where a staged file lies, its checksum compared. Raises BenchError."""
    place = file.place()
    if place is None:
        raise BenchError(str(missing(spec)))
    remedy = f"delete it and type python -m bench.fetch {spec['name']} (or correct the mirror)."
    verify(place, file.sha256 or checksums().get(file.path), remedy)
    return place


def missing(spec: Mapping[str, Any]) -> str | None:
    """One sentence when images that the dataset needs are not on this machine, else None."""
    spec = completed(spec)
    absent = [file for file in files(spec) if file.place() is None]
    if absent:
        first = absent[0]
        only_controls = all(file.place() for file in own_files(spec).values())
        more = " Or leave these controls out: type dataset.controls=[scenes]." if only_controls else ""
        return (
            f"dataset {spec['name']} needs {len(absent)} files that are not on this machine, first {first.path} "
            f"({human(first.size)}, from {first.url}; licence: {spec['licence']}); type python -m bench.fetch "
            f"{spec['name']} where there is network, or set BENCH_MIRROR to a folder that holds {first.path}.{more}"
        )
    if not (prompt_table(spec) or any(spec[key] for key in IMAGES)):
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


def absent(spec: Mapping[str, Any]) -> bool:
    """Whether staged images are not on this machine, or the user's own files are gone."""
    spec = completed(spec)
    return any(file.place() is None for file in files(spec)) or not all(path.is_file() for path in _named(spec))


def _trained_and_compared(spec: Mapping[str, Any]) -> Path | None:
    """An image that is trained on and compared with."""
    if not spec["reference_set"]:
        return None
    training = [
        image_place(spec, name) for role in ("references", "person", "background") for name in images_of(spec, role)
    ]
    return seen_in_both(training, [image_place(spec, name) for name in images_of(spec, "reference_set")])


def _named(spec: Mapping[str, Any]) -> list[Path]:
    """The user's own files, folders opened."""
    named = [name for names in image_roles(spec).values() for name in names]
    staged = own_files(spec)
    return [Path(name).expanduser() for name in named if name not in staged]


def image_roles(spec: Mapping[str, Any]) -> dict[str, list[str]]:
    """The images of each role by name, in order, and the table of prompts where there is one."""
    pairs = [name for pair in pairs_of(spec) for name in pair]
    tables = {"prompts": [prompt_table(spec)["file"]]} if prompt_table(spec) else {}
    return {"pair": pairs, **{role: images_of(spec, role) for role in FOLDERS}, **tables}


def pairs_of(spec: Mapping[str, Any]) -> list[list[str]]:
    """`pair` as a list of pairs: [plain, stylised], or [plain] where the oracle makes the other half."""
    pair = spec["pair"] or []
    one = isinstance(pair, (list, tuple)) and pair and all(isinstance(name, str) for name in pair)
    pairs = [pair] if one else pair
    lengths = (1, 2) if spec["oracle"] else (2,)
    if not isinstance(pairs, (list, tuple)) or not all(_is_pair(p, lengths) for p in pairs):
        raise BenchError(
            f"dataset {spec['name']} has pair: {spec['pair']!r}; two images are needed, "
            "type dataset.pair=[plain.png,stylised.png]."
        )
    return [list(p) for p in pairs]


def _is_pair(value: Any, lengths: tuple[int, ...]) -> bool:
    return isinstance(value, (list, tuple)) and len(value) in lengths and all(isinstance(name, str) for name in value)


def images_of(spec: Mapping[str, Any], role: str) -> list[str]:
    """Names of the images of a role: `all` staged ones, those in a folder, or a list."""
    value = spec[role]
    if value == ALL:
        return [name for name in own_files(spec) if Path(name).suffix.lower() in IMAGE_ENDINGS]
    return _images_in(value, role) if isinstance(value, str) else list(value or ())


def _images_in(folder: str, role: str) -> list[str]:
    here = Path(folder).expanduser()
    if not here.is_dir():
        raise BenchError(f"dataset.{role} names {here}, which is not a folder; type dataset.{role}=/path/to/a/folder.")
    found = image_folder(here)
    if not found.images:
        raise BenchError(
            f"the folder {here} of dataset.{role} is empty: it holds no images (such as {' '.join(IMAGE_ENDINGS)}); "
            "put some there or name another folder."
        )
    return [str(path) for path in found.images]


def passed_over(spec: Mapping[str, Any]) -> list[str]:
    """A sentence for each folder of images that holds other entries, too."""
    folders = {role: spec[role] for role in FOLDERS if isinstance(spec[role], str) and spec[role] != ALL}
    found = {role: image_folder(Path(folder).expanduser()) for role, folder in folders.items()}
    return [f"dataset.{role}: {folder.note}" for role, folder in found.items() if folder.passed_over]


def training_images(spec: Mapping[str, Any]) -> list[Path]:
    """The user's own images that are learned from, each once."""
    staged = own_files(spec)
    named = [name for role, names in image_roles(spec).items() if role not in NOT_TRAINED for name in names]
    return list(dict.fromkeys(Path(name).expanduser() for name in named if name not in staged))


def own_captions(spec: Mapping[str, Any]) -> dict[Path, str]:
    """Captions of the user's own training images that have one (`bench.data.captions`)."""
    return captions_of(training_images(spec))
