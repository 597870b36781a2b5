"""The command line: python -m bench method=pair dataset=halftone seed=0, with -m for a sweep. Hydra ends here."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bench import paths
from bench.compose import cell, register_datasets
from bench.contracts import BenchError
from bench.run import run
from bench.store.record import Record
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
    try:
        requested = cell(config)
        if config.plan:
            return launch.show_plan([requested], settings(config), 1)
        records.append(run(requested))
    except BenchError as error:
        sys.exit(f"bench: {error}")
    report(records[-1], requested.results / records[-1].run_id, brief=several)


def report(record: Record, folder: Path, brief: bool) -> None:
    """The status of one cell: a line in a sweep, a table row and where to look otherwise."""
    from bench.analysis import frames, plain_text

    if record.status != "done":
        print(f"{record.status}: {record.run_id}: {record.reason}")
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
