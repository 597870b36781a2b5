"""FLUX.2-klein 4B with random weights: training and sampling at 512 pixels for K = 1, 2, 4 cells, with peak memory.

    python tests/perf/flow.py --file flow.json --weights DIR [--device cpu --small]

The transformer and the autoencoder have their published shapes, in bf16; the text encoder is a small one of the same
width, since prompts are read once. `--small` takes tiny networks at 32 pixels and only tries the code.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import pack_work as work  # noqa: E402
import random_flow_pipelines as pipelines  # noqa: E402
import torch  # noqa: E402

from bench.backbones.architectures import PUBLISHED  # noqa: E402
from bench.backbones.flux2 import Flux2Klein  # noqa: E402
from bench.data import loading  # noqa: E402
from bench.files import atomic_write  # noqa: E402
from bench.sampling.sampler import Sampler  # noqa: E402

KLEIN = PUBLISHED["black-forest-labs/FLUX.2-klein-base-4B"]
CELLS = (1, 2, 4)


def folder_of(options: argparse.Namespace) -> Path:
    """A diffusers folder with random weights, made once."""
    folder = options.weights / ("klein-tiny" if options.small else "klein")
    if folder.is_dir():
        return folder
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    pipe = pipelines.flux2_klein()
    if not options.small:
        _enlarge(pipe, options.device)
    pipe.save_pretrained(unfinished)
    unfinished.rename(folder)
    return folder


def _enlarge(pipe: Any, device: str) -> None:
    """The published shapes instead of the tiny ones."""
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
    from transformers import Qwen3ForCausalLM

    config = pipe.text_encoder.config
    config.hidden_size = KLEIN.network["joint_attention_dim"] // 3
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            parts = Flux2Transformer2DModel(**KLEIN.network), AutoencoderKLFlux2(), Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    pipe.register_modules(transformer=parts[0], vae=parts[1], text_encoder=parts[2])


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Steps of all cells, or images, per second; GB of the GPU at the peak, weights included."""
    pixels, length = (32, 24) if options.small else (512, 512)
    more = {"dtype": "bfloat16", "device": options.device, "name": "flux2_klein", "text_length": length}
    backbone = Flux2Klein(
        str(folder_of(options)), pixels, gradient_checkpointing=True, offload_text_encoders=True, **more
    )
    dataset, method = loading.load(work.described(), pixels), work.method_of("dreambooth", "attention")
    sampler = Sampler(scheduler="euler", steps=2 if options.small else 10, cfg=4.0, batch=4)
    for cells in CELLS:
        items = work.training(backbone, method, dataset, cells)
        yield {"part": "training", "unit": "steps/s", "K": cells} | measured(items, cells, options)
    items = work.drawing(backbone, method, dataset, "plain", sampler)
    yield {"part": "sampling", "unit": "images/s", "steps": sampler.steps} | measured(items, sampler.batch, options)


def measured(items: Iterator[Any], share: int, options: argparse.Namespace) -> dict[str, Any]:
    timed = work.Timed(items, options.device)
    try:
        timed.warm(1)
        work.interleaved([timed], 2 if options.small else 8)
    except torch.OutOfMemoryError:
        return {"failure": "out of memory"}
    finally:
        work.closed([timed])
    return {"per_s": share / float(np.median(timed.seconds)), "peak_gb": timed.peak_gb}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    if options.device == "cpu" and not options.small:
        sys.exit("flow: klein 4B is timed on a GPU; type --device cuda, or --small for tiny networks on the CPU.")
    options.weights.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"rows": []}
    for row in rows(options):
        found["rows"].append(row)
        print(f"  {row}", file=sys.stderr, flush=True)
        atomic_write(options.file, json.dumps(found).encode())
    atomic_write(options.file, json.dumps(found | {"done": True}).encode())


if __name__ == "__main__":
    main()
