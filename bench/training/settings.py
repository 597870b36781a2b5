"""How the trainer runs on a backbone, and the options of training that no method needs: all of them are off by default.

What is off is left out of a cell, so its run id and its record are those of a cell that never heard of the option.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from bench.backbones.sites import check_where
from bench.choices import Compile, Optimizer
from bench.errors import BenchError
from bench.settings import construct

OPTIONS = (
    "accumulate", "min_snr", "noise_offset", "ema", "optimizer", "lora_dropout", "dora", "text_encoder_lr",
    "resolution", "time_ids",
)  # fmt: skip
LIBRARIES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}  # of optimizers


@dataclass(frozen=True)
class TrainerSettings:
    """How the trainer runs on a backbone (conf/trainer). What a publication fixes is in its method's `Recipe`."""

    lr_scale: float = 1.0  # multiplies every method's published learning rate
    prior_images: int | None = None  # at most so many for prior preservation; None: as the method says
    resample: bool = True  # draw each latent from its posterior at every step; False: the mean
    compile: Compile = "auto"  # see `bench.training.compiling.offered`
    where: Mapping[str, str] = field(default_factory=dict)  # layers named by a method -> those that take their place
    preview_every: int | None = None  # steps between two drawings for the eye (`bench.steps.previews`); None: none
    accumulate: int = 1  # draws of a step, whose mean gradient is one update
    min_snr: float | None = None  # gamma of min-SNR weighting (Hang et al. 2023, arXiv 2303.09556); None: no weights
    noise_offset: float = 0.0  # of a number per channel that is added to the noise
    ema: float | None = None  # decay of an average of the adapter over its updates, which then draws; None: none
    resolution: int | None = None  # P of training images; None: the backbone's
    time_ids: Sequence[int] | None = None  # SDXL's height, width of the original, crop top, left; None: P, P, 0, 0
    optimizer: Optimizer = "adamw"
    lora_dropout: float = 0.0  # share of the inputs of low-rank adapters that are 0 in training
    text_encoder_lr: float | None = None  # of adapters of the text encoders, times lr_scale; None: there are none
    dora: bool = False  # low-rank adapters with a trained length for each output (arXiv 2402.09353)

    def __post_init__(self) -> None:
        _check("preview_every", self.preview_every, self.preview_every is None or self.preview_every >= 1, "at least 1")
        _check("accumulate", self.accumulate, self.accumulate >= 1, "at least 1")
        _check("min_snr", self.min_snr, self.min_snr is None or self.min_snr > 0, "more than 0")
        _check("noise_offset", self.noise_offset, 0 <= self.noise_offset <= 1, "0 to 1")
        _check("ema", self.ema, self.ema is None or 0 < self.ema < 1, "more than 0 and less than 1")
        _check("lora_dropout", self.lora_dropout, 0 <= self.lora_dropout < 1, "0 or more, and less than 1")
        _check("resolution", self.resolution, self.resolution is None or self.resolution >= 8, "at least 8")
        sizes = self.time_ids
        listed = isinstance(sizes, Sequence) and len(sizes) == 4
        whole = sizes is None or (listed and all(type(size) is int and size >= 0 for size in sizes))
        _check("time_ids", sizes, whole, "[height,width,top,left] in pixels")
        rate = self.text_encoder_lr
        _check("text_encoder_lr", rate, rate is None or rate > 0, "more than 0")
        if rate is not None and self.optimizer == "prodigy":
            raise BenchError(
                "trainer.text_encoder_lr was requested with trainer.optimizer=prodigy, which has one learning rate; "
                "type trainer.optimizer=adamw."
            )
        for named, place in self.where.items():
            check_where(named, "trainer.where")
            check_where(place, f"trainer.where.{named}")


def _check(name: str, value: Any, holds: bool, allowed: str) -> None:
    if not holds:
        raise BenchError(f"trainer.{name}={value} was requested; type {allowed}.")


def switched_on(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without the options that are off. Raises BenchError for an option beyond its range."""
    options = {name: trainer[name] for name in OPTIONS if name in trainer}
    construct(TrainerSettings, options, "trainer")
    off = {option.name: option.default for option in fields(TrainerSettings)}
    return {key: value for key, value in trainer.items() if key not in options or value != off[key]}


def missing(kind: str) -> str | None:
    """A sentence when the package of an optimizer is not installed."""
    library = LIBRARIES.get(kind)
    if library is None or importlib.util.find_spec(library) is not None:
        return None
    return f"trainer.optimizer={kind} needs {library}, which is not installed; type uv pip install {library}."
