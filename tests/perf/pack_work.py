"""What tests/perf/packs.py and tests/perf/device_profile.py run: backbones, our packs and the peers, item by item."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pack_peers import guided_image, updates, with_adapters

from bench.adapters.bank import Bank
from bench.contracts import Example, Method, Recipe
from bench.data import schema
from bench.sampling.sampler import Request, Sampler, Untouched, sample, shots
from bench.seeding import generator
from bench.training.compiling import backends_of
from bench.training.latents import Latents
from bench.training.trainer import Job, Training
from methods.dreambooth import DreamBooth
from methods.pair import PairCustomization

IMAGES = 20  # of a whole run
MINI = "bench/mini/weights/diffusion"
RESOLUTIONS = {"mini": 64, "sd15": 512, "sdxl": 1024}
PLACES = {"mini": "all", "sd15": "attention", "sdxl": "attention"}
RANKS = {"dreambooth": 4, "pair": 32}


# --- time and memory --------------------------------------------------------------------------------------------------


def clock(device: str) -> float:
    """Seconds: of the clock on a GPU; of this process on a CPU, which a busy machine hardly changes."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


@dataclass
class Timed:
    """An endless piece of work, with the seconds and the peak memory of its items."""

    items: Iterator[Any]
    device: str
    seconds: list[float] = field(default_factory=list)
    peak_gb: float = 0.0  # of the GPU

    def warm(self, count: int) -> float:
        """Seconds of the first items, which are not counted: code is compiled and memory is set aside in them."""
        started = clock(self.device)
        for _ in range(count):
            next(self.items)
        return clock(self.device) - started

    def item(self) -> None:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        started = clock(self.device)
        next(self.items)
        self.seconds.append(clock(self.device) - started)
        if self.device == "cuda":
            self.peak_gb = max(self.peak_gb, torch.cuda.max_memory_allocated() / 1e9)


def interleaved(works: Sequence[Timed], count: int) -> None:
    """One item of each in turn, so that a busy spell of the machine hits all of them."""
    for _ in range(count):
        for work in works:
            work.item()


# --- backbones --------------------------------------------------------------------------------------------------------


def backbone_of(name: str, resolution: int, device: str, small: bool, weights: Path) -> Any:
    """`mini`, or the full architecture with random weights that are kept in `weights`; tiny networks when small."""
    from bench.backbones.sdxl import StableDiffusionXL
    from bench.backbones.stable_diffusion import StableDiffusion

    if name == "mini":
        return StableDiffusion(MINI, resolution, device=device, name=name)
    folder = weights / (f"{name}-tiny" if small else name)
    if not folder.is_dir():
        _save_random(name, small, device, folder)
    kind = {"sd15": StableDiffusion, "sdxl": StableDiffusionXL}[name]
    variant = None if small else "fp16"
    return kind(str(folder), resolution, dtype="bfloat16", device=device, name=name, variant=variant,
                channels_last=device == "cuda")  # fmt: skip


def _save_random(name: str, small: bool, device: str, folder: Path) -> None:
    import random_pipelines as pipelines

    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    if small:
        {"sd15": pipelines.stable_diffusion, "sdxl": pipelines.sdxl}[name]().save_pretrained(unfinished)
    else:
        build = {"sd15": pipelines.full_stable_diffusion, "sdxl": pipelines.full_sdxl}[name]
        with pipelines.built_in(torch.float16), torch.device(device):  # a GPU draws the numbers in a second
            made = build()
        made.save_pretrained(unfinished, variant="fp16")
    unfinished.rename(folder)


def described(few: bool = True) -> dict[str, Any]:
    plan = schema.describe("halftone")
    return plan | {"prompts": plan["prompts"][: IMAGES // 2], "seeds": [0, 1]} if few else plan


def method_of(name: str, where: str) -> Method:
    """DreamBooth (LoRA) or Pair Customization with an endless recipe and guidance at every step."""
    recipe = Recipe(steps=10**6, lr=1e-4, clip_norm=1.0)
    if name == "dreambooth":
        return DreamBooth(recipe, rank=RANKS[name], where=where)
    made = PairCustomization(recipe, rank=RANKS[name], content_steps=0, where=where)
    made.start_t = 1000
    return made


# --- ours -------------------------------------------------------------------------------------------------------------


def training(
    backbone: Any, method: Any, dataset: Any, cells: int, ways: Sequence[str] = (), graphs: bool = False
) -> Iterator[None]:
    """Steps of all cells of a pack, run in some of the ways of `bench.training.compiling`."""
    own = [Example(dataset.references[0].image, f"a photo of a {dataset.noun}", dataset.noun)]
    latents = Latents(dataset, backbone, method.recipe, own)
    bank = Bank(backbone, method.adapters(dataset), [generator("adapters", seed) for seed in range(cells)])
    pack = Training(bank)
    for cell in range(cells):
        pack.add(Job(cell, method, latents, method.recipe, seed=cell))
    try:
        while True:
            with backends_of(backbone).running(ways, graphs):
                finished = list(pack.tick())
            for step in finished:
                if step.error is not None:
                    raise step.error
            if finished:
                yield
    finally:
        bank.close()


GUIDES: Mapping[str, tuple[bool, int]] = {"plain": (False, 1), "guided": (True, 1), "guided, packed": (True, 4)}


def drawing(backbone: Any, method: Method, dataset: Any, how: str, sampler: Sampler) -> Iterator[None]:
    """Draws `sampler.batch` images an item: of the backbone alone, guided, or guided in a pack of four cells."""
    guided, cells = GUIDES[how]
    guide = method if guided else Untouched()
    bank = Bank(backbone, method.adapters(dataset) if guided else {}, [generator(cell) for cell in range(cells)])
    chosen = shots(dataset)[: sampler.batch // cells]
    requests = [Request(cell, guide, dataset, chosen, 3.0) for cell in range(cells)]
    try:
        while True:
            for _ in sample(bank, requests, sampler):
                pass
            yield
    finally:
        bank.close()


# --- the peers --------------------------------------------------------------------------------------------------------


class Peers:
    """The scripts' UNets, copies of the backbone's with PEFT's adapters, each made when first asked for."""

    def __init__(self, backbone: Any, dataset: Any, where: str):
        self.backbone, self.dataset, self.where = backbone, dataset, where
        self._unets: dict[int, Any] = {}

    def training(self) -> Iterator[Any]:
        import numpy as np

        pair, reference = self.dataset.pairs[0], self.dataset.references[0]
        images = torch.from_numpy(np.stack([pair.style.image, reference.image]))
        prompts = ["a photo of a dog in sks style", "a photo of a dog"]
        return updates(self.backbone, self._unet(RANKS["dreambooth"]), images, prompts)

    def drawing(self, sampler: Sampler) -> Iterator[None]:
        """One image an item."""
        unet = self._unet(RANKS["pair"])
        while True:
            for prompt in self.dataset.prompts:
                guided_image(self.backbone, unet, prompt, self.dataset.styled(prompt), sampler)
                yield

    def _unet(self, rank: int) -> Any:
        if rank not in self._unets:
            self._unets = {rank: with_adapters(self.backbone, rank, self.where)}  # one at a time: each is a whole UNet
        return self._unets[rank]

    def bytes(self) -> int:
        """What the peers' networks occupy beside the backbone's own."""
        return sum(w.numel() * w.element_size() for unet in self._unets.values() for w in unet.parameters())


def closed(works: Sequence[Timed]) -> None:
    for work in works:
        close: Callable[[], None] = getattr(work.items, "close", lambda: None)
        close()
