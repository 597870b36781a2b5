"""Runs and sweeps from the command line, with -m for a sweep: method=pair dataset=halftone seed=0. Hydra ends here."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bench import paths
from bench.compose import cell, register_datasets
from bench.environment import INTERRUPTED, one_sentence
from bench.errors import Stopped
from bench.run import run
from bench.store.record import Record, Store
from bench.store.stored_status import is_stored, line
from bench.sweeps import launch
from bench.sweeps.partial_keys import forced_at_first
from bench.sweeps.settings import settings
from bench.sweeps.worker import STOPPED, asked_to_leave

CONF = str(paths.CONF)
PLUGINS = str(Path(__file__).parent / "sweeps" / "plugins")  # where our part of the package hydra_plugins lies
records: list[Record] = []


def register_launchers() -> None:
    """Hydra takes launchers from the namespace package hydra_plugins only; ours joins it while this command runs."""
    if PLUGINS not in sys.path:
        sys.path.append(PLUGINS)


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(config: DictConfig) -> None:
    several = HydraConfig.get().mode == hydra.types.RunMode.MULTIRUN  # by one of Hydra's own launchers
    with one_sentence("bench"):
        requested = cell(config)
        if config.plan:
            return launch.show_plan([requested], settings(config), 1)
        before = Store(requested.results).read(requested.run_id)
        with asked_to_leave(signal.SIGINT, signal.SIGTERM) as leave:
            try:
                records.append(run(requested, lambda: bool(leave)))
            except Stopped:
                print(STOPPED, file=sys.stderr)
                sys.exit(INTERRUPTED)
        stored = is_stored(records[-1], before)
        report(records[-1], requested.results / records[-1].run_id, brief=several, stored=stored)


def report(record: Record, folder: Path, brief: bool, stored: bool = False) -> None:
    """What became of one cell: a line in a sweep, a table row and where to look otherwise."""
    from bench.analysis import frames, plain_text

    if record.status != "done":
        print(line(record, stored))
    elif brief:
        print(f"done: {record.run_id}")
    else:
        print(plain_text.render(frames.wide(frames.frame([record]))))
        print("\n".join([*(f"note: {note}" for note in record.notes), f"images: {folder / 'grid.png'}"]))
        if stored:
            print("Shown from its record; mode=force trains the cell again.")


def add_own_configurations() -> None:
    """The working directory's `conf` joins Hydra's search path behind the shipped one."""
    folder = paths.own("conf")
    if folder is not None and not any(word.startswith(("--config-dir", "-cd")) for word in sys.argv):
        sys.argv += ["--config-dir", str(folder)]


def is_sweep(words: Sequence[str]) -> bool:
    """Whether a command line starts a sweep: by -m, or by an experiment that says so."""
    if {"-m", "--multirun"} & set(words):
        return True
    names = [word.removeprefix("experiment=") for word in words if word.startswith("experiment=")]
    files = [paths.configuration(f"experiment/{name}.yaml") for name in names]
    return any("mode: MULTIRUN" in file.read_text() for file in files if file.is_file())


def start() -> None:
    """A run or a sweep from the words of the command line. Exits with 1 where a cell failed."""
    if not os.environ.get("BENCH_RESULTS"):
        os.environ.pop("BENCH_RESULTS", None)  # empty means unset
    for file in paths.shadowed():
        print(f"note: {file} is not used: the package has another file of that name; rename yours.", file=sys.stderr)
    register_datasets()
    register_launchers()
    add_own_configurations()
    if is_sweep(sys.argv[1:]):
        sys.argv[1:] = forced_at_first(sys.argv[1:])
    main()
    sys.exit(1 if launch.failed or any(record.status == "failed" for record in records) else 0)
