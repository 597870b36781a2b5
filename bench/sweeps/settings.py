"""How a sweep is run; no image depends on it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from omegaconf import DictConfig

from bench.choices import check_value
from bench.compose import OURS, plain_of
from bench.store import leases


@dataclass(frozen=True)
class Settings:
    """How a sweep is run; no image depends on it."""

    plan: bool | str = False  # true: show what would be done; probe: measure short cells for it
    wait: bool = True
    pack: int | str = "auto"  # cells at a time in one worker
    workers: int | None = None
    mix_code: bool = False
    attempts: int = 4  # workers that a cell may kill
    lease_s: float = leases.LEASE_S
    idle_s: float = 600.0  # a worker waits so long for others to give something back
    poll_s: float = 2.0
    price_per_gpu_hour: float | None = None
    runner: str = "bench.sweeps.packs.run_pack"


def settings(config: DictConfig) -> Settings:
    """How a sweep is run. Raises TypeError for a key of `sweep` that means nothing; Hydra says so before."""
    plain = plain_of(config)
    for entry in fields(Settings):
        if entry.name in plain["sweep"]:
            check_value(f"sweep.{entry.name}", plain["sweep"][entry.name], str(entry.type))
    return Settings(**{key: plain[key] for key in (*OURS, "pack") if key != "sweep"}, **plain["sweep"])
