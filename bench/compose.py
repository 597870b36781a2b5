"""Cells from Hydra's configurations; all that are alike but for the seed are composed once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from bench import paths
from bench.cell import PARTS, UNSET, Cell, default_strength
from bench.choices import check
from bench.contracts import BenchError
from bench.data import schema
from bench.settings import check_declared
from bench.training.settings import switched_on

OURS = ("plan", "wait", "workers", "mix_code", "sweep")  # keys of conf/config.yaml that no cell has
CLAIMS = "claims"  # of an experiment; no cell has them
BROKEN = "cannot_be_read"  # in place of the settings of a dataset whose yaml is broken
CLASSES = {  # of the parts that have no _target_
    "trainer": "bench.training.trainer.TrainerSettings",
    "sampler": "bench.sampling.sampler.Sampler",
}
SEED = re.compile(r"seed=(-?\d+)")
USES_SEED = re.compile(r"\$\{[^}]*\bseed\b")
_registered: dict[str, str] = {}  # dataset -> its settings as Hydra's store has them


def cell(config: DictConfig) -> Cell:
    """Plain typed settings from Hydra's."""
    plain = plain_of(config)
    check(plain)
    _check_keys(plain)
    for part in ("method", "backbone", "trainer", "sampler", "metrics", "tracker"):
        check_declared(plain[part], part, CLASSES.get(part, ""))
    for key in (*OURS, CLAIMS):
        plain.pop(key, None)
    if BROKEN in plain["dataset"]:
        raise BenchError(f"dataset={plain['dataset']['name']} was requested: {plain['dataset'][BROKEN]}")
    if type(plain["seed"]) is not int:
        raise BenchError(f"seed={plain['seed']} was requested; type a whole number, with -m several: seed=0,1,2.")
    plain["trainer"] = switched_on(plain["trainer"])
    plain["method"] = {key: value for key, value in plain["method"].items() if key not in UNSET or value is not None}
    strengths = _strengths(plain.pop("strength"), plain["method"])
    return Cell(**{**plain, "results": Path(plain["results"])}, strengths=strengths)


def _check_keys(plain: Mapping[str, Any]) -> None:
    """Raises BenchError for a key that no cell has (+x=1), and for one that was taken out (~seed)."""
    known = {"strength", *(one.name for one in fields(Cell))} - {"strengths"}
    strange = sorted(map(str, set(plain) - known - {*OURS, CLAIMS}))
    gone = [key for key in (*PARTS, "metrics", "tracker", "seed", "strength", "results") if key not in plain]
    if strange:
        raise BenchError(f"{strange[0]} was requested; the settings of a cell are {', '.join(sorted(known))}.")
    if gone:
        raise BenchError(f"~{gone[0]} was requested; a cell needs this setting.")


def _strengths(requested: Any, method: Mapping[str, Any]) -> tuple[float, ...]:
    """The method's default strength for none, its list for "sweep"."""
    if requested is None:
        requested = default_strength(method)
    if requested in ("sweep", "curve"):  # the latter in older settings
        requested = method.get("strength_sweep", method.get("curve"))
    try:
        return tuple(map(float, requested if isinstance(requested, list) else [requested]))
    except (TypeError, ValueError, OverflowError):
        raise BenchError(f"strength={requested} was requested; type a number, strength=[1,2] or sweep.") from None


def plain_of(config: DictConfig) -> dict[str, Any]:
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return cast(dict[str, Any], OmegaConf.to_container(own, resolve=True))


def cells(overrides: Sequence[Sequence[str]], compose: Callable[[list[str]], DictConfig]) -> list[Cell]:
    """A cell for each list of overrides, in their order."""
    composed: dict[tuple[str, ...], Cell | None] = {}
    made = []
    for words in overrides:
        seed = next((int(found[1]) for word in reversed(words) if (found := SEED.fullmatch(word))), None)
        key = tuple(word for word in words if not SEED.fullmatch(word))
        if seed is None or (first := composed.get(key)) is None:
            config = compose(list(words))
            first = cell(config)
            if seed is not None:
                composed[key] = None if _depends_on_seed(config) else first
        made.append(first if seed is None else first.with_seed(seed))
    return made


def from_overrides(*overrides: str) -> Cell:
    """The cell that `python -m bench <overrides>` runs, for use from Python: from_overrides("method=pair", "seed=1").

    Raises BenchError or Hydra's own errors for a setting that does not exist.
    """
    from hydra import compose, initialize_config_dir

    register_datasets()
    folder = paths.own("conf")
    search = [f"hydra.searchpath=['file://{folder}']"] if folder else []
    with _beside_a_run(), initialize_config_dir(str(paths.CONF), version_base="1.3"):
        return cell(compose("config", [*search, *overrides]))


@contextmanager
def _beside_a_run() -> Iterator[None]:
    """Within a run or sweep of Hydra, which allows one composer at a time, its own one waits."""
    from hydra.core.global_hydra import GlobalHydra

    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = running


def _depends_on_seed(config: DictConfig) -> bool:
    return USES_SEED.search(OmegaConf.to_yaml(config, resolve=False)) is not None


def register_datasets() -> None:
    """Every datasets/<name>/dataset.yaml is a choice of the group `dataset`."""
    # Hydra only reads the store, but would copy it once per group
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]
    for name in schema.names():
        node = _described(name)
        if _registered.get(name) != (words := repr(node)):  # storing all of them takes longer than composing a cell
            folder, _, leaf = name.rpartition("/")
            group = f"dataset/{folder}" if folder else "dataset"
            ConfigStore.instance().store(group=group, name=leaf, package="dataset", node=node)
            _registered[name] = words


def _described(name: str) -> dict[str, Any]:
    """The settings of a dataset; of one that cannot be read the reason, for the run that asks for it."""
    try:
        return schema.describe(name)
    except BenchError as error:
        return {"name": name, BROKEN: str(error).replace("${", "$ {")}
