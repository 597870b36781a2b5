"""Rebuild `mini` from nothing: world, tokenizer, latents, vae, clip, perceptual, unet, export, encoder.

    python -m bench.mini.recipe --out DIR [--device cuda|cpu] [--scale 1.0] [--stages vae,clip] [--seed 0]
    python -m bench.mini.recipe --out DIR --shipped vae,clip,perceptual               # the denoiser alone, anew
    python -m bench.mini.recipe --out DIR --shipped vae,clip,perceptual --onward      # ... trained further
    python -m bench.mini.recipe --out DIR --stages world,encoder           # an image encoder for the shipped denoiser

Finished stages are skipped and an unfinished one goes on from its checkpoint. `--scale` multiplies pictures and steps;
the committed bundle is scale 1 on two CPU cores (times in MODEL_CARD.md). A GPU affords `--scale 10`.
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

from bench.mini.recipe import clip, encoder, export, perceptual, tokenizer, unet, vae, world

SHIPPED = Path(__file__).parents[1] / "weights"
PICTURES, ODD = 30000, 9000
STEPS = {"vae": 1800, "clip": 900, "trunk": 600, "weights": 200, "unet": 6400, "encoder": 3000}


class Recipe:
    """The stages; each leaves its result under `work` and a `<stage>.done` file."""

    def __init__(self, out: Path, device: str, scale: float, seed: int, threads: int, onward: bool = False):
        self.work, self.out, self.device, self.seed = out / "work", out / "weights", device, seed
        self.scale, self.threads, self.onward = scale, threads, onward
        self.work.mkdir(parents=True, exist_ok=True)

    def take_shipped(self, stages: list[str]) -> None:
        """Let the repository's networks stand for these stages. The world, hence the latents, is the same anywhere."""
        for stage in stages:
            source = SHIPPED / ("diffusion/vae" if stage == "vae" else stage)
            shutil.copytree(source, self.work / stage, dirs_exist_ok=True)
            (self.work / f"{stage}.done").write_text("shipped\n")

    def steps(self, name: str) -> int:
        return max(1, round(STEPS[name] * self.scale))

    def pictures(self) -> world.World:
        return world.World.load(self.work / "world")

    def vocabulary(self) -> int:
        return len(CLIPTokenizer.from_pretrained(self.work / "tokenizer"))

    def tokens(self, pictures: world.World) -> torch.Tensor:
        return unet.token_table(CLIPTokenizer.from_pretrained(self.work / "tokenizer"), pictures.captions)

    def do_world(self) -> None:
        count, odd = (max(world.CHUNK, round(n * self.scale)) for n in (PICTURES, ODD))
        world.build(self.work / "world", count, odd, self.seed, os.cpu_count() or 1)

    def do_tokenizer(self) -> None:
        tokenizer.build(self.work / "tokenizer")

    def do_latents(self) -> None:
        pictures = self.pictures()
        basis, mean = vae.principal(pictures)
        z = vae.latents(pictures.images, basis, mean)
        save_file({"basis": basis, "mean": mean, "latents": z}, self.work / "latents.safetensors")

    def do_vae(self) -> None:
        saved = load_file(self.work / "latents.safetensors")
        model = vae.train(
            self.pictures(), saved["basis"], saved["mean"], self.work, self.steps("vae"), self.seed, self.device
        )
        model.to("cpu").save_pretrained(self.work / "vae")

    def do_clip(self) -> None:
        pictures, size = self.pictures(), self.vocabulary()
        model = clip.train(pictures, self.tokens(pictures), size, self.work, self.steps("clip"), self.seed, self.device)
        clip.save(model.cpu(), size, self.work / "tokenizer", self.work / "clip")

    def do_perceptual(self) -> None:
        pictures = self.pictures()
        trunk = perceptual.train_trunk(pictures, self.work, self.steps("trunk"), self.seed, self.device)
        perceptual.calibrate(trunk, pictures, self.steps("weights"), self.seed, self.device)
        trunk.cpu().save(self.work / "perceptual")

    def do_unet(self) -> None:
        z = load_file(self.work / "latents.safetensors")["latents"]
        contrastive = load_file(self.work / "clip" / "open_clip_model.safetensors")
        tokens, size = self.tokens(self.pictures()), self.vocabulary()
        start = SHIPPED / "diffusion" if self.onward else None
        steps, seed = self.steps("unet"), self.seed
        unet.train(z, tokens, size, contrastive, self.work, steps, seed, self.device, start=start)

    def do_export(self) -> None:
        export.export(self.work, self.out)

    def do_encoder(self) -> None:
        """For the denoiser that was exported here or, where none was, for the one that ships."""
        source = self.out if (self.out / "diffusion" / "model_index.json").is_file() else SHIPPED
        backbone = encoder.backbone_of(source / "diffusion", self.device)
        steps = self.steps("encoder")
        state = encoder.train(self.pictures(), backbone, source / "clip", self.work, steps, self.seed)
        for folder in (self.work, self.out):  # `export` takes it from the first when it is called again
            encoder.write(state, folder / "encoder")
        export.check_size(self.out)

    def run(self, stages: list[str]) -> None:
        torch.set_num_threads(self.threads)
        for stage in stages:
            done = self.work / f"{stage}.done"
            if done.exists():
                print(f"{stage}: finished before, skipped", flush=True)
                continue
            began = time.time()
            action: Callable[[], None] = getattr(self, f"do_{stage}")
            action()
            done.write_text(f"{time.time() - began:.0f} s\n")
            print(f"{stage}: done in {time.time() - began:.0f} s", flush=True)


STAGES = ("world", "tokenizer", "latents", "vae", "clip", "perceptual", "unet", "export", "encoder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--shipped", default="", help="stages whose shipped networks are used: vae,clip,perceptual")
    parser.add_argument("--onward", action="store_true", help="start from the shipped denoiser; take another --seed")
    args = parser.parse_args()
    recipe = Recipe(args.out, args.device, args.scale, args.seed, args.threads, args.onward)
    recipe.take_shipped([stage for stage in args.shipped.split(",") if stage])
    recipe.run(args.stages.split(","))


if __name__ == "__main__":
    main()
