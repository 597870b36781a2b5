"""FID, KID, LPIPS and CLIP score one by one: our code against the library's, each from image files with an empty cache.

    python tests/perf/each_metric.py                   16 images a side at 128 pixels, 1024 features: a few CPU minutes
    python tests/perf/each_metric.py --features 2048   the statistics at the size of Inception's features

The first table keeps the first 8 features of Inception, so that it shows reading, resizing and the network. The second
table starts from the same features on both sides, so that it shows the statistic alone; ours includes no error there.
One thread, CPU seconds, one run each. Writes results/perf/each_metric.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import speed_libraries
from metrics_speed import clock, evaluation, lay_out, machine, warm
from speed_networks import Networks, stand_ins
from tabulate import tabulate

from bench.contracts import Evaluation
from bench.files import atomic_write
from bench.paths import ROOT
from metrics.clip_score import ClipScore
from metrics.features import feature_store
from metrics.fid import Fid, frechet_distance
from metrics.kid import Kid, mmd2
from metrics.library_scores import TorchmetricsClipScore
from metrics.networks import Inception
from metrics.perceptual import distances

COMPARED = {  # library and number -> ours
    "clean-fid: FID": "fid",
    "torchmetrics: FID": "fid",
    "clean-fid: KID": "kid",
    "torchmetrics: KID": "kid",
    "lpips: content kept": "lpips",
    "open_clip: CLIP score, two prompts": "clip_score",
    "torchmetrics: CLIPScore, one prompt": "clip_score",
}
ITEMS = 100  # of the statistics

Calls = dict[str, Callable[[], Any]]


@dataclass(frozen=True, kw_only=True)
class First(Inception):
    """The first 8 features, so that 16 images have a regular covariance."""

    def pool3(self, x: Any) -> Any:
        return super().pool3(x)[:, :8]


def ours(networks: Networks, case: Evaluation) -> Calls:
    """Each of our metrics as a run scores it, with what it adds: error by prompt, null, second prompt."""
    return {
        "fid": lambda: Fid(networks.inception).score(case),
        "kid": lambda: Kid(networks.inception).score(case),
        "lpips": lambda: distances(feature_store(case.cache), networks.lpips, case.images, case.baseline),
        "clip_score": lambda: ClipScore(networks.clip).score(case),
    }


def whole(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds from image files. Every call of ours has a cache of its own, so that none finds another's features."""
    times: dict[str, float] = {}
    lay_out(folder, options.images, options.pixels)
    networks = stand_ins(folder / "weights", options.small)
    networks = replace(networks, inception=First(weights=networks.inception.weights, device="cpu"))
    for network in (networks.inception, networks.lpips, networks.clip):
        warm(network)
    speed_libraries.warm(networks)
    for name in dict.fromkeys(COMPARED.values()):
        case = evaluation(folder, options.images, options.pixels, folder / f"cache-{name}")
        timed(times, name, ours(networks, case)[name])
    calls: Calls = {**speed_libraries.calls(networks, folder, case)}
    calls["torchmetrics: CLIPScore, one prompt"] = lambda: TorchmetricsClipScore(networks.clip).score(case)
    for name in COMPARED:
        timed(times, name, calls[name])
    return times


def statistics(features: int) -> dict[str, float]:
    """Seconds from the same features (ITEMS, features) on both sides."""
    rng, times = np.random.default_rng(0), {}
    x, y = rng.normal(size=(2, ITEMS, features)) * np.arange(1, features + 1) ** -0.5
    for name, call in statistic_calls(x, y).items():
        timed(times, name, call)
    return times


def statistic_calls(x: np.ndarray, y: np.ndarray) -> Calls:
    import torch
    from cleanfid.fid import fid_from_feats, kernel_distance
    from torchmetrics.image.fid import _compute_fid
    from torchmetrics.image.kid import poly_mmd

    a, b = torch.from_numpy(x), torch.from_numpy(y)
    return {
        "fid": lambda: frechet_distance(x, y),
        "kid": lambda: mmd2(x, y),
        "clean-fid: FID": lambda: fid_from_feats(x, y),
        "torchmetrics: FID": lambda: _compute_fid(a.mean(0), a.T.cov(), b.mean(0), b.T.cov()),
        "clean-fid: KID": lambda: kernel_distance(x, y, num_subsets=1),
        "torchmetrics: KID": lambda: poly_mmd(a, b),
    }


def timed(times: dict[str, float], name: str, call: Callable[[], Any]) -> None:
    """CPU seconds; clean-fid's square root of singular covariances may fail, after its time is spent."""
    with clock(times, name):
        try:
            call()
        except ValueError as error:
            print(f"{name} failed: {error}", file=sys.stderr)


def rows(times: dict[str, float]) -> list[list[str]]:
    """Library, its seconds, our seconds, how many times as long the library takes."""
    pairs = [(name, times[name], times[mine]) for name, mine in COMPARED.items() if name in times]
    return [[name, f"{theirs:.3f}", f"{own:.3f}", f"{theirs / own:.2f}"] for name, theirs, own in pairs]


def report(found: dict[str, Any]) -> str:
    size, head = found["options"], ["library", "its s", "our s", "its s / our s"]
    return "\n\n".join(
        [
            "# Our metrics and the libraries, one by one",
            f"{size['images']} images a side at {size['pixels']} pixels, one thread, CPU seconds, one run each.",
            tabulate(rows(found["from files"]), head, "pipe", disable_numparse=True),
            f"From the same features ({ITEMS}, {size['features']}):",
            tabulate(rows(found["from features"]), head, "pipe", disable_numparse=True) + "\n",
        ]
    )


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parse = argparse.ArgumentParser(prog="python tests/perf/each_metric.py", description=__doc__.splitlines()[0])
    parse.add_argument("--images", type=int, default=16, help="images a side")
    parse.add_argument("--pixels", type=int, default=128)
    parse.add_argument("--features", type=int, default=1024, help="features of the statistics")
    parse.add_argument("--small", action="store_true", help="tiny networks, to see that it works; nothing is written")
    return parse.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    requested = options(arguments)
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if not one.items() <= os.environ.items():  # they are read when numpy is imported
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | one)
    warnings.simplefilter("ignore")  # the libraries' own
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = {"options": vars(requested), "machine": machine(), "from files": whole(requested, Path(folder))}
    found["from features"] = statistics(requested.features)
    text = report(found)
    print(text)
    if not requested.small:
        out = ROOT / "results" / "perf"
        atomic_write(out / "each_metric.json", json.dumps(found, indent=1).encode())
        atomic_write(out / "each_metric.md", text.encode())


if __name__ == "__main__":
    main()
