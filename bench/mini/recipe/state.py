"""Training states of the denoisers, kept in the repository outside the package, so that any machine can go on.

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
FLOW_FOLDER = home() / "results" / "training" / "mini_flow"
FLOW_FILE = FLOW_FOLDER / "flow.safetensors"


def keep(checkpoint: Path, basis: Path, tokenizer: Path, folder: Path = FOLDER) -> None:
    """Write a checkpoint in half precision, with the basis of its latents and the tokenizer of its captions.

    `unet.checkpoint.safetensors` becomes `unet.safetensors`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with safe_open(checkpoint, "pt") as saved:
        about = saved.metadata()
    tensors = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in load_file(checkpoint).items()}
    kept = folder / f"{checkpoint.name.partition('.')[0]}.safetensors"
    with replacing(kept) as part:
        save_file(tensors, part, metadata=about)
    shutil.copy(basis, folder / "basis.safetensors")
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    print(f"state: step {about['step']} in {folder.name}, {kept.stat().st_size / 2**20:.0f} MB")


def check_latents(basis: Path, folder: Path) -> None:
    """Raises ValueError where a kept state was trained on other latents than those of `basis`."""
    ours, kept = load_file(basis), load_file(folder / "basis.safetensors")
    if any(not torch.equal(ours[key], kept[key]) for key in ("basis", "mean")):
        raise ValueError(f"The training state in {folder.name} has another basis than {basis}; type --fresh.")
