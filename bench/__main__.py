"""The command line: python -m bench method=pair dataset=halftone seed=0, with -m for a sweep. Hydra ends here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from bench import data
from bench.cell import Cell
from bench.contracts import BenchError
from bench.record import Record
from bench.run import run

CONF = str(Path(__file__).parents[1] / "conf")
records: list[Record] = []
sweep: list[Cell] = []  # cells of -m, which run when all are composed, in packs


def register_datasets() -> None:
    """Every datasets/<name>/dataset.yaml is a choice of the group `dataset`."""
    # Hydra only reads the store, but would copy it once per group
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]
    for name in data.names():
        folder, _, leaf = name.rpartition("/")
        group = f"dataset/{folder}" if folder else "dataset"
        ConfigStore.instance().store(group=group, name=leaf, package="dataset", node=data.describe(name))


def cell(config: DictConfig) -> Cell:
    """Plain typed settings from Hydra's."""
    plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    strength = plain.pop("strength")
    if strength is None:
        strength = plain["method"].get("strength", 1.0)
    if strength == "curve":
        strength = plain["method"]["curve"]
    strengths = strength if isinstance(strength, list) else [strength]
    return Cell(**{**plain, "results": Path(plain["results"])}, strengths=tuple(map(float, strengths)))


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(config: DictConfig) -> None:
    asked, hydra_config = cell(config), HydraConfig.get()
    several = hydra_config.mode == hydra.types.RunMode.MULTIRUN
    if several and hydra_config.launcher._target_.endswith(".BasicLauncher"):  # others have processes of their own
        sweep.append(asked)
        return
    try:
        records.append(run(asked))
    except BenchError as error:
        sys.exit(f"bench: {error}")
    report(records[-1], asked.results / records[-1].run_id, brief=several)


def run_sweep() -> None:
    from bench.pack import packs, run_pack

    try:
        for group in packs(sweep):
            run_pack(group, group[0].pack, told)
    except BenchError as error:
        sys.exit(f"bench: {error}")


def told(record: Record) -> None:
    records.append(record)
    report(record, Path(), brief=True)


def report(record: Record, folder: Path, brief: bool) -> None:
    """The verdict on one cell: a line in a sweep, a table row and where to look otherwise."""
    from bench import table

    if record.status != "done":
        print(f"{record.status}: {record.run_id}: {record.reason}")
    elif brief:
        print(f"done: {record.run_id}")
    else:
        print(table.render(table.wide(table.frame([record]))))
        print("\n".join([*(f"note: {note}" for note in record.notes), f"images: {folder / 'grid.png'}"]))


if __name__ == "__main__":
    register_datasets()
    main()
    run_sweep()
    sys.exit(1 if any(record.status == "failed" for record in records) else 0)
