"""Stage `export_flow`: write `mini_flow` as a folder of diffusers' FluxPipeline, in half precision, file by file.

The pipeline wants two text encoders, one for pooled states and one for token states. Here both are the same tower.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
from torch import Tensor
from transformers import CLIPTokenizer

from bench.mini.recipe import flow, unet, vae
from bench.mini.recipe.export import bundle_bytes, open_in_float32, replace_files
from bench.mini.recipe.training import averaged

LIMIT_BYTES = 16 * 2**20


def autoencoder(folder: Path, basis: Tensor, mean: Tensor) -> AutoencoderKL:
    """The autoencoder of `mini`. Raises ValueError where it does not give the latents that `basis` gives."""
    model = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval()
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    expected = vae.latents(images, basis, mean).float()
    with torch.no_grad():
        found = model.encode(vae.to_float(images)).latent_dist.mean
    if found.shape != expected.shape or (found - expected).abs().max() > 0.1 * expected.std():
        raise ValueError(f"The autoencoder in {folder} has other latents than the flow's; run the stage vae first.")
    model.register_to_config(shift_factor=0.0)  # FluxPipeline adds it
    return model


def pipeline(checkpoint: Path, tokenizer: Path, model: AutoencoderKL) -> FluxPipeline:
    """The pipeline as it stands, in float32."""
    names = CLIPTokenizer.from_pretrained(tokenizer)
    text = unet.tower(checkpoint, len(names))  # that the transformer was trained with
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=model,
        text_encoder=text,
        tokenizer=names,
        text_encoder_2=text,
        tokenizer_2=names,
        transformer=averaged(checkpoint, "transformer", flow.build()),
    )


def export(pipe: FluxPipeline, tokenizer: Path, staging: Path, out: Path) -> None:
    """Write the folder. Raises ValueError where it is over 16 MB."""
    shutil.rmtree(staging, ignore_errors=True)
    pipe.to(torch.float16)
    pipe.save_pretrained(staging, safe_serialization=True)
    for part in ("", "_2"):
        shutil.rmtree(staging / f"tokenizer{part}")
        shutil.copytree(tokenizer, staging / f"tokenizer{part}")
        open_in_float32(staging / f"text_encoder{part}" / "config.json")
    size = bundle_bytes(staging)
    if size > LIMIT_BYTES:
        raise ValueError(f"mini_flow has {size / 2**20:.1f} MB, over the limit of 16: make the transformer smaller.")
    replace_files(staging, out)
    print(f"export_flow: {size / 2**20:.1f} MB in {out}", flush=True)
