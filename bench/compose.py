"""Cells from Hydra's configurations; all that are alike but for the seed are composed once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from bench.cell import Cell, own_strength
from bench.sweep import Settings

OURS = ("plan", "wait", "workers", "mix_code", "sweep")  # keys of conf/config.yaml that no cell has
SEED = re.compile(r"seed=(-?\d+)")
USES_SEED = re.compile(r"\$\{[^}]*\bseed\b")


def cell(config: DictConfig) -> Cell:
    """Plain typed settings from Hydra's."""
    plain = _plain(config)
    for key in OURS:
        plain.pop(key, None)
    strength = plain.pop("strength")
    if strength is None:
        strength = own_strength(plain["method"])
    if strength == "curve":
        strength = plain["method"]["curve"]
    strengths = strength if isinstance(strength, list) else [strength]
    return Cell(**{**plain, "results": Path(plain["results"])}, strengths=tuple(map(float, strengths)))


def settings(config: DictConfig) -> Settings:
    """How a sweep is run. Raises TypeError for a key of `sweep` that means nothing; Hydra says so before."""
    plain = _plain(config)
    return Settings(**{key: plain[key] for key in (*OURS, "pack") if key != "sweep"}, **plain["sweep"])


def _plain(config: DictConfig) -> dict[str, Any]:
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


def _depends_on_seed(config: DictConfig) -> bool:
    return USES_SEED.search(OmegaConf.to_yaml(config, resolve=False)) is not None
