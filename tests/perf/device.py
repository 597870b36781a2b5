"""Verifies and measures the GPU paths on a single CUDA machine, in stages that nobody needs to watch.

    make device STAGE=a OUT=dir
    python tests/perf/device.py --out DIR [--stage a,b,c,d,e] [--minutes 9.5] [--resume DIR] [--device cpu --small]

    a  pytest -m gpu: tiny cells of every method family in bf16 and fp16, alone and packed             about 2 minutes
    b  training of `mini` (bench/mini/recipe), which resumes                                           8 minutes
    c  packs.py on SD 1.5 (512 pixels) and SDXL (1024), random weights, the script beside it           8 minutes
    d  where an SDXL training step and a guided sampling step spend their time                         3 minutes
    e  flow.py: FLUX.2-klein 4B at 512 pixels, random weights, training and sampling                   4 minutes

Every result is printed and written as it comes: DIR/device.json, DIR/device.md and DIR/log.txt; b also leaves
DIR/mini.tar.0, .1, .2 (its weights and checkpoints, as far as they fit), d the two traces. What DIR holds is not done
again; `--resume` copies it from the DIR of an earlier command first. Large files lie in `--work`. Where packages are
missing and `.whl/` holds them (make wheelhouse), they are unpacked and used. `--device cpu --small` tries all of it on
a CPU; its numbers say nothing of a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PERF = ROOT / "tests" / "perf"
sys.path[:0] = [str(PERF)]

import device_report as report  # noqa: E402
import wheelhouse  # noqa: E402

PACKS = {"sd15": 200, "sdxl": 280}  # seconds in which the last row begins
GRACE_S = 20  # between asking a process to stop and stopping it


@dataclass
class Task:
    """A process, the file in which it leaves its result, and how long it may take."""

    stage: str
    name: str
    command: list[str]
    file: str
    limit_s: float
    read: Callable[[Path], Any] = report.read_json
    finished: Callable[[Any], bool] = bool
    environment: dict[str, str] | None = None
    before: Callable[[], None] = lambda: None
    after: Callable[[], Any] = lambda: None


# --- the stages -------------------------------------------------------------------------------------------------------


def tasks(options: argparse.Namespace) -> Iterator[Task]:
    for stage in options.stage.split(","):
        yield from {"a": cells, "b": mini, "c": packs, "d": profiles, "e": flow}[stage](options)


def cells(options: argparse.Namespace) -> Iterator[Task]:
    """Warnings of other versions of the libraries are no failures here."""
    command = ["-m", "pytest", "-n", "0", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", "-v", "tests/gpu"]
    file = options.work / "a.jsonl"
    environment = {"BENCH_TEST_DEVICE": options.device, "BENCH_TEST_REPORT": str(file)}
    yield Task("a", "cells", command, file.name, 240 if options.device == "cuda" else 500, report.read_lines,
               report.tests_finished, environment, before=lambda: file.unlink(missing_ok=True))  # fmt: skip


def mini(options: argparse.Namespace) -> Iterator[Task]:
    """The recipe keeps its own checkpoints; weights and checkpoints go to DIR in parts that can be carried."""
    minutes, place = (0.5 if options.small else 8), options.work / "mini"
    command = ["-m", "bench.mini.recipe", "--out", str(place), "--device", options.device, "--minutes", str(minutes)]
    if not recipe_is_bounded():
        command = command[:-2]  # an older recipe: the limit below ends it
    yield Task("b", "mini", command, "b.json", 60 * minutes + (0 if options.small else 30),
               finished=lambda found: found is not None and found.get("rc") == 0,
               before=lambda: report.unpack(options.out, place),
               after=lambda: report.pack(place, options.out))  # fmt: skip


def recipe_is_bounded() -> bool:
    return "--minutes" in (ROOT / "bench" / "mini" / "recipe" / "__main__.py").read_text()


def packs(options: argparse.Namespace) -> Iterator[Task]:
    for backbone, last_s in PACKS.items():
        command = ["tests/perf/packs.py", "--backbone", backbone, "--compile", "--resume", "--out", str(options.work),
                   "--minutes", str(last_s / 60), *_common(options)]  # fmt: skip
        yield Task("c", backbone, command, f"packs-{backbone}.json", last_s + 100, finished=report.packs_finished)


def profiles(options: argparse.Namespace) -> Iterator[Task]:
    for what in ("training", "sampling"):
        file = options.work / f"profile-{what}.json"
        command = ["tests/perf/device_profile.py", "--out", str(options.out), "--file", str(file), "--what", what]
        yield Task("d", what, [*command, *_common(options)], file.name, 150,
                   finished=lambda found: found is not None and "groups" in found)  # fmt: skip


def flow(options: argparse.Namespace) -> Iterator[Task]:
    file = options.work / "flow.json"
    command = ["tests/perf/flow.py", "--file", str(file), *_common(options)]
    yield Task("e", "klein", command, file.name, 300, finished=lambda found: found is not None and "done" in found)


def _common(options: argparse.Namespace) -> list[str]:
    return ["--device", options.device, "--weights", str(options.work), *["--small"] * options.small]


# --- running them -----------------------------------------------------------------------------------------------------


def run(task: Task, options: argparse.Namespace, results: report.Results) -> None:
    """Start the process, copy its result into the report whenever it changes, and end it in time."""
    left = options.ends - time.monotonic() - GRACE_S
    if left < 20:
        results.put(task.stage, task.name, {"status": "not started for want of time"}, keep=True)
        return
    task.before()
    file, began, seen = options.work / task.file, time.monotonic(), None
    limit_s = min(task.limit_s, left)
    environment = {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "BENCH_CACHE": str(options.work / "cache")}
    python = ":".join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(":")
    environment = os.environ | environment | {"PYTHONPATH": python} | (task.environment or {})
    with (options.out / "log.txt").open("a") as log:
        process = subprocess.Popen([sys.executable, *task.command], cwd=ROOT, env=environment, stdout=log, stderr=log,
                                   start_new_session=True)  # fmt: skip
        try:
            while process.poll() is None and time.monotonic() - began < limit_s:
                time.sleep(0.5)
                seen = _copy(task, file, seen, results)
        finally:
            late = process.poll() is None
            _end(process)
    _copy(task, file, None, results)
    found = {"status": "stopped at its limit" if late else "ended", "rc": process.returncode,
             "seconds": round(time.monotonic() - began, 1)}  # fmt: skip
    results.put(task.stage, task.name, found | (task.after() or {}), keep=True)


def _copy(task: Task, file: Path, seen: Any, results: report.Results) -> Any:
    """Take over the file's content if it is new; a file that is being written is read the next time."""
    now = (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else None
    if now is not None and now != seen:
        found = task.read(file)
        if found is not None:
            results.put(task.stage, task.name, {"status": "running", "found": found}, keep=True)
    return now


def _end(process: subprocess.Popen) -> None:
    """The process and its children, softly first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                continue


def seed(task: Task, options: argparse.Namespace, results: report.Results) -> bool:
    """Whether the task was finished before; else its unfinished result is laid where the process looks for it."""
    known = results.of(task.stage, task.name)
    if task.finished(known if task.stage == "b" else known.get("found")) and known.get("rc") == 0:
        return True
    file = options.work / task.file
    file.unlink(missing_ok=True)
    if task.stage == "c" and "found" in known:
        file.write_text(json.dumps(known["found"]))
    return False


# --- the command ------------------------------------------------------------------------------------------------------


def with_packages() -> None:
    """Start again with the packages of `.whl/` where they are needed; says what is missing and cannot be had."""
    if importlib.util.find_spec("diffusers") is not None and importlib.util.find_spec("hydra") is not None:
        return
    if os.environ.get("BENCH_WHEELS") or not list(wheelhouse.WHEELS.glob("*.whl")):
        sys.exit("device: diffusers and hydra are not installed; type make env, or make wheelhouse and carry .whl/.")
    site = Path(tempfile.mkdtemp(prefix="wheels-"))
    wheelhouse.install(site)
    python = ":".join([str(site), os.environ.get("PYTHONPATH", "")]).strip(":")
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"PYTHONPATH": python, "BENCH_WHEELS": "1"})


def machine(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    cuda = options.device == "cuda"
    name = torch.cuda.get_device_name() if cuda else "CPU"
    return {"device": name, "small": options.small, "torch": torch.__version__, "python": sys.version.split()[0],
            "cores": os.cpu_count()}  # fmt: skip


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", default="a,b,c,d,e")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny networks and half a minute of training")
    parser.add_argument("--minutes", type=float, default=9.5, help="everything ends by then")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="results of an earlier command")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "device", help="for weights and checkpoints")
    options = parser.parse_args()
    unknown = set(options.stage.split(",")) - set("abcde")
    if unknown:
        sys.exit(
            f"device: the stage {', '.join(sorted(unknown))} was requested; type --stage a,b,c,d,e or some of them."
        )
    if options.device == "cpu" and not options.small and set(options.stage) & set("cde"):
        sys.exit("device: stages c, d and e run tiny networks on a CPU; add --small.")
    return options


def main() -> None:
    options = parsed()
    with_packages()
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("device: torch finds no CUDA device; type --device cpu --small to try the stages on the CPU.")
    options.ends = time.monotonic() + 60 * options.minutes
    options.out, options.work = options.out.absolute(), options.work.absolute()
    for folder in (options.out, options.work):
        folder.mkdir(parents=True, exist_ok=True)
    for file in options.resume.iterdir() if options.resume else ():
        if file.is_file() and not (options.out / file.name).exists():
            shutil.copyfile(file, options.out / file.name)  # what comes back from a device machine may be read-only
    results = report.Results(options.out, machine(options), wheelhouse.unmet())
    for task in tasks(options):
        if seed(task, options, results):
            print(f"{task.stage} {task.name}: finished before, skipped", flush=True)
            continue
        run(task, options, results)
        print(results.section(task.stage, task.name), flush=True)
    sys.exit(results.failed(options.stage.split(",")))


if __name__ == "__main__":
    main()
