"""Measure the shipped weights against the bars: `python -m bench.mini.check [--quick] [--weights DIR] [--json FILE]`.

About 12 minutes on two cores, 3 with --quick (fewer samples). Whether styles can be learnt is read from the records of
`experiment=learnable` and `experiment=learnable_pair`: `python -m bench.mini.check --styles results/learnable`.
Shapes: N pictures, uint8 (N, 3, 64, 64) unless noted.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.mini import scenes, styles
from bench.mini.recipe.training import fast_precision
from bench.paths import cache_folder

WEIGHTS = Path(__file__).parent / "weights"
GUIDANCE, STEPS = 4.0, 25
CLASSES = {"object": scenes.OBJECTS, "colour": tuple(scenes.COLOURS), "background": scenes.BACKGROUNDS}
LEARNED = {"dreambooth": 0.50, "pair": 0.35}  # for at least 6 styles: from 20 references, from one pair
BARS = {"object": 0.90, "colour": 0.95, "background": 0.95}


def _chw(images: list[np.ndarray] | np.ndarray) -> Tensor:
    """(N, 64, 64, 3) uint8 arrays -> (N, 3, 64, 64) uint8 tensor."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(list(images)))).permute(0, 3, 1, 2).contiguous()


def _hwc(images: Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


def _signed(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


# --------------------------------------------------------------------------------------------------- classifiers


def _scene(seed: int, index: int) -> scenes.Scene:
    return scenes.sample_scene(np.random.default_rng((seed, index)), pairs=0.0)


def _render(job: tuple[int, int]) -> np.ndarray:
    return scenes.render(_scene(*job))


def _pictures(seed: int, count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Photo-like single-object scenes (count, 3, 64, 64) and their class indices."""
    with ProcessPoolExecutor() as pool:
        images = list(pool.map(_render, [(seed, k) for k in range(count)], chunksize=100))
    told = [_scene(seed, k) for k in range(count)]
    return _chw(images), _labels(told)


def _labels(told: list[scenes.Scene]) -> dict[str, Tensor]:
    return {kind: torch.tensor([names.index(getattr(s, kind)) for s in told]) for kind, names in CLASSES.items()}


def _stage(a: int, b: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU(), nn.Conv2d(b, b, 3, 1, 1), nn.ReLU()


class Classifier(nn.Module):
    """Four strided convolutions and one head per question."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 128)
        self.body = nn.Sequential(*(nn.Sequential(*_stage(a, b)) for a, b in zip(widths, widths[1:], strict=False)))
        self.heads = nn.ModuleDict({k: nn.Linear(128 * 16, len(names)) for k, names in CLASSES.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.body(_signed(images)).flatten(1)
        return {k: head(x) for k, head in self.heads.items()}


def _softened(x: Tensor, rng: torch.Generator) -> Tensor:
    """Shift, blur a little, add a little noise: what a latent decoder may do to a picture."""
    dx, dy = (int(d) for d in torch.randint(-3, 4, (2,), generator=rng))
    x = torch.roll(x.float(), (dy, dx), (2, 3))
    share = float(torch.rand((), generator=rng))
    x = x * (1 - share) + share * F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return x + 6 * torch.rand((), generator=rng) * torch.randn(x.shape, generator=rng)


def train_classifier(cache: Path, count: int = 5000, epochs: int = 10) -> tuple[Classifier, dict[str, float]]:
    """A classifier of rendered scenes only, kept in the cache folder, and its accuracy on 500 fresh scenes."""
    model, file = Classifier(), cache / f"classifier-{count}-{epochs}.pt"
    if file.exists():
        saved = torch.load(file, weights_only=True)
        model.load_state_dict(saved["model"])
        return model.eval(), saved["accuracy"]
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    images, labels = _pictures(101, count)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * (count // 50))
    for _ in range(epochs):
        for rows in torch.randperm(count, generator=rng).split(50)[: count // 50]:
            with fast_precision("cpu"):
                said = model(_softened(images[rows], rng))
            optimizer.zero_grad(set_to_none=True)
            sum(F.cross_entropy(said[k].float(), labels[k][rows]) for k in CLASSES).backward()
            optimizer.step()
            schedule.step()
    accuracy = read(model.eval(), *_pictures(102, 500))
    cache.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict(), "accuracy": accuracy}, file)
    return model, accuracy


@torch.no_grad()
def read(model: Classifier, images: Tensor, labels: dict[str, Tensor]) -> dict[str, float]:
    """Share of pictures in which the classifier finds what was requested."""
    said = model(images)
    return {k: float((said[k].argmax(1) == labels[k]).float().mean()) for k in CLASSES}


# ------------------------------------------------------------------------------------------------------- networks


@dataclass
class Bundle:
    """The shipped networks, opened as any user would open them."""

    folder: Path

    @cached_property
    def pipe(self):
        from diffusers import StableDiffusionPipeline

        pipe = StableDiffusionPipeline.from_pretrained(self.folder / "diffusion")
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @cached_property
    def clip(self) -> tuple:
        import open_clip

        name = f"local-dir:{self.folder / 'clip'}"
        model, _, preprocess = open_clip.create_model_and_transforms(name)
        return model.eval(), preprocess, open_clip.get_tokenizer(name)

    @torch.no_grad()
    def sample(
        self, prompts: list[str], seed: int = 0, guidance: float = GUIDANCE, steps: int = STEPS, batch: int = 32
    ) -> Tensor:
        """One picture per prompt (N, 3, 64, 64); picture k starts from noise of seed + k, whatever the batch."""
        out = []
        for start in range(0, len(prompts), batch):
            part = prompts[start : start + batch]
            rngs = [torch.Generator().manual_seed(seed + start + k) for k in range(len(part))]
            with fast_precision("cpu"):
                images = self.pipe(
                    part, guidance_scale=guidance, num_inference_steps=steps, generator=rngs, output_type="np"
                ).images
            out.append((images * 255).round().astype(np.uint8))
        return _chw(np.concatenate(out))

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        from PIL import Image

        model, preprocess, _ = self.clip
        return model.encode_image(torch.stack([preprocess(Image.fromarray(x)) for x in _hwc(images)]), normalize=True)

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        model, _, tokenizer = self.clip
        return model.encode_text(tokenizer(texts), normalize=True)


# ------------------------------------------------------------------------------------------------------- measures


def captions_followed(bundle: Bundle, cache: Path, count: int) -> dict[str, float]:
    model, on_scenes = train_classifier(cache)
    told = [_scene(103, k) for k in range(count)]
    images = bundle.sample([scenes.plain_caption(s) for s in told], seed=5000)
    return {**read(model, images, _labels(told)), **{f"{k}_on_scenes": v for k, v in on_scenes.items()}}


@torch.no_grad()
def _psnr(vae: nn.Module, images: Tensor) -> float:
    y = vae.decode(vae.encode(_signed(images)).latent_dist.mean).sample.clamp(-1, 1)
    back = ((y + 1) * 127.5).round()
    return float((10 * torch.log10(255**2 / ((images.float() - back) ** 2).mean((1, 2, 3)).clamp(min=1e-3))).mean())


def reconstruction(bundle: Bundle, count: int) -> dict[str, float]:
    """PSNR in dB on photo-like scenes, and on each known and held-out style."""
    photos = [_render((104, k)) for k in range(count)]
    out = {"photo": _psnr(bundle.pipe.vae, _chw(photos))}
    for name, style in {**styles.KNOWN, **styles.HELD_OUT}.items():
        out[name] = _psnr(bundle.pipe.vae, _chw([style(x) for x in photos]))
    return out


def distinct_scenes(seed: int, count: int) -> list[scenes.Scene]:
    """Scenes with pairwise different canonical captions."""
    found: dict[str, scenes.Scene] = {}
    rng = np.random.default_rng(seed)
    while len(found) < count:
        scene = scenes.sample_scene(rng)
        found.setdefault(scenes.plain_caption(scene), scene)
    return list(found.values())


def retrieval(bundle: Bundle, rounds: int = 8, among: int = 64) -> float:
    """Top-1 share of fresh pictures whose own canonical caption is nearest among 64."""
    hits = []
    for k in range(rounds):
        told = distinct_scenes(200 + k, among)
        images = bundle.embed_images(_chw([scenes.render(s) for s in told]))
        texts = bundle.embed_texts([scenes.plain_caption(s) for s in told])
        hits.append((images @ texts.T).argmax(1) == torch.arange(among))
    return float(torch.cat(hits).float().mean())


def style_words(bundle: Bundle, count: int) -> dict[str, dict[str, float]]:
    """For samples of each known style: change of the CLIP score when the right, or a wrong, style word joins the text.

    `unprompted`: the styled text's score for samples of the same seeds drawn without the word, less that of the styled.
    """
    told = [_scene(105, k) for k in range(count)]
    plain = [scenes.plain_words(s) for s in told]
    neutral = bundle.embed_texts(plain)
    written = {name: [scenes.styled_caption(s, styles.STYLE_WORDS[name]) for s in told] for name in styles.KNOWN}
    texts = {name: bundle.embed_texts(prompts) for name, prompts in written.items()}
    photos = bundle.embed_images(bundle.sample([f"a photo of {p}" for p in plain], seed=9000))
    out = {}
    for name, prompts in written.items():
        images = bundle.embed_images(bundle.sample(prompts, seed=9000))

        def score(text: Tensor, of: Tensor = images) -> float:
            return float((of * text).sum(1).mean())

        wrong = float(np.mean([score(texts[other]) for other in texts if other != name]))
        base = score(neutral)
        out[name] = {
            "right": score(texts[name]) - base,
            "wrong": wrong - base,
            "unprompted": score(texts[name], photos) - score(texts[name]),
        }
    return out


def load_seconds(folder: Path) -> float:
    """Seconds to open the pipeline, libraries already imported."""
    Bundle(folder).pipe  # noqa: B018
    began = time.perf_counter()
    Bundle(folder).pipe  # noqa: B018
    return time.perf_counter() - began


def sample_seconds(bundle: Bundle) -> float:
    prompts = [scenes.plain_caption(_scene(106, k)) for k in range(16)]
    bundle.sample(prompts[:2], steps=2)
    began = time.perf_counter()
    bundle.sample(prompts, batch=16)
    return time.perf_counter() - began


def measure(folder: Path, cache: Path, quick: bool) -> dict:
    bundle = Bundle(folder)
    result: dict = {"load_s": load_seconds(folder), "sample_16_s": sample_seconds(bundle)}
    result["bundle_mb"] = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**20
    result["psnr_db"] = reconstruction(bundle, 32 if quick else 128)
    result["retrieval_of_64"] = retrieval(bundle, 2 if quick else 8)
    result["samples"] = 96 if quick else 500
    result["followed"] = captions_followed(bundle, cache, result["samples"])
    result["style_words"] = style_words(bundle, 4 if quick else 16)
    return result


def verdicts(r: dict) -> list[tuple[str, str, str, bool]]:
    """Rows: what, measured, bar, met."""
    rows = [(k, f"{r['followed'][k]:.1%}", f">= {bar:.0%}", r["followed"][k] >= bar) for k, bar in BARS.items()]
    psnr, words = r["psnr_db"], r["style_words"]
    rows.append(("VAE, photo-like", f"{psnr['photo']:.1f} dB", ">= 28 dB", psnr["photo"] >= 28))
    worst = min(styles.HELD_OUT, key=lambda s: psnr[s])
    mean = float(np.mean([psnr[s] for s in styles.HELD_OUT]))
    rows.append(("VAE, held-out styles, mean", f"{mean:.1f} dB", ">= 23 dB", mean >= 23))
    rows.append((f"VAE, worst held-out ({worst})", f"{psnr[worst]:.1f} dB", ">= 23 dB", psnr[worst] >= 23))
    rows.append(("CLIP retrieval among 64", f"{r['retrieval_of_64']:.1%}", ">= 90%", r["retrieval_of_64"] >= 0.9))
    good = sum(w["right"] > 0 > w["wrong"] for w in words.values())
    rows.append(("styles whose word moves CLIP rightly", f"{good} of {len(words)}", "all", good == len(words)))
    rows.append(("loading", f"{r['load_s']:.2f} s", "< 2 s", r["load_s"] < 2))
    rows.append(("16 images, 25 steps, guidance", f"{r['sample_16_s']:.1f} s", "< 8 s", r["sample_16_s"] < 8))
    rows.append(("bundle", f"{r['bundle_mb']:.1f} MB", "<= 32 MB", r["bundle_mb"] <= 32))
    return rows


def learned(results: Path) -> list[tuple[str, str, float, float]]:
    """Rows: method, style, share of the way to the stylised truth in RGB and perceptually, at the best strength.

    The best strength is the one whose smaller share is largest; rows of one method and style are averaged over seeds.
    """
    from bench.analysis.frames import load, where

    rows = where(load(results), [f"dataset={','.join(styles.HELD_OUT)}", "backbone=mini"])
    shares = rows[rows.metric.isin(["gap_closed_rgb", "gap_closed_lpips"])]
    keys = ["method", "dataset", "settings", "strength"]
    means = shares.pivot_table(index=keys, columns="metric", values="value").reset_index()
    means["least"] = means[["gap_closed_rgb", "gap_closed_lpips"]].min(axis=1)
    best = means.sort_values("least").groupby(["method", "dataset"]).tail(1).sort_values(["method", "least"])
    return list(best[["method", "dataset", "gap_closed_rgb", "gap_closed_lpips"]].itertuples(index=False))


def show_learned(results: Path) -> None:
    for method, style, rgb, perceptual in learned(results):
        bar = LEARNED.get(method)
        verdict = "" if bar is None else "met" if min(rgb, perceptual) >= bar else f"under {bar:.0%}"
        print(f"{method:12} {style:14} RGB {rgb:5.0%}   perceptual {perceptual:5.0%}   {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--cache", type=Path, default=cache_folder() / "mini-check")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--styles", type=Path, metavar="RESULTS", help="read learnt styles from these records instead")
    args = parser.parse_args()
    if args.styles:
        return show_learned(args.styles)
    result = measure(args.weights, args.cache, args.quick)
    for what, value, bar, met in verdicts(result):
        print(f"{what:40} {value:>10}   {bar:10} {'met' if met else 'MISSED'}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
