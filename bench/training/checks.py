"""Signs that a training did not do what it was meant to do: an adapter that never learned, losses that end high."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from bench.contracts import Spec, TrainingData
from bench.training.optimizers import moved
from bench.training.settings import TrainerSettings

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

USES = {"min_snr": "loss", "noise_offset": "noise"}  # option of the trainer -> the call of `TrainingData` that has it
LAST = 0.1  # share of the steps that counts as the end
FAR = 3.0  # times the median of all losses
CHANCE = 1e-4  # one-sided p of a rank test: from step to step losses differ by a factor of a hundred and more


def unused(options: TrainerSettings, data: TrainingData) -> str | None:
    """A sentence for an option of the data that is on and that no step of the method has used."""
    for option, call in USES.items():
        if getattr(options, option) and option not in getattr(data, "used", {option}):
            return (
                f"trainer.{option}={getattr(options, option)} was requested, and the steps of this method never call "
                f"data.{call}, which has that option; leave trainer.{option} out for it."
            )
    return None


def untrained(specs: Mapping[str, Spec], rows: Mapping[str, Tensor], optimizer: Optimizer, steps: int) -> str | None:
    """A sentence when an adapter that is not read from a file had no gradient in any step, or zeros alone.

    `rows` are the numbers (n,) of each adapter as the optimizer holds them, which remembers the squares of their
    gradients, also across a checkpoint.
    """
    made = {name: row for name, row in rows.items() if specs[name.partition(":")[0]].file is None}
    idle = [name for name, row in made.items() if not moved(optimizer, row)]
    if not idle:
        return None
    return (
        f"The method declares the adapter {' and '.join(map(repr, idle))}, but none of its {steps} steps trained it; "
        "raise method.recipe.steps, or let a step of the method ask for it."
    )


def high_ends(log: Path) -> list[str]:
    """A sentence for each loss of a log.csv whose last tenth lies far above its median, and not by chance.

    A step may have several losses; the first ones of all steps are one series, the second ones another.
    """
    lines = log.read_text().splitlines()[1:] if log.is_file() else []
    steps = [[float(value) for value in line.split(",")[2].split()] for line in lines]
    width = max(map(len, steps), default=0)
    series = {i: [losses[i] for losses in steps if len(losses) > i] for i in range(width)}
    return [
        f"training: loss {i + 1} of {width} ends high, the median of its last tenth is {median(_end(losses)):.3g} and "
        f"that of all steps {median(losses):.3g}; the training may have diverged, try a lower method.recipe.lr"
        for i, losses in series.items()
        if _ends_high(losses)
    ]


def _end(losses: Sequence[float]) -> Sequence[float]:
    return losses[len(losses) - round(LAST * len(losses)) :]


def _ends_high(losses: Sequence[float]) -> bool:
    from scipy.stats import mannwhitneyu

    end, usual = _end(losses), median(losses)
    if not end or median(end) <= FAR * abs(usual):
        return False
    return mannwhitneyu(end, losses[: len(losses) - len(end)], alternative="greater").pvalue < CHANCE
