"""How long all metrics of metrics=sd take, against the libraries called one after another on the same networks.

    python tests/perf/metrics_speed.py             500 images a side at 512 pixels: 45 minutes on one core
    python tests/perf/metrics_speed.py --images 100     a fifth of that, about the same ratios
    python tests/perf/metrics_speed.py --small     only to see that it works, half a minute

Networks have the real architectures and random weights, which take the same time. One thread; seconds are of CPU, so a
busy machine does not change them. Numbers of both sides are compared, too. Writes results/perf/metrics.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import speed_libraries
from speed_networks import Networks, stand_ins
from tabulate import tabulate

import bench.data.images
from bench.contracts import Dataset, Evaluation, Example, Images, Impossible, Pair
from bench.data.image_files import save_images
from bench.data.images import stored
from bench.files import atomic_write
from bench.paths import ROOT
from bench.settings import build
from metrics.features import feature_store
from metrics.fid import centred, trace_root
from metrics.prdc import Prdc
from metrics.vendi import Vendi

TARGETS = {"trace 100 x 500": 500.0, "trace full rank": 4.0, "all metrics": 3.0}
PROMPTS = 20


@contextmanager
def clock(times: dict[str, float], name: str) -> Iterator[None]:
    """CPU seconds of this process and all its threads."""
    started = time.process_time()
    try:
        yield
    finally:
        times[name] = times.get(name, 0.0) + time.process_time() - started
    print(f"  {name:45} {times[name]:9.2f} s", file=sys.stderr, flush=True)


# --- the trace term of the Frechet distance ----------------------------------------------------------------------


def trace(n: int, m: int, d: int) -> dict[str, Any]:
    """tr (S1 S2)^(1/2) of n and m items in d dimensions, from covariances by scipy, from the items by ours."""
    from scipy.linalg import sqrtm

    rng, times = np.random.default_rng(0), {}
    spectrum = np.arange(1, d + 1) ** -0.5
    (_, a), (_, b) = (centred(rng.normal(size=(rows, d)) * spectrum) for rows in (n, m))
    s1, s2 = a.T @ a, b.T @ b
    with clock(times, f"scipy sqrtm, {n} and {m} x {d}"):
        theirs = np.trace(sqrtm(s1 @ s2)).real
    tries = []
    for _ in range(3):
        started = time.process_time()
        ours = trace_root(a, b)
        tries.append(time.process_time() - started)
    (scipy_s,) = times.values()
    difference = abs(ours - theirs) / theirs
    return {"scipy_s": scipy_s, "ours_s": min(tries), "ratio": scipy_s / min(tries), "difference": difference}


# --- all metrics -------------------------------------------------------------------------------------------------


def pictures(n: int, pixels: int, seed: int) -> Iterator[np.ndarray]:
    """Smooth colours with grain, uint8 (3, P, P): they compress to about what drawn images do."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:pixels, 0:pixels] / pixels
    for _ in range(n):
        waves = [np.sin(8 * (a * x + b * y) + c) for a, b, c in rng.normal(size=(3, 3))]
        grain = rng.integers(-6, 7, (3, pixels, pixels))
        yield (128 + 90 * np.stack(waves) + grain).clip(0, 255).astype(np.uint8)


def lay_out(folder: Path, n: int, pixels: int) -> None:
    """Generated, baseline and reference images as files."""
    for seed, role in enumerate(("images", "baseline", "reference")):
        save_images(folder / role, np.stack(list(pictures(n, pixels, seed))), names(n))


def names(n: int) -> list[str]:
    return [f"{row:04d}" for row in range(n)]


def evaluation(folder: Path, n: int, pixels: int, cache: Path) -> Evaluation:
    images, baseline, reference = (stored(folder / role, names(n)) for role in ("images", "baseline", "reference"))
    known = dataset(list(pictures(10, pixels, 9)), reference)
    prompts = [f"a photo of house number {row % PROMPTS}" for row in range(n)]
    styled, seeds = [known.styled(prompt) for prompt in prompts], [row // PROMPTS for row in range(n)]
    return Evaluation(images, baseline, prompts, styled, seeds, known, cache)


def dataset(shown: list[np.ndarray], reference: Images) -> Dataset:
    """A pair of the first two pictures, the others as controls."""
    content, style = (Example(image, "a photo of a teapot", "teapot") for image in shown[:2])
    return Dataset(
        name="drawn", version=1, licence="CC0-1.0", source="drawn here", style_words="in sepia style", noun="teapot",
        pairs=(Pair(content, style),), references=(), auxiliary=(), prompts=(), seeds=(), controls=tuple(shown[2:]),
        reference_set=lambda: reference, oracle=None, content_hash="0",
    )  # fmt: skip


def ours(networks: Networks, case: Evaluation) -> tuple[dict[str, float], dict[str, float], list[str]]:
    """Seconds and values of every metric of metrics=sd whose network has a stand-in, and the names of the others."""
    times: dict[str, float] = {}
    values: dict[str, float] = {}
    left_out = []
    for name, spec in configured().items():
        if (network := networks.of(spec)) is None:
            left_out.append(name)
            continue
        warm(network)
        metric = build({**spec, "network": network})
        try:
            with clock(times, name):
                values |= metric.score(case).values
        except Impossible as reason:
            times.pop(name)
            left_out.append(f"{name} ({reason})")
    return times, values, left_out


def warm(network: Any) -> None:
    """Read the weights: that is not timed on either side."""
    image = np.zeros((1, 3, 64, 64), np.uint8)
    network.heads() if hasattr(network, "heads") else network(image)


def configured() -> dict[str, dict[str, Any]]:
    import yaml

    return yaml.safe_load((ROOT / "conf" / "metrics" / "sd.yaml").read_text())


def theirs(networks: Networks, folder: Path, case: Evaluation) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds and values of the same numbers by the libraries, each called as its documentation says."""
    speed_libraries.warm(networks)
    times: dict[str, float] = {}
    values: dict[str, float] = {}
    for name, call in speed_libraries.calls(networks, folder, case).items():
        try:
            with clock(times, name):
                values |= call()
        except ValueError as error:  # clean-fid's square root where covariances are singular; the time is spent
            print(f"{name} failed: {error}", file=sys.stderr)
    return times, values


def compared(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    """Largest relative difference of the numbers that both sides gave."""
    return {name: abs(a[name] - b[name]) / abs(b[name]) for name in b if name in a}


def rescored(networks: Networks, case: Evaluation) -> dict[str, float]:
    """A new statistic of known features, as a new process would score it: seconds, and how many files it decoded."""
    read, decoded, times = bench.data.images.load_image, [], {}

    def reading(path: Path) -> np.ndarray:
        decoded.append(path)
        return read(path)

    feature_store.cache_clear()
    bench.data.images.load_image = reading
    try:
        with clock(times, "a new metric on known images"):
            Vendi(networks.clip).score(case)
            Prdc(networks.inception).score(case)
    finally:
        bench.data.images.load_image = read
    return {"seconds": sum(times.values()), "decoded_files": len(decoded)}


# --- the report --------------------------------------------------------------------------------------------------


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    n, pixels, cache = options.images, options.pixels, folder / "cache"
    lay_out(folder, n, pixels)
    networks = stand_ins(folder / "weights", options.small)
    case = evaluation(folder, n, pixels, cache)
    our_s, our_values, left_out = ours(networks, case)
    their_s, their_values = theirs(networks, folder, case)
    found = {"ours_s": our_s, "libraries_s": their_s, "left_out": left_out}
    case = evaluation(folder, n, pixels, cache)  # nothing decoded yet
    found |= {"ratio": sum(their_s.values()) / sum(our_s.values()), "differences": compared(our_values, their_values)}
    return found | {"rescore": rescored(networks, case)}


def traces(small: bool) -> dict[str, dict[str, Any]]:
    d = 256 if small else 2048
    return {
        "trace 100 x 500": trace(20, 60, d) if small else trace(100, 500, d),
        "trace full rank": trace(d + d // 2, d + d // 2, d),
    }


def machine() -> dict[str, str]:
    import scipy
    import torch

    versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
    return {"processor": processor(), "torch": torch.__version__, **versions}


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def report(found: dict[str, Any]) -> str:
    """Markdown: ratios with their targets, seconds of each side, differences of the numbers."""
    every, size = found["all metrics"], found["options"]
    ratios = {name: found[name]["ratio"] for name in TARGETS}
    head = [[name, f"{ratio:.3g}x", f"{TARGETS[name]:g}x"] for name, ratio in ratios.items()]
    parts = [
        f"# Speed of the metrics\n\n{size['images']} images a side at {size['pixels']} pixels, one thread, CPU seconds."
    ]
    parts.append(tabulate(head, ["", "faster than the libraries", "target"], "pipe"))
    for title, times in (("metrics=sd", every["ours_s"]), ("libraries", every["libraries_s"])):
        rows = [[name, f"{seconds:.2f}"] for name, seconds in times.items()]
        parts.append(tabulate([*rows, ["sum", f"{sum(times.values()):.2f}"]], [title, "s"], "pipe"))
    parts.append(tabulate([[k, f"{v:.1e}"] for k, v in every["differences"].items()], ["number", "difference"], "pipe"))
    again = every["rescore"]
    parts.append(f"A new metric on known images: {again['seconds']:.2f} s, {again['decoded_files']} files decoded.")
    parts.append(f"Not timed, no stand-in network here: {', '.join(every['left_out']) or 'none'}.")
    return "\n\n".join(parts) + "\n"


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parse = argparse.ArgumentParser(prog="python tests/perf/metrics_speed.py", description=__doc__.splitlines()[0])
    parse.add_argument("--images", type=int, default=500, help="images a side")
    parse.add_argument("--pixels", type=int, default=512)
    parse.add_argument("--small", action="store_true", help="8 images of 64 pixels, tiny networks; nothing is written")
    parse.add_argument("--out", type=Path, default=ROOT / "results" / "perf")
    found = parse.parse_args(arguments)
    if found.small:
        found.images, found.pixels = 8, 64
    return found


def main(arguments: list[str] | None = None) -> None:
    requested = options(arguments)
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if not one.items() <= os.environ.items():  # they are read when numpy is imported
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | one)
    warnings.simplefilter("ignore")  # the libraries' own
    import torch

    torch.set_num_threads(1)
    found: dict[str, Any] = {"options": {"images": requested.images, "pixels": requested.pixels}, "machine": machine()}
    found |= traces(requested.small)
    with tempfile.TemporaryDirectory() as folder:
        found["all metrics"] = measured(requested, Path(folder))
    text = report(found)
    print(text)
    if not requested.small:
        requested.out.mkdir(parents=True, exist_ok=True)
        atomic_write(requested.out / "metrics.json", json.dumps(found, indent=1).encode())
        atomic_write(requested.out / "metrics.md", text.encode())


if __name__ == "__main__":
    main()
