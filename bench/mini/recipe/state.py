"""The denoiser's training state, kept in the repository outside the package, so that any machine can go on with it.

bfloat16 holds weights, averages and moments in half the bytes: what is lost is far below one step's noise.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bench.files import replacing
from bench.paths import home

FOLDER = home() / "results" / "training" / "mini"
FILE = FOLDER / "unet.safetensors"


def keep(checkpoint: Path, basis: Path, tokenizer: Path, folder: Path = FOLDER) -> None:
    """Write a checkpoint in half precision, with the basis of its latents and the tokenizer of its captions."""
    folder.mkdir(parents=True, exist_ok=True)
    with safe_open(checkpoint, "pt") as saved:
        about = saved.metadata()
    tensors = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in load_file(checkpoint).items()}
    with replacing(folder / "unet.safetensors") as part:
        save_file(tensors, part, metadata=about)
    shutil.copy(basis, folder / "basis.safetensors")
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    print(
        f"state: step {about['step']} in {folder.name}, {(folder / 'unet.safetensors').stat().st_size / 2**20:.0f} MB"
    )
