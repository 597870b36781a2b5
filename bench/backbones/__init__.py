"""Frozen text-to-image models in diffusers' folder format: where their weights lie, and which weights they are.

A backbone is named by a local folder (relative ones start at the repository root) or by a hub repository,
`owner/name` or `owner/name@revision`. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.contracts import BenchError
from bench.data.files import sha256
from bench.data.weights import weights_folders
from bench.errors import Unavailable
from bench.paths import located, mirror_folder

COMPONENTS = (
    "unet transformer vae text_encoder text_encoder_2 text_encoder_3 tokenizer tokenizer_2 tokenizer_3 scheduler"
).split()
HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
SMALL = ("*.json", "*.txt")  # configurations and vocabularies


# --- where ------------------------------------------------------------------------------------------------------------


def resolve(path: str, variant: str | None = None, download_gb: float | None = None, recipe: str | None = None) -> Path:
    """The local folder of a backbone or of one model: as named, staged, from the hub cache, or else downloaded.

    `variant` ("fp16") chooses among weight files of a hub repository; `download_gb`, and `recipe`, the command that
    makes the weights of this project, are only shown to the user.
    Raises BenchError when the weights are not there and cannot be had.
    """
    if located(path).is_file():
        raise BenchError(_single_file(path))
    local = _local(path)
    if local is not None:
        return local
    if recipe and not HUB_NAME.fullmatch(path):
        raise _unmade(path, download_gb, recipe)
    if not HUB_NAME.fullmatch(path) or path.startswith("."):
        raise BenchError(
            f"The backbone folder {path} was requested and does not exist; "
            "give backbone.path=<a folder in diffusers format, or a hub name such as owner/name>."
        )
    return _from_hub(path, variant, download_gb)


def _single_file(path: str) -> str:
    convert = f"StableDiffusionPipeline.from_single_file('{path}').save_pretrained('<folder>')"
    return (
        f"{path} is a single-file checkpoint, and a backbone is a folder in diffusers format; convert it with "
        f"diffusers, {convert} (for SDXL StableDiffusionXLPipeline), and give backbone.path=<folder>."
    )


def _local(path: str) -> Path | None:
    """A folder as named, or where weights are staged: <mirror or cache>/weights/<owner>/<name> or .../<name>."""
    named = located(path)
    if named.is_dir():
        return named
    if not HUB_NAME.fullmatch(path):
        return None
    mirror_folder()  # a wrong BENCH_MIRROR is reported first
    name = path.partition("@")[0]
    places = (folder / tail for folder in weights_folders() for tail in (name, name.split("/")[1]))
    return next((place for place in places if place.is_dir()), None)


def missing(spec: Mapping[str, Any]) -> str | None:
    """A sentence when weights are neither in a folder nor in the hub's cache here; nothing is downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    variant, recipe = spec.get("variant"), spec.get("recipe")
    for path in filter(None, (spec["path"], spec.get("vae"))):
        if _local(str(path)) is None and recipe and not HUB_NAME.fullmatch(str(path)):
            return str(_unmade(str(path), spec.get("download_gb"), recipe))
        if _local(str(path)) is None:
            repo, _, revision = str(path).partition("@")
            wanted: dict[str, Any] = {
                "repo_id": repo,
                "revision": revision or None,
                "allow_patterns": _patterns(variant),
            }
            try:
                snapshot_download(**wanted, local_files_only=True)
            except LocalEntryNotFoundError:
                return str(_missing(str(path), spec.get("download_gb"), "yet"))
    return None


def _from_hub(path: str, variant: str | None, download_gb: float | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repo, _, revision = path.partition("@")
    wanted: dict[str, Any] = {"repo_id": repo, "revision": revision or None, "allow_patterns": _patterns(variant)}
    try:
        cached = Path(snapshot_download(**wanted, local_files_only=True))
        if constants.HF_HUB_OFFLINE or _complete(cached):
            return cached
    except LocalEntryNotFoundError:
        if constants.HF_HUB_OFFLINE:
            raise _missing(path, download_gb, "and HF_HUB_OFFLINE is set") from None
    try:
        return Path(snapshot_download(**wanted))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise _missing(path, download_gb, f"and the hub did not give them ({_first_line(error)})") from error


def _patterns(variant: str | None) -> list[str]:
    """Hub files that we read: safetensors of one variant, whole or in shards, configurations, vocabularies."""
    dot = f".{variant}" if variant else ""
    weights = [f"{stem}{dot}{shard}.safetensors" for stem in ("model", "diffusion_pytorch_model")
               for shard in ("", "-?????-of-?????")]  # fmt: skip
    shards = [f"diffusion_pytorch_model-?????-of-?????{dot}.safetensors"] if variant else []
    nested = [f"{part}/{name}" for part in COMPONENTS for name in (*SMALL, *weights, *shards)]
    return ["model_index.json", "config.json", f"diffusion_pytorch_model{dot}.safetensors", *nested]


def _complete(folder: Path) -> bool:
    """Whether every model of the folder has weights: an interrupted download leaves configurations only."""
    models = [config.parent for config in (folder / "config.json", *folder.glob("*/config.json")) if config.is_file()]
    models = [model for model in models if model.name in COMPONENTS or model == folder]
    return bool(models) and all(_weights(model) for model in models)


def _missing(path: str, download_gb: float | None, why: str) -> Unavailable:
    from huggingface_hub import constants

    repo = path.partition("@")[0]
    size = f"about {download_gb:g} GB" if download_gb else "size unknown"
    return Unavailable(
        f"The weights {path} (https://huggingface.co/{repo}, {size}) are not on this machine (looked in "
        f"{constants.HF_HUB_CACHE} and in weights/ of BENCH_MIRROR and of the cache) {why}; on a machine with network "
        f"type hf download {repo} --local-dir <folder>, copy the folder here and give backbone.path=<folder>, or copy "
        f"it to $BENCH_MIRROR/weights/{repo}."
    )


def _unmade(path: str, size_gb: float | None, recipe: str) -> Unavailable:
    size = f"about {1000 * size_gb:g} MB" if size_gb else "size unknown"
    return Unavailable(
        f"The weights {path} (trained by this project, {size}) are not on this machine; make them with {recipe} "
        f"and copy DIR/{Path(path).name} to {path}, or give backbone.path=<folder>."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


# --- which ------------------------------------------------------------------------------------------------------------


def identity(spec: Mapping[str, Any]) -> str:
    """A short name of exactly these weights, from a backbone's settings (`path`, perhaps `vae` and `variant`).

    A local folder is known by its contents, a hub name by its commit (as cached here, else as the hub says), or, when
    neither can be had, by its revision. Files that this project does not read do not count.
    """
    if sentence := spec.get("recipe") and missing(spec):
        raise Unavailable(sentence)
    paths = [spec["path"], *([spec["vae"]] if spec.get("vae") else [])]
    parts = [_identity(str(path), spec.get("variant")) for path in paths]
    return "+".join([*parts, *([spec["variant"]] if spec.get("variant") else [])])


def _identity(path: str, variant: str | None) -> str:
    local = _local(path)
    if local is not None:
        return _contents(local, variant)
    if not HUB_NAME.fullmatch(path):
        resolve(path, variant)  # tells that the folder is not there
    repo, _, revision = path.partition("@")
    return f"{repo}@{(_commit(repo, revision or 'main') or revision or 'main')[:12]}"


def _contents(folder: Path, variant: str | None = None) -> str:
    """First 16 digits of a sha256 over names and contents of the files that loading reads."""
    files = sorted(file for part in _parts(folder) for file in _read_files(part, variant))
    lines = [f"{file.relative_to(folder).as_posix()} {sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _parts(folder: Path) -> list[Path]:
    return [folder, *(folder / name for name in COMPONENTS if (folder / name).is_dir())]


def _read_files(part: Path, variant: str | None) -> list[Path]:
    """Configurations, vocabularies and weights of one component; of the top folder weights only if it is a model."""
    is_model = (part / "config.json").is_file()
    small = [file for pattern in SMALL for file in part.glob(pattern)] if part.name in COMPONENTS or is_model else []
    index = [part / "model_index.json"] if (part / "model_index.json").is_file() else []
    return sorted({*small, *index, *(_of_variant(part, variant) if is_model else ())})


def _weights(part: Path) -> list[Path]:
    """The weight files of one model: safetensors, or, in a foreign folder that has none, .bin."""
    return sorted(part.glob("*.safetensors")) or sorted(part.glob("*.bin"))


def _of_variant(part: Path, requested: str | None) -> list[Path]:
    """Of the weight files those of the variant that loading reads; all where loading finds none."""
    files, chosen = _weights(part), variant_of(part, requested)
    return [file for file in files if _variant(file.name) == chosen] or files


def _variant(name: str) -> str | None:
    """ "fp16" of model.fp16.safetensors and of model.fp16-00001-of-00002.safetensors."""
    match = re.fullmatch(r"[^.]+\.([^.]+?)(-\d+-of-\d+)?\.\w+", name)
    return match[1] if match else None


def _commit(repo: str, revision: str) -> str | None:
    """The commit of a hub repository: as cached on this machine, else as the hub says, else None."""
    from huggingface_hub import HfApi, constants

    cache = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    if (cache / "refs" / revision).is_file():
        return (cache / "refs" / revision).read_text().strip()
    if constants.HF_HUB_OFFLINE or (cache / "snapshots" / revision).is_dir():
        return None
    try:
        return HfApi().model_info(repo, revision=revision, timeout=5).sha
    except Exception:  # no network: the weights' absence is reported when they are loaded
        return None


# --- reading a folder -------------------------------------------------------------------------------------------------


def variant_of(part: Path, requested: str | None = None) -> str | None:
    """Which weight files of one model to read: the ones requested, else plain ones, else the only variant there is."""
    files = [file.name for file in _weights(part)]
    found = {variant for name in files if (variant := _variant(name))}
    if requested in found:
        return requested
    has_plain = any("." not in Path(name).stem for name in files)
    return None if has_plain or len(found) != 1 else found.pop()


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """A json file of a backbone's folder. Raises BenchError when it is absent or broken."""
    try:
        return json.loads((folder / name).read_text())
    except (OSError, ValueError) as error:
        found = sorted(os.listdir(folder))[:8] if folder.is_dir() else "no folder"
        raise BenchError(
            f"The backbone folder {folder} was opened for its {name}, which cannot be read ({_first_line(error)}); "
            f"found {found}; give backbone.path=<a whole folder in diffusers format>."
        ) from error
