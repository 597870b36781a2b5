"""Seconds to load and to tabulate many records: python tests/perf/table_load.py [records] [folder to make them in]

The records are synthetic (two strengths, 20 metrics, 24 images a strength) and have the headline metrics of
conf/table.yaml, so the table compares 20 rows of each style. The first load builds the index.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np

from bench.analysis import frames, shown_columns
from bench.store.record import Record, dumps

HEADLINE = [name for name in shown_columns.headline() if name not in frames.COST]
METRICS = [*HEADLINE, *(f"metric_{i}" for i in range(20 - len(HEADLINE)))]
PROMPTS = [f"a photo of thing {i} in place {i % 7}" for i in range(24)]


def main(count: int, root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    clock("make", lambda: [make(root, i) for i in range(count)])
    clock("load, no index", lambda: frames.load(root))
    found = clock("load, indexed", lambda: frames.load(root))
    clock("load, one record changed", lambda: (make(root, 0), frames.load(root)))
    clock("summary of it", lambda: frames.summary(found))
    clock("images, no index", lambda: frames.images(root))
    images = clock("images, indexed", lambda: frames.images(root))
    print(f"{found.run_id.nunique()} records, {len(found)} scores, {len(images)} images")
    shutil.rmtree(root / ".index")
    for what in ("table, no index", "table, indexed"):
        command(what, ["-m", "bench.table", "--results", str(root)])


def command(what: str, words: list[str]) -> None:
    """Seconds and peak memory of a process of its own."""
    code = (
        "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL, check=True)"
    )
    code += "; import resource; u = resource.getrusage(resource.RUSAGE_CHILDREN)"
    code += "; print(f'{u.ru_utime + u.ru_stime:7.2f} s of CPU, {u.ru_maxrss / 1024:.0f} MB')"
    made = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    print(f"{what:26} {made.stdout.strip()}", flush=True)


def clock(what, work):
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    print(f"{what:26} {time.perf_counter() - wall:7.2f} s, {time.process_time() - cpu:7.2f} s of CPU", flush=True)
    return made


def make(root: Path, i: int) -> None:
    """Record i: names of its own, and numbers of its own, those of one of 1009 sets with other last digits."""
    method, dataset, seed = f"method{i % 10}", f"style{i // 10 % 50}", i // 500
    folder = root / f"{method}-{dataset}-s{seed}"
    folder.mkdir(exist_ok=True)
    values, lines = numbers(i % 1009)
    config = {"method": {"name": method, "recipe": {"steps": 500}}, "dataset": {"name": dataset}, "seed": seed}
    config |= {"backbone": {"name": "mini"}, "trainer": {}, "sampler": {"steps": 25}}
    scores = [score(1.0 + g, name, values[g, j].mean()) for g in range(2) for j, name in enumerate(METRICS)]
    record = Record(folder.name, "done", config=config, cost={"train_s": 10.0 + i}, scores=scores)
    (folder / "record.json").write_text(dumps(record))
    (folder / "per_image.csv").write_text(lines.replace("DIGITS", f"{i:05d}"))


@cache
def numbers(i: int) -> tuple[np.ndarray, str]:
    """Values of images (strengths, metrics, prompts), and per_image.csv with their last digits open."""
    values = np.random.default_rng(i).normal(size=(2, len(METRICS), len(PROMPTS)))
    return values, csv(values)


def score(strength, metric, value):
    about = {"metric": f"{metric} 1", "n": 24, "network": "net", "weights": "0" * 16, "versions": {"numpy": "2.4.6"}}
    return {"strength": strength, "group": metric, "metric": metric, "value": float(value), "higher_is_better": True,
            "network": "net", "fingerprint": about}  # fmt: skip


def csv(values):
    lines = [f"{1.0 + g},{prompt},0," + ",".join(f"{x:.12f}DIGITS" for x in values[g, :, p])
             for g in range(2) for p, prompt in enumerate(PROMPTS)]  # fmt: skip
    return "\n".join([",".join(["strength", "prompt", "seed", *METRICS]), *lines]) + "\n"


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as made:
        main(count, Path(sys.argv[2]) if len(sys.argv) > 2 else Path(made))
