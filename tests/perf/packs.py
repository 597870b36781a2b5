"""How much packs bring: training, sampling and whole runs, beside one cell at a time as today's scripts do it.

    python tests/perf/packs.py                    mini on this CPU: about 10 minutes of one core
    python tests/perf/packs.py --small            a quick look, some minutes
    python tests/perf/packs.py --compile          also compiled blocks, at K = 1 and the largest K
    python tests/perf/packs.py --device cuda --backbone sd15 --compile    full size, random weights, 512 pixels
    python tests/perf/packs.py --device cuda --backbone sdxl --compile    the same at 1024 pixels
    python tests/perf/packs.py --backbone sdxl --compile --small          a tiny SDXL on the CPU: only tries the code

Ours and the script take turns, an item each, so that a busy spell of the machine hits both; a ratio is the median of
the turns. Each row is written as soon as it is measured, the most telling first; none begins later than `--minutes`
after the start, and `--resume` measures only what the file lacks. Writes packs-<backbone>.json and .md.

Seconds are of CPU and one thread on a CPU, so a busy machine changes them little; of the clock on a GPU.

Targets: on mini packed training 1.5 times the runs an hour of the script, one by one; on a GPU packed training 5 times
on SD 1.5 (K = 16) and 2 times on SDXL, and K = 1 no slower than the script.
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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import pack_work as work  # noqa: E402
import torch  # noqa: E402
from pack_work import Peers, Timed, clock, closed, interleaved  # noqa: E402
from tabulate import tabulate  # noqa: E402

from bench.cell import Cell  # noqa: E402
from bench.data import loading  # noqa: E402
from bench.files import atomic_write  # noqa: E402
from bench.sampling.sampler import Sampler  # noqa: E402
from bench.sweeps.packs import run_pack  # noqa: E402
from bench.training.compiling import backends_of  # noqa: E402

STEPS = 500  # of a whole run
LPIPS = {"_target_": "metrics.networks.LpipsNet", "name": "lpips-alex-64", "size": 64,
         "weights": "bench/mini/weights/lpips/alexnet.safetensors"}  # fmt: skip
HOW = {"plain": ((), False), "compiled": (("compile",), False), "compiled, CUDA graphs": (("compile",), True)}
WARM = {"plain": 1, "compiled": 2, "compiled, CUDA graphs": 4}  # graphs are recorded in the third item


@dataclass(frozen=True)
class Case:
    """One row to measure. `cells` is K; for sampling the row's name says how many cells share a pass."""

    part: str  # training | sampling
    method: str
    how: str
    cells: int = 1

    def key(self) -> dict[str, Any]:
        return {"part": self.part, "method": self.method, "how": self.how, "K": self.cells}


def cases(options: argparse.Namespace) -> list[Case]:
    """The most telling first; CUDA graphs late: what goes wrong there harms no other row."""
    ends, rest = [options.cells[0], options.cells[-1]], list(options.cells[1:-1])
    most = [Case("training", "dreambooth", "plain", k) for k in (ends[0], *rest[:1])]
    most += [Case("sampling", "pair", how) for how in ("guided", "guided, packed", "plain")]
    most += [Case("training", "dreambooth", "plain", k) for k in (*rest[1:], ends[1])]
    more = [Case("training", "pair", "plain", k) for k in options.cells]
    if options.compile:
        most += [Case("training", "dreambooth", "compiled", k) for k in ends]
        more += [Case("training", "dreambooth", "compiled, CUDA graphs", k) for k in ends if options.device == "cuda"]
    return most + more


# --- what is measured -------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """A loaded backbone, the peers, and how often to measure."""

    options: argparse.Namespace
    backbone: Any
    dataset: Any
    peers: Peers
    full: dict[str, int] = field(default_factory=dict)  # method -> the K that ran out of memory

    def row(self, case: Case) -> dict[str, Any]:
        if case.cells >= self.full.get(case.method, 10**6):
            return {"failure": f"not tried: K = {self.full[case.method]} ran out of memory"}
        if self.options.device == "cuda":
            torch.cuda.empty_cache()
        try:
            return self._training(case) if case.part == "training" else self._sampling(case)
        except torch.OutOfMemoryError:
            self.full[case.method] = case.cells
            return {"failure": "out of memory"}
        except Exception as error:  # the other rows are worth having
            return {"failure": f"{type(error).__name__}: {str(error)[:300]}"}

    def _training(self, case: Case) -> dict[str, Any]:
        method, (ways, graphs) = work.method_of(case.method, self.options.where), HOW[case.how]
        ours = self._timed(work.training(self.backbone, method, self.dataset, case.cells, ways, graphs))
        peer = [self._timed(self.peers.training())] if case.method == "dreambooth" else []
        row = self._turns(ours, peer, case.cells, WARM[case.how])
        return row | {"failure": backends_of(self.backbone).failure if ways else None}

    def _sampling(self, case: Case) -> dict[str, Any]:
        sampler, method = self.options.sampler, work.method_of("pair", self.options.where)
        ours = self._timed(work.drawing(self.backbone, method, self.dataset, case.how, sampler))
        peer = [self._timed(self.peers.drawing(sampler))] if case.how != "plain" else []
        return self._turns(ours, peer, sampler.batch, 1)

    def _timed(self, items: Iterator[Any]) -> Timed:
        return Timed(items, self.options.device)

    def _turns(self, ours: Timed, peer: list[Timed], share: int, warm: int) -> dict[str, Any]:
        """Rates of steps or images, `share` of them to an item of ours and one to an item of the peer's."""
        try:
            for other in peer:
                other.warm(1)
            first_s = ours.warm(warm)
            interleaved([ours, *peer], self.options.ticks)
        finally:
            closed([ours, *peer])
        row: dict[str, Any] = {"per_s": share / float(np.median(ours.seconds)), "first_s": first_s}
        for other in peer:
            row["peer_per_s"] = 1 / float(np.median(other.seconds))
            row["ratio"] = float(np.median(np.array(other.seconds) / np.array(ours.seconds))) * share
        if self.options.device == "cuda":
            row["peak_gb"] = ours.peak_gb - self.peers.bytes() / 1e9
        return row


def whole_runs(options: argparse.Namespace, folder: Path, cells: int) -> float:
    """Seconds of everything but training steps of one cell, from whole cells of one step through the pipe."""
    made = [a_cell(options, folder, seed) for seed in range(cells + 1)]
    run_pack(made[:1], 1)  # warms up: backbone, baseline, class images
    started = clock(options.device)
    records = run_pack(made[1:], cells)
    assert [record.status for record in records] == ["done"] * cells, [record.reason for record in records]
    return (clock(options.device) - started) / cells


def a_cell(options: argparse.Namespace, results: Path, seed: int) -> Cell:
    recipe = {"_target_": "bench.contracts.Recipe", "steps": 1, "lr": 1e-4, "clip_norm": 1.0}
    method = {"_target_": "methods.dreambooth.DreamBooth", "name": "dreambooth", "rank": 4, "where": options.where}
    metrics = {"style_gram": {"_target_": "metrics.style.StyleGram", "network": LPIPS}}
    mini = {"_target_": "bench.backbones.stable_diffusion.StableDiffusion", "path": work.MINI, "dtype": "float32"}
    sampler = options.sampler
    return Cell(
        method=method | {"recipe": recipe}, dataset=work.described(),
        backbone=mini | {"name": "mini", "resolution": 64, "device": options.device},
        trainer={"lr_scale": 1.0, "prior_images": 1, "resample": True},
        sampler={"steps": sampler.steps, "cfg": sampler.cfg, "batch": sampler.batch}, metrics=metrics,
        tracker={"_target_": "bench.track.Silent"}, seed=seed, strengths=(1.0,), results=results,
    )  # fmt: skip


def start_up() -> float:
    """CPU seconds until a fresh process has loaded `mini`."""
    code = f"from bench.backbones.stable_diffusion import StableDiffusion; StableDiffusion({work.MINI!r}, 64)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


# --- the order of things ----------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """All that was found so far, again after every row."""
    torch.set_num_threads(options.threads)
    found = begun(options)
    left = [case for case in cases(options) if not any(same(row, case) for row in found["rows"])]
    if left:
        backbone = work.backbone_of(
            options.backbone, options.resolution, options.device, options.small, options.weights or folder
        )
        dataset = loading.load(work.described(), options.resolution)
        bench = Bench(options, backbone, dataset, Peers(backbone, dataset, options.where))
    while left:
        found["left"] = len(left)
        yield found
        if late(options):
            return
        case = left.pop(0)
        found["rows"].append(case.key() | bench.row(case))
        print(f"  {line(found['rows'][-1])}", file=sys.stderr, flush=True)
    if options.backbone == "mini" and not late(options):
        found["start_up_s"] = start_up()
        sizes = (1, options.cells[-1])
        found["rest_s"] = {str(k): whole_runs(options, folder / f"results{k}", k) for k in sizes}
    yield found | {"left": 0}


def begun(options: argparse.Namespace) -> dict[str, Any]:
    """What the file holds of the same measurement, without rows that failed, or the beginning of a new one."""
    new: dict[str, Any] = {"machine": machine(options), "rows": []}
    path = file_of(options)
    if options.resume and path.is_file():
        old = json.loads(path.read_text())
        if all(old["machine"][key] == new["machine"][key] for key in ("device", "backbone", "resolution", "small")):
            return old | {"rows": [row for row in old["rows"] if not row.get("failure")]}
    return new


def same(row: dict[str, Any], case: Case) -> bool:
    return case.key().items() <= row.items()


def late(options: argparse.Namespace) -> bool:
    return time.perf_counter() - options.started > 60 * options.minutes


def machine(options: argparse.Namespace) -> dict[str, Any]:
    cuda = options.device == "cuda"
    device = torch.cuda.get_device_name() if cuda else f"CPU ({platform.processor() or platform.machine()})"
    return {"device": device, "backbone": options.backbone, "resolution": options.resolution, "small": options.small,
            "threads": options.threads, "torch": torch.__version__, "cores": os.cpu_count(),
            "load": os.getloadavg()[0], "seconds": "clock" if cuda else "CPU", "command": " ".join(sys.argv),
            "images_per_run": work.IMAGES, "sampler_steps": options.sampler.steps}  # fmt: skip


# --- the report -------------------------------------------------------------------------------------------------------


def line(row: dict[str, Any]) -> str:
    head = f"{row['part']}, {row['method']}, {row['how']}, K = {row['K']}: "
    if "per_s" not in row:
        return head + row["failure"]
    beside = f", {row['ratio']:.2f} x the script beside it" if "ratio" in row else ""
    return head + f"{row['per_s']:.3g}/s{beside}" + (f"; {row['failure']}" if row.get("failure") else "")


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Over the script beside it; Pair Customization's training, which has none here, over our own K = 1."""
    made: dict[str, float] = {}
    good = [row for row in rows if "per_s" in row]
    plain = [row for row in good if (row["part"], row["how"]) == ("training", "plain")]
    for row in [row for row in plain if row["method"] == "dreambooth"]:
        made[f"dreambooth: K = {row['K']} over the script"] = row["ratio"]
    for method in ("dreambooth", "pair"):
        ours = {row["K"]: row["per_s"] for row in plain if row["method"] == method}
        best = max(ours, key=lambda k: ours[k], default=1)
        if best != 1 and 1 in ours:
            made[f"{method}: packed training (K = {best}) over our K = 1"] = ours[best] / ours[1]
    for row in good:
        twin = next((p for p in plain if (p["method"], p["K"]) == (row["method"], row["K"])), None)
        if row["how"].startswith("compiled") and twin is not None and not row.get("failure"):
            made[f"{row['method']}: K = {row['K']} {row['how']} over plain"] = row["ratio"] / twin["ratio"]
        if row["part"] == "sampling" and "ratio" in row:
            made[f"sampling: {row['how']} over the authors' pipeline"] = row["ratio"]
    return made


def rendered(found: dict[str, Any]) -> str:
    about = found["machine"]
    size = "tiny networks: this tries the code and measures nothing" if about["small"] else "full size"
    small = about["small"] and about["backbone"] != "mini"
    where = (
        f"{about['backbone']}, {about['resolution']} pixels, {size if small else 'full size'}, on {about['device']}."
    )
    if about["seconds"] == "CPU":
        where += " Seconds of a CPU: they say nothing of a GPU."
    parts = [where]
    for part, unit in (("training", "steps/s"), ("sampling", "images/s")):
        rows = [row for row in found["rows"] if row["part"] == part]
        keys = ("method", "how", "K", "per_s", "peer_per_s", "ratio", "peak_gb", "first_s", "failure")
        heads = [part, "how", "K", unit, f"script beside it, {unit}", "x", "peak GB", "s to warm up", "failure"]
        parts.append(tabulate([[row.get(key) for key in keys] for row in rows], heads, "github", floatfmt=".3g"))
    parts.append(tabulate(ratios(found["rows"]).items(), ["ratio", "x"], "github", floatfmt=".2f"))
    lines = [f"{found['left']} rows were not measured for want of time"] if found.get("left") else []
    if "start_up_s" in found:
        lines.append(f"start-up to a loaded backbone: {found['start_up_s']:.1f} s")
    lines += [whole_run(found, int(k), rest) for k, rest in found.get("rest_s", {}).items()]
    return "\n\n".join([*parts, "\n".join([*lines, str(about)])]) + "\n"


def whole_run(found: dict[str, Any], cells: int, rest: float) -> str:
    row = next(row for row in found["rows"] if same(row, Case("training", "dreambooth", "plain", cells)))
    total = rest + STEPS / row["per_s"]
    return (f"dreambooth at K = {cells}: {rest:.1f} s a run outside training steps, {rest / total:.0%} of its time; "
            f"{3600 / total:.1f} whole runs an hour")  # fmt: skip


def file_of(options: argparse.Namespace) -> Path:
    return options.out / f"packs-{options.backbone}.json"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=work.PLACES, default="mini")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--resolution", type=int, help="pixels; default: 64, 512 and 1024, tiny networks 32")
    parser.add_argument("--small", action="store_true", help="few sizes and ticks; of sd15 and sdxl tiny networks")
    parser.add_argument("--compile", action="store_true", help="also time compiled blocks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=30, help="no row begins later")
    parser.add_argument("--resume", action="store_true", help="keep the rows of the file in --out")
    parser.add_argument("--weights", type=Path, help="folder that keeps random weights for the next start")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "perf")
    options = parser.parse_args()
    tiny = options.small and options.backbone != "mini"
    if options.backbone != "mini" and options.device == "cpu" and not tiny:
        sys.exit(
            "packs: sd15 and sdxl are timed on a GPU; type --device cuda, or --small for tiny networks on the CPU."
        )
    options.started, options.where = time.perf_counter(), work.PLACES[options.backbone]
    options.resolution = options.resolution or (32 if tiny else work.RESOLUTIONS[options.backbone])
    options.cells = (1, 4) if tiny else (1, 4, 8) if options.small else (1, 4, 2, 8, 16)
    options.ticks = 2 if options.small else 10
    work.RANKS["pair"] = 8 if tiny else work.RANKS["pair"]
    batch = 4 if options.resolution > 512 else 8
    options.sampler = Sampler(steps=2 if options.small else 5, cfg=4.0, batch=batch)
    return options


def main() -> None:
    options = parsed()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BENCH_CACHE"] = folder
        for found in measure(options, Path(folder)):
            atomic_write(file_of(options), json.dumps(found, indent=1).encode())
            atomic_write(file_of(options).with_suffix(".md"), rendered(found).encode())
    print(rendered(found))


if __name__ == "__main__":
    main()
