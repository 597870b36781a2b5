"""Rebuild `mini` from the artists' sheets: world, tokenizer, basis, unet, vae, clip, readers, export, encoder.

    python -m bench.mini.recipe --out DIR [--device cuda|cpu] [--samples 2000000] [--scale 1.0] [--stages vae,clip]
    python -m bench.mini.recipe --out DIR --stages world,tokenizer,basis,unet --minutes 150   # go on with the denoiser
    python -m bench.mini.recipe --out DIR --stages state                                    # ... and keep where it is
    python -m bench.mini.recipe --out DIR --stages world,tokenizer,basis,vae,flow,export_flow        # mini_flow

`mini_flow` has the text tower, latents and autoencoder of `mini`; its stages are `flow`, `state_flow`, `export_flow`.

Finished stages are skipped and an unfinished one goes on from its checkpoint. The denoiser starts from the training
state in `results/training/mini` where DIR has none; `--fresh` starts it anew. `--minutes` ends a run in time.
`--scale` multiplies the pictures and the steps of all other stages.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from bench.mini.recipe import clip, encoder, export, export_flow, flow, readers, state, tokenizer, unet, vae, world
from bench.mini.recipe.training import OutOfTime, Run

SHIPPED = Path(__file__).parents[1] / "weights"
PICTURES = {"base": 100000, "judges": 60000, "readers": 40000, "odd": 10000}
STEPS = {"vae": 4000, "clip": 3000, "readers": 4000, "encoder": 3000}
SAMPLES = 2000000  # that the denoiser sees in all; its learning rate falls over the last 15 %


class Recipe:
    """The stages; each leaves its result under `work` and a `<stage>.done` file."""

    def __init__(self, args: argparse.Namespace):
        self.work, self.out = args.out / "work", args.out / "weights"
        self.device, self.seed, self.scale, self.samples = args.device, args.seed, args.scale, args.samples
        self.start = state.FILE if state.FILE.exists() and not args.fresh else None
        self.start_flow = state.FLOW_FILE if state.FLOW_FILE.exists() and not args.fresh else None
        self.compiled = args.compile
        self.until = time.time() + 60 * args.minutes
        self.work.mkdir(parents=True, exist_ok=True)

    def plan(self, name: str) -> Run:
        return Run(self.work, max(1, round(STEPS[name] * self.scale)), self.seed, self.device, self.until)

    def pictures(self, kind: str) -> world.World:
        return world.World.load(self.work / "world" / kind)

    def tokenizer(self) -> CLIPTokenizer:
        return CLIPTokenizer.from_pretrained(self.work / "tokenizer")

    def basis(self) -> tuple[torch.Tensor, torch.Tensor]:
        saved = load_file(self.work / "basis.safetensors")
        return saved["basis"], saved["mean"]

    def do_world(self) -> None:
        for kind, count in PICTURES.items():
            folder, count = self.work / "world" / kind, max(world.CHUNK, round(count * self.scale))
            if not (folder / "labels.npz").exists():  # written last
                world.build(folder, kind, count, self.seed, os.cpu_count() or 1)

    def do_tokenizer(self) -> None:
        if self.start:
            shutil.copytree(state.FOLDER / "tokenizer", self.work / "tokenizer", dirs_exist_ok=True)
        else:
            tokenizer.build(self.work / "tokenizer")

    def do_basis(self) -> None:
        if self.start:
            shutil.copy(state.FOLDER / "basis.safetensors", self.work)
            return
        basis, mean = vae.principal(self.pictures("base").images, self.pictures("odd").images)
        save_file({"basis": basis.contiguous(), "mean": mean}, self.work / "basis.safetensors")

    def do_unet(self) -> None:
        pictures, names = self.pictures("base"), self.tokenizer()
        z, tokens = vae.latents(pictures.images, *self.basis()), unet.token_table(names, pictures.captions)
        batch = unet.GPU_BATCH if torch.device(self.device).type != "cpu" else unet.BATCH
        run = Run(self.work, round(self.samples / batch), self.seed, self.device, self.until)
        unet.train(z, tokens, len(names), run, self.start, self.compiled)

    def do_state(self) -> None:
        """Keep where the denoiser's training is, in half the bytes, for a later run on another machine."""
        state.keep(self.work / "unet.checkpoint.safetensors", self.work / "basis.safetensors", self.work / "tokenizer")

    def do_flow(self) -> None:
        """The text tower is that of the denoiser trained here or, where none was, of the kept state."""
        if self.start_flow:
            state.check_latents(self.work / "basis.safetensors", state.FLOW_FOLDER)
        pictures, names = self.pictures("base"), self.tokenizer()
        z, tokens = vae.latents(pictures.images, *self.basis()), unet.token_table(names, pictures.captions)
        ours = self.work / "unet.checkpoint.safetensors"
        text = unet.tower(ours if ours.exists() else state.FILE, len(names))
        batch = flow.GPU_BATCH if torch.device(self.device).type != "cpu" else flow.BATCH
        run = Run(self.work, max(1, round(self.samples / batch)), self.seed, self.device, self.until)
        flow.train(z, tokens, text, run, self.start_flow, self.compiled)

    def do_state_flow(self) -> None:
        """Keep where the training of `mini_flow` is."""
        checkpoint, basis = self.work / "flow.checkpoint.safetensors", self.work / "basis.safetensors"
        state.keep(checkpoint, basis, self.work / "tokenizer", state.FLOW_FOLDER)

    def do_export_flow(self) -> None:
        """With the autoencoder that was trained here or, where none was, with the one that ships."""
        ours, checkpoint = self.work / "vae", self.work / "flow.checkpoint.safetensors"
        model = export_flow.autoencoder(ours if ours.is_dir() else SHIPPED / "diffusion" / "vae", *self.basis())
        pipe = export_flow.pipeline(checkpoint, self.work / "tokenizer", model)
        export_flow.export(pipe, self.work / "tokenizer", self.work / "flow", self.out.parent / "flow_weights")

    def do_vae(self) -> None:
        base, odd = self.pictures("base").images, self.pictures("odd").images
        model = vae.train(base, odd, *self.basis(), self.plan("vae"))
        model.to("cpu").save_pretrained(self.work / "vae")

    def do_clip(self) -> None:
        pictures, names = self.pictures("judges"), self.tokenizer()
        model = clip.train(pictures.images, unet.token_table(names, pictures.captions), len(names), self.plan("clip"))
        clip.save(model.cpu(), len(names), self.work / "tokenizer", self.work / "clip")

    def do_readers(self) -> None:
        model = readers.train(self.pictures("readers"), self.plan("readers")).cpu()
        accuracy = readers.accuracy(model)
        print(f"readers on unseen drawings: {accuracy}", flush=True)
        model.save(self.work / "readers", accuracy)

    def do_export(self) -> None:
        export.export(self.work, self.out)

    def do_encoder(self) -> None:
        """For the denoiser that was exported here or, where none was, for the one that ships."""
        source = self.out if (self.out / "diffusion" / "model_index.json").is_file() else SHIPPED
        backbone = encoder.backbone_of(source / "diffusion", self.device)
        run = self.plan("encoder")
        weights = encoder.train(self.pictures("base"), backbone, source / "clip", run.folder, run.steps, run.seed)
        for folder in (self.work, self.out):  # `export` takes it from the first when it is called again
            encoder.write(weights, folder / "encoder")
        export.check_size(self.out)

    def run(self, stages: list[str]) -> None:
        for stage in stages:
            done = self.work / f"{stage}.done"
            if done.exists():
                print(f"{stage}: finished before, skipped", flush=True)
                continue
            began = time.time()
            action: Callable[[], None] = getattr(self, f"do_{stage}")
            action()
            if not stage.startswith("state"):
                done.write_text(f"{time.time() - began:.0f} s\n")
            print(f"{stage}: done in {time.time() - began:.0f} s", flush=True)


STAGES = ("world", "tokenizer", "basis", "unet", "vae", "clip", "readers", "export", "encoder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--samples", type=float, default=SAMPLES, help="that the denoiser sees in all")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--seed", type=int, default=0, help="of pictures and batches; another one widens the world")
    parser.add_argument("--threads", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--compile", action="store_true", help="the denoiser by torch.compile; needs a C++ compiler")
    parser.add_argument("--fresh", action="store_true", help="a new denoiser instead of the kept training state")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        Recipe(args).run(args.stages.split(","))
    except OutOfTime as stopped:
        print(stopped, flush=True)


if __name__ == "__main__":
    main()
