"""How much packs bring: training, sampling and whole runs, beside one cell at a time as today's scripts do it.

    python tests/perf/packs.py                    mini on this CPU: about 10 minutes of one core
    python tests/perf/packs.py --small            a quick look, some minutes
    python tests/perf/packs.py --compile          also plain against compiled blocks, at K = 1 and the largest K
    python tests/perf/packs.py --backbone sd15 --compile    full architecture, random weights, 512 pixels, on a GPU
    python tests/perf/packs.py --backbone sdxl --compile    the same; builds its weights in a temporary folder first

The last two stay below 8 minutes by this reckoning: weights 1 (SD 1.5) to 2 minutes, training rows of 11 ticks from
0.2 s (K = 1) to some 3 s (SDXL at K = 16) 1 to 3, sampling half a one; then up to 6 compiled rows of a minute at most,
none of which begins later than `LAST_S` after the start.

Seconds are of CPU and one thread on a CPU, so a busy machine does not change them; of the clock on a GPU. Writes
results/perf/packs-<backbone>.json and .md. The GPU part was written without one and has never run.

Targets: on mini packed training 1.5 times the runs an hour of the script, one by one, and guided sampling 2 times three
calls; on a GPU packed training 5 times on SD 1.5 (K = 16) and 2 times on SDXL, and K = 1 no slower than the script.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "bench" / "backbones"), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from pack_peers import guided_images, updates, with_adapters  # noqa: E402
from tabulate import tabulate  # noqa: E402

from bench.adapters.bank import Bank  # noqa: E402
from bench.cell import Cell  # noqa: E402
from bench.contracts import Example, Method, Recipe  # noqa: E402
from bench.data import datasets as data  # noqa: E402
from bench.files import atomic_write  # noqa: E402
from bench.sampling.sampler import Request, Sampler, Untouched, sample, shots  # noqa: E402
from bench.seeding import generator  # noqa: E402
from bench.sweeps.packs import run_pack  # noqa: E402
from bench.training.compiling import backends_of  # noqa: E402
from bench.training.latents import Latents  # noqa: E402
from bench.training.trainer import Job, Training  # noqa: E402
from methods.dreambooth import DreamBooth  # noqa: E402
from methods.pair import PairCustomization  # noqa: E402

STEPS, IMAGES = 500, 20  # of a whole run
LAST_S = 390  # on a GPU the last compiled row begins so long after the start
MINI = "bench/mini/weights/diffusion"
GPU = torch.cuda.is_available()
PLACES = {"mini": "all", "sd15": "attention", "sdxl": "attention"}


def clock() -> float:
    if GPU:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def seconds_each(work: Iterator[Any], count: int) -> float:
    """Of one item: the median of `count` after one to warm up."""
    next(work)
    times = [clock()]
    for _ in range(count):
        next(work)
        times.append(clock())
    return float(np.median(np.diff(times)))


# --- the parts --------------------------------------------------------------------------------------------------------


def backbone_of(name: str, folder: Path) -> Any:
    from bench.backbones.sdxl import StableDiffusionXL
    from bench.backbones.stable_diffusion import StableDiffusion

    if name == "mini":
        return StableDiffusion(MINI, 64)
    import test_backbones_full as full

    build, kind = {"sd15": (full.stable_diffusion, StableDiffusion), "sdxl": (full.sdxl, StableDiffusionXL)}[name]
    with full.built_in(torch.float16):
        build().save_pretrained(folder, variant="fp16")
    return kind(str(folder), 512, dtype="bfloat16", name=name, variant="fp16", channels_last=True)


def methods(where: str) -> dict[str, Method]:
    recipe = Recipe(steps=10**6, lr=1e-4, clip_norm=1.0)
    return {
        "dreambooth, rank 4": DreamBooth(recipe, rank=4, where=where),
        "pair, rank 32": PairCustomization(recipe, rank=32, content_steps=0, where=where),
    }


def described(few: bool = True) -> dict[str, Any]:
    plan = data.describe("halftone")
    return plan | {"prompts": plan["prompts"][: IMAGES // 2], "seeds": [0, 1]} if few else plan


def training(backbone: Any, method: Any, dataset: Any, cells: int, backends: Sequence[str] = (), graphs: bool = False):
    """Steps of all cells of a pack, run in some of the backends of `bench.training.compiling`."""
    own = [Example(dataset.references[0].image, f"a photo of a {dataset.noun}", dataset.noun)]
    latents = Latents(dataset, backbone, method.recipe, own)
    bank = Bank(backbone, method.adapters(dataset), [generator("adapters", seed) for seed in range(cells)])
    pack = Training(bank)
    for cell in range(cells):
        pack.add(Job(cell, method, latents, method.recipe, seed=cell))
    try:
        while True:
            with backends_of(backbone).running(backends, graphs):
                finished = list(pack.tick())
            if finished:
                yield
    finally:
        bank.close()


# --- what is measured -------------------------------------------------------------------------------------------------


def train_rows(backbone: Any, dataset: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The best of some rounds through all sizes, so that a busy spell of the machine hits no size alone."""
    rounds = [list(_train_rows(backbone, dataset, options)) for _ in range(options.rounds)]
    return [min(same, key=lambda row: row["step_s"]) for same in zip(*rounds, strict=True)]


def _train_rows(backbone: Any, dataset: Any, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    pixels = torch.from_numpy(np.stack([dataset.pairs[0].style.image, dataset.references[0].image]))
    prompts = ["a photo of a dog in sks style", "a photo of a dog"]
    for name, method in methods(options.where).items():
        if isinstance(method, DreamBooth):
            script = partial(updates, backbone, pixels, prompts, method.rank, options.where)
            yield _row(name, "train_dreambooth_lora, one by one", 1, script, options.ticks)
        for cells in options.cells:
            yield _row(name, "ours", cells, partial(training, backbone, method, dataset, cells), options.ticks)


def _row(method: str, how: str, cells: int, start: Callable[[], Iterator], ticks: int) -> dict[str, Any]:
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    work: Any = start()
    try:
        step_s = seconds_each(work, ticks) / cells
    except torch.OutOfMemoryError:
        step_s = float("inf")
    finally:
        work.close()
    print(f"  {method}, {how}, K = {cells}: {1 / step_s:.2f} steps/s", file=sys.stderr, flush=True)
    peak = torch.cuda.max_memory_allocated() / 1e9 if GPU else float("nan")
    return {"method": method, "how": how, "K": cells, "step_s": step_s, "steps_per_s": 1 / step_s, "peak_gb": peak}


def compiled_rows(backbone: Any, dataset: Any, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Plain and compiled blocks beside each other; `seconds_each` leaves out the first step, where it is compiled.

    CUDA graphs come last: what goes wrong there harms no other row.
    """
    kinds = {"plain": ((), False), "compiled": (("compile",), False)}
    cases = [(cells, how, *kinds[how]) for cells in (1, options.cells[-1]) for how in kinds]
    if GPU:
        cases += [(cells, "compiled, CUDA graphs", ("compile",), True) for cells in (1, options.cells[-1])]
    for cells, how, backends, graphs in cases:
        if GPU and time.perf_counter() - options.started > LAST_S:
            return
        yield _compiled_row(backbone, dataset, options, cells, how, backends, graphs)


def _compiled_row(
    backbone: Any, dataset: Any, options: argparse.Namespace, cells: int, how: str, *backends: Any
) -> dict:
    (name, method), *_ = methods(options.where).items()
    started = clock()
    try:
        row = _row(name, how, cells, partial(training, backbone, method, dataset, cells, *backends), options.ticks)
    except RuntimeError as error:
        return {"K": cells, "how": how, "steps_per_s": 0.0, "first_s": float("nan"), "failure": str(error)[:200]}
    first_s = clock() - started - options.ticks * cells * row["step_s"]
    return row | {"first_s": first_s, "failure": backends_of(backbone).failure}


def sample_rows(backbone: Any, dataset: Any, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Images per second: plain, guided, guided in a pack of four cells, and one by one in three calls."""
    method, sampler = methods(options.where)["pair, rank 32"], options.sampler
    method.start_t = 1000  # guidance at every step
    for how, guide, cells in (("plain", Untouched(), 1), ("guided", method, 1), ("guided, packed", method, 4)):
        specs = method.adapters(dataset) if guide is method else {}
        bank = Bank(backbone, specs, [generator(cell) for cell in range(cells)])
        chosen = shots(dataset)[: sampler.batch // cells]
        requests = [Request(cell, guide, dataset, chosen, 3.0) for cell in range(cells)]
        yield _images(how, len(chosen) * cells, partial(_all, sample, bank, requests, sampler))
        bank.close()
    unet = with_adapters(backbone, 32, options.where)
    prompts = [(prompt, dataset.styled(prompt)) for prompt in dataset.prompts[:2]]
    yield _images("three calls, one by one", 2, partial(_all, guided_images, backbone, unet, prompts, sampler))


def _all(draw: Callable[..., Iterator], *arguments: Any) -> None:
    for _ in draw(*arguments):
        pass


def _images(how: str, count: int, draw: Callable[[], Any]) -> dict[str, Any]:
    started = clock()
    draw()
    image_s = (clock() - started) / count
    print(f"  sampling, {how}: {1 / image_s:.3f} images/s", file=sys.stderr, flush=True)
    return {"how": how, "image_s": image_s, "images_per_s": 1 / image_s}


def whole_runs(options: argparse.Namespace, folder: Path, cells: int) -> float:
    """Seconds of everything but training steps of one cell, from whole cells of one step through the pipe."""
    made = [a_cell(options, folder, seed) for seed in range(cells + 1)]
    run_pack(made[:1], 1)  # warms up: backbone, baseline, class images
    started = clock()
    records = run_pack(made[1:], cells)
    assert [record.status for record in records] == ["done"] * cells, [record.reason for record in records]
    return (clock() - started) / cells


def a_cell(options: argparse.Namespace, results: Path, seed: int) -> Cell:
    recipe = {"_target_": "bench.contracts.Recipe", "steps": 1, "lr": 1e-4, "clip_norm": 1.0}
    method = {"_target_": "methods.dreambooth.DreamBooth", "name": "dreambooth", "rank": 4, "where": options.where}
    metrics = {"style_gram": {"_target_": "metrics.style.StyleGram",
                              "network": {"_target_": "metrics.networks.MiniPerceptual"}}}  # fmt: skip
    mini = {"_target_": "bench.backbones.stable_diffusion.StableDiffusion", "path": MINI, "dtype": "float32"}
    sampler = options.sampler
    return Cell(
        method=method | {"recipe": recipe}, dataset=described(), backbone=mini | {"name": "mini", "resolution": 64},
        trainer={"lr_scale": 1.0, "prior_images": 1, "resample": True},
        sampler={"steps": sampler.steps, "cfg": sampler.cfg, "batch": sampler.batch}, metrics=metrics,
        tracker={"_target_": "bench.track.Silent"}, seed=seed, strengths=(1.0,), results=results,
    )  # fmt: skip


def start_up(name: str) -> float:
    """CPU seconds until a fresh process has loaded the backbone."""
    code = f"from bench.backbones.stable_diffusion import StableDiffusion; StableDiffusion({MINI!r}, 64)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, "-W", "ignore", "-c", code if name == "mini" else "import bench.training.trainer"],
                   cwd=ROOT, check=True)  # fmt: skip
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


# --- the report -------------------------------------------------------------------------------------------------------


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    backbone = backbone_of(options.backbone, folder / "weights")
    dataset = data.load(described(), backbone.resolution)
    found: dict[str, Any] = {"training": list(train_rows(backbone, dataset, options))}
    found["sampling"] = list(sample_rows(backbone, dataset, options))
    found["start_up_s"] = start_up(options.backbone)
    if options.compile:
        found["compiled"] = list(compiled_rows(backbone, dataset, options))
    if options.backbone == "mini":
        found["rest_s"] = {str(k): whole_runs(options, folder / f"results{k}", k) for k in (1, options.cells[-1])}
    return found | {"machine": machine(options), "ratios": ratios(found)}


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """Of rates; a peer that does not train in this table is our own K = 1."""
    made: dict[str, float] = {}
    for method in dict.fromkeys(row["method"] for row in found["training"]):
        rows = [row for row in found["training"] if row["method"] == method]
        ours = {row["K"]: row["steps_per_s"] for row in rows if row["how"] == "ours"}
        best = max(ours, key=lambda k: ours[k])
        made[f"{method}: packed training (K = {best}) over our K = 1"] = ours[best] / ours[1]
        for row in rows:
            if row["how"] != "ours":
                made[f"{method}: packed training (K = {best}) over the script"] = ours[best] / row["steps_per_s"]
                made[f"{method}: K = 1 over the script"] = ours[1] / row["steps_per_s"]
    drawn = {row["how"]: row["images_per_s"] for row in found["sampling"]}
    made["guided sampling over three calls"] = drawn["guided"] / drawn["three calls, one by one"]
    made["guided sampling, packed, over three calls"] = drawn["guided, packed"] / drawn["three calls, one by one"]
    return made


def machine(options: argparse.Namespace) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if GPU else platform.processor() or platform.machine()
    return {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__, "cores": os.cpu_count(),
            "load": os.getloadavg()[0], "seconds": "clock" if GPU else "CPU", "command": " ".join(sys.argv),
            "steps_per_run": STEPS, "images_per_run": IMAGES, "sampler_steps": options.sampler.steps}  # fmt: skip


def rendered(found: dict[str, Any]) -> str:
    rows = [
        [row["method"], row["how"], row["K"], row["steps_per_s"], 3600 * row["steps_per_s"] / STEPS, row["peak_gb"]]
        for row in found["training"]
    ]
    heads = ["method", "how", "K", "steps/s", f"trainings of {STEPS} steps/h", "peak GB"]
    parts = [tabulate(rows, heads, "github", floatfmt=".3g")]
    rows = [[row["K"], row["how"], row["steps_per_s"], row["first_s"], row["failure"]]
            for row in found.get("compiled", [])]  # fmt: skip
    if rows:
        parts.append(tabulate(rows, ["K", "blocks", "steps/s", "s to the first step", "failure"], "github",
                              floatfmt=".3g"))  # fmt: skip
    parts.append(tabulate([[row["how"], row["images_per_s"]] for row in found["sampling"]],
                          ["sampling", "images/s"], "github", floatfmt=".3g"))  # fmt: skip
    parts.append(tabulate(found["ratios"].items(), ["ratio", "x"], "github", floatfmt=".2f"))
    lines = [f"start-up to a loaded backbone: {found['start_up_s']:.1f} s"]
    for k, rest in found.get("rest_s", {}).items():
        step_s = next(row["step_s"] for row in found["training"] if row["how"] == "ours" and row["K"] == int(k))
        share, runs = rest / (rest + STEPS * step_s), 3600 / (rest + STEPS * step_s)
        lines.append(f"dreambooth at K = {k}: {rest:.1f} s a run outside training steps, {share:.0%} of its time; "
                     f"{runs:.1f} whole runs an hour")  # fmt: skip
    return "\n\n".join([*parts, "\n".join(lines), str(found["machine"])]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=PLACES, default="mini")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--compile", action="store_true", help="also time compiled blocks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "perf")
    options = parser.parse_args()
    options.started = time.perf_counter()
    options.where = PLACES[options.backbone]
    options.cells = (1, 4, 8) if options.small else (1, 2, 4, 8, 16)
    options.rounds = 1 if options.small or GPU else 2
    options.ticks = (10 if GPU else 5) if not options.small else 2
    options.sampler = Sampler(steps=2 if options.small else 5, cfg=4.0, batch=8)
    if options.backbone != "mini" and not GPU:
        sys.exit("packs: sd15 and sdxl are timed on a GPU, and there is none here; leave --backbone out for mini.")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BENCH_CACHE"] = folder
        found = measured(options, Path(folder))
    options.out.mkdir(parents=True, exist_ok=True)
    atomic_write(options.out / f"packs-{options.backbone}.json", json.dumps(found, indent=1).encode())
    atomic_write(options.out / f"packs-{options.backbone}.md", rendered(found).encode())
    print(rendered(found))


if __name__ == "__main__":
    main()
