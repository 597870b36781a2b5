"""Where an SDXL training step and a guided sampling step spend their time, as a share of each group of kernels.

    python tests/perf/device_profile.py --out DIR --what training     also writes a trace for chrome://tracing
    python tests/perf/device_profile.py --out DIR --what sampling --device cpu --small

Full architecture with random weights at 1024 pixels in bfloat16; DreamBooth LoRA (rank 4, one cell, two rows a step) or
Pair Customization's guidance of one image (three rows a step). `--small` takes tiny networks, to try the code.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

TRACE_MB = 15
GROUPS: Mapping[str, str] = {  # the first whose pattern is found in a kernel's or operator's name
    "attention": r"flash|fmha|attention|sdpa",
    "optimizer": r"multi_tensor|adam|foreach|optimizer",
    "normalisation": r"norm",
    "convolution": r"conv|fprop|dgrad|wgrad|winograd|implicit_gemm",
    "matrix product": r"gemm|nvjet|cutlass|cublas|splitk|matmul|\b(?:ad)?d?mm\b|\bb?a?d?d?bmm\b|::mm|::linear",
    "copies and casts": r"copy|memcpy|memset|\bcat\b|::cat|catarray|fill|::to\b|gather|index|contiguous|clone",
    "reduction": r"reduce|softmax|::sum|::mean|argmax",
    "element by element": r"elementwise|vectorized|::add|::mul|::div|::sub|gelu|silu|sigmoid|pow|lerp|triton",
}


def group(name: str) -> str:
    """The group of a kernel's or operator's name; "other" when none fits."""
    lower = name.lower()
    return next((group for group, pattern in GROUPS.items() if re.search(pattern, lower)), "other")


def shares(spent: Sequence[tuple[str, float]], step_ms: float) -> list[dict[str, Any]]:
    """Rows of the table from (name, milliseconds) of one step; what no kernel covers is "no kernel runs"."""
    rows: dict[str, dict[str, Any]] = {}
    for name, ms in spent:
        row = rows.setdefault(group(name), {"ms": 0.0, "calls": 0})
        row["ms"], row["calls"] = row["ms"] + ms, row["calls"] + 1
    idle = step_ms - sum(row["ms"] for row in rows.values())
    if idle > 0:
        rows["no kernel runs"] = {"ms": idle, "calls": 0}
    total = sum(row["ms"] for row in rows.values())
    ordered = sorted(rows.items(), key=lambda item: -item[1]["ms"])
    return [{"group": name, "share": row["ms"] / total, **row} for name, row in ordered]


def work_of(options: argparse.Namespace) -> Iterator[Any]:
    """Endless items: training steps of one cell, or draws of one guided image in `options.steps` steps."""
    import pack_work as work

    from bench.data import loading
    from bench.sampling.sampler import Sampler

    work.RANKS["pair"] = 8 if options.small else work.RANKS["pair"]
    resolution = 32 if options.small else work.RESOLUTIONS["sdxl"]
    backbone = work.backbone_of("sdxl", resolution, options.device, options.small, options.weights)
    dataset = loading.load(work.described(), resolution)
    where = work.PLACES["sdxl"]
    if options.what == "training":
        return work.training(backbone, work.method_of("dreambooth", where), dataset, 1)
    sampler = Sampler(steps=options.steps, cfg=5.0, batch=1)
    return work.drawing(backbone, work.method_of("pair", where), dataset, "guided", sampler)


def seconds(items: Iterator[Any], device: str, count: int) -> float:
    """Of an item, the median of some, without a profiler."""
    from pack_work import Timed

    timed = Timed(items, device)
    timed.warm(2)
    for _ in range(count):
        timed.item()
    return sorted(timed.seconds)[count // 2]


def profiled(items: Iterator[Any], device: str, trace: Path) -> list[tuple[str, float]]:
    """(name, milliseconds) of every kernel of one item; on a CPU of every operator, without what it calls."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=kinds) as profiler:
        next(items)
        if device == "cuda":
            torch.cuda.synchronize()
    profiler.export_chrome_trace(str(trace))
    if trace.stat().st_size > TRACE_MB * 1e6:
        trace.unlink()
    if device == "cuda":
        on_gpu = (event for event in profiler.events() if event.device_type == DeviceType.CUDA)
        kernels = [event for event in on_gpu if not _annotation(event)]
        return [(event.name, event.time_range.elapsed_us() / 1e3) for event in kernels]
    return [(event.name, event.self_cpu_time_total / 1e3) for event in profiler.events()]


def _annotation(event: Any) -> bool:
    """Spans that cover kernels which are counted themselves."""
    return getattr(event, "is_user_annotation", False) or event.name.startswith(("Optimizer.", "ProfilerStep"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--file", type=Path, help="the JSON file; default: profile-<what>.json in --out")
    parser.add_argument("--what", choices=("training", "sampling"), required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--weights", type=Path, default=ROOT / "build" / "device")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    options.steps = 2
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    items = work_of(options)
    found: dict[str, Any] = {"what": options.what, "item_ms": 1e3 * seconds(items, options.device, 5)}
    found["steps"] = options.steps if options.what == "sampling" else 1
    write(options, found)
    trace = options.out / f"trace-{options.what}.json.gz"
    spent = profiled(items, options.device, trace)
    totals: dict[str, float] = {}
    for name, ms in spent:
        totals[name] = totals.get(name, 0.0) + ms
    found["groups"] = shares(spent, found["item_ms"])
    found["longest"] = sorted(totals.items(), key=lambda item: -item[1])[:12]
    found["trace_mb"] = trace.stat().st_size / 1e6 if trace.is_file() else None
    found["took_s"] = time.perf_counter() - started
    write(options, found)
    for row in found["groups"]:
        print(f"{row['group']:20} {row['share']:6.1%} {row['ms']:9.3f} ms {row['calls']:6} calls", flush=True)


def write(options: argparse.Namespace, found: dict[str, Any]) -> None:
    path = options.file or options.out / f"profile-{options.what}.json"
    path.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
