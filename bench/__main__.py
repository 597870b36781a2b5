"""The command line: python -m bench method=pair dataset=halftone seed=0, with -m for a sweep. Hydra ends here."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bench import paths
from bench.compose import cell, register_datasets
from bench.environment import one_sentence
from bench.run import run
from bench.store.record import Record, Store
from bench.store.stored_status import is_stored, line
from bench.sweeps import launch
from bench.sweeps.settings import settings

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
        asked = cell(config)
        if config.plan:
            return launch.show_plan([asked], settings(config), 1)
        before = Store(asked.results).read(asked.run_id)
        records.append(run(asked))
        stored = is_stored(records[-1], before)
        report(records[-1], asked.results / records[-1].run_id, brief=several, stored=stored)


def report(record: Record, folder: Path, brief: bool, stored: bool = False) -> None:
    """The verdict on one cell: a line in a sweep, a table row and where to look otherwise."""
    from bench.analysis import frames, plain_text

    if record.status != "done":
        print(line(record, stored))
    elif brief:
        print(f"done: {record.run_id}")
    else:
        print(plain_text.render(frames.wide(frames.frame([record]))))
        print("\n".join([*(f"note: {note}" for note in record.notes), f"images: {folder / 'grid.png'}"]))


if __name__ == "__main__":
    register_datasets()
    register_launchers()
    main()
    sys.exit(1 if launch.failed or any(record.status == "failed" for record in records) else 0)
