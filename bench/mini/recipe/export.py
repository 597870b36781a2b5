"""Stage `export`: write the bundle `weights/{diffusion,clip,readers,encoder}` in half precision, file by file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPTokenizer

from bench.files import replacing
from bench.mini.recipe import unet as denoiser
from bench.mini.recipe.training import averaged

WEIGHTS = Path(__file__).parents[1] / "weights"
LIMIT_BYTES = 48 * 2**20


def pipeline(work: Path) -> StableDiffusionPipeline:
    """The pipeline as it stands, in float32."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    checkpoint = work / "unet.checkpoint.safetensors"
    scheduler = DDIMScheduler(**denoiser.SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae").eval(),
        text_encoder=denoiser.tower(checkpoint, len(tokenizer)),
        tokenizer=tokenizer,
        unet=averaged(checkpoint, "unet", denoiser.build()),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def replace_files(source: Path, target: Path) -> None:
    """Move every file of source into target, one atomic replacement each; nothing of the old bundle is left over."""
    fresh = {f.relative_to(source) for f in source.rglob("*") if f.is_file()}
    for name in fresh:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with replacing(target / name) as part:
            shutil.copy(source / name, part)
    for old in [f for f in target.rglob("*") if f.is_file() and f.relative_to(target) not in fresh]:
        if old.suffix != ".md":
            old.unlink()


def bundle_bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def check_size(folder: Path) -> int:
    """Bytes of a bundle. Raises ValueError when it is over the limit."""
    size = bundle_bytes(folder)
    if size > LIMIT_BYTES:
        raise ValueError(f"The bundle has {size / 2**20:.1f} MB, over the limit of 48: make a network smaller.")
    return size


def open_in_float32(config: Path) -> None:
    """Stored in half precision, opened in float32: transformers goes by the type that the config names."""
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")


def export(work: Path, out: Path) -> None:
    """Assemble the bundle from the stage folders; refuses one over 48 MB."""
    staging = work / "bundle"
    shutil.rmtree(staging, ignore_errors=True)
    pipe = pipeline(work)
    pipe.to(torch.float16)
    pipe.save_pretrained(staging / "diffusion", safe_serialization=True)
    shutil.rmtree(staging / "diffusion" / "tokenizer")
    shutil.copytree(work / "tokenizer", staging / "diffusion" / "tokenizer")
    for name in [name for name in ("clip", "readers", "encoder") if (work / name).is_dir()]:
        shutil.copytree(work / name, staging / name)
    index = staging / "diffusion" / "model_index.json"
    index.write_text(
        json.dumps({k: v for k, v in json.loads(index.read_text()).items() if k != "_name_or_path"}, indent=2)
    )
    open_in_float32(staging / "diffusion" / "text_encoder" / "config.json")
    shutil.copytree(WEIGHTS / "lpips", staging / "lpips")  # published, not trained here
    size = check_size(staging)
    replace_files(staging, out)
    print(f"export: {size / 2**20:.1f} MB in {out}", flush=True)
