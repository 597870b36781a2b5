"""Trains the cells of a pack together: in each tick one forward pass for all of them, then one backward pass.

The trainer is a generator: it yields each finished step, the caller logs. A method is a coroutine that asks for
predictions (`Ask`) and hands back losses (`Loss`); see `bench.contracts`. Each cell has its own optimizer, schedule,
clipping norm and random numbers, so a cell trained in a pack ends at the weights of the same cell trained alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.adapters.bank import Bank
from bench.contracts import Ask, BenchError, Loss, Method, Recipe, TrainingData
from bench.seeding import generator
from bench.training import checkpoint, optimizers
from bench.training.averages import Average
from bench.training.checks import untrained, unused
from bench.training.settings import TrainerSettings

CHECKPOINT_SHARE = 0.01  # at most this part of the time goes into checkpoints


@dataclass
class Job:
    """One cell as the trainer sees it. `cell` is its place in the bank."""

    cell: int
    method: Method
    data: TrainingData
    recipe: Recipe
    seed: int
    checkpoint: Path | None = None
    mine: Callable[[], bool] = lambda: True  # whether this process may still write the checkpoint
    options: TrainerSettings = TrainerSettings()


@dataclass(frozen=True)
class Step:
    """A finished training step of one cell, or its end by an error."""

    cell: int
    k: int  # steps done
    losses: tuple[float, ...]
    lr: float
    error: Exception | None = None


def steps_left(job: Job) -> int:
    """Steps between the job's checkpoint, if it has one, and the end of its recipe."""
    from safetensors import safe_open

    if job.checkpoint is None or not job.checkpoint.is_file():
        return job.recipe.steps
    with safe_open(job.checkpoint, "pt") as file:
        return job.recipe.steps - int(file.get_tensor("k"))


def learning_rate(recipe: Recipe, k: int) -> float:
    """Learning rate of step k: linear warm-up, then constant or cosine to zero."""
    warm = min(1.0, (k + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    if recipe.schedule == "constant":
        return recipe.lr * warm
    if recipe.schedule == "cosine":
        done = max(0, k - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
        return recipe.lr * warm * (1 + math.cos(math.pi * done)) / 2
    raise BenchError(f"Unknown schedule {recipe.schedule!r}; use constant or cosine.")


def train(bank: Bank, jobs: Sequence[Job]) -> Iterator[Step]:
    """Advance all jobs to the end of their recipes, resuming each from its checkpoint if it has one."""
    training = Training(bank)
    for job in jobs:
        training.add(job)
    while training.live:
        yield from training.tick()


class Training:
    """Jobs under way on one bank. They come (`add`) and go (leave `live`) between ticks without harm to each other."""

    def __init__(self, bank: Bank):
        self.bank = bank
        self.live: list[_Run] = []
        self.stopping = False  # let every job go at the end of its step, with a checkpoint
        self.let_go: set[int] = set()  # cells of such jobs

    def add(self, job: Job, k: int = 0) -> None:
        """Begin a job at step k, or go on from its checkpoint; one that has no step left is not `live` at all."""
        run = _Run(job, self.bank, k)
        if run.start():
            self.live.append(run)

    def tick(self) -> Iterator[Step]:
        """One forward pass for all jobs (two, if some ask without gradients), one backward pass; the finished steps."""
        _predict(self.bank, [run for run in self.live if isinstance(run.pending, Ask)])
        _descend(self.bank, [run for run in self.live if isinstance(run.pending, Loss)])
        for run in [run for run in self.live if run.finished]:
            run.check_end()
            yield run.report()
            if run.failure is not None or not run.next_step(self.stopping):
                self.live.remove(run)
                if run.failure is None and run.k < run.job.recipe.steps:
                    self.let_go.add(run.job.cell)


def _predict(bank: Bank, runs: Sequence[_Run]) -> None:
    """Answer the pending asks: one forward pass with gradients, one without, when both kinds are pending."""
    for wants_grad in (False, True):
        group = [run for run in runs if bool(run.ask.trains) == wants_grad]
        if group:
            for run, answer in _answers(bank, group):
                run.advance(answer)


def _answers(bank: Bank, runs: Sequence[_Run]) -> list[tuple[_Run, Tensor]]:
    """Each run with its answer. When the pass fails, those whose own rows fail leave, and it is done again."""
    try:
        answers = bank.answer([(run.job.cell, run.ask) for run in runs], [run.seed() for run in runs])
    except Exception as error:
        sound = [run for run in runs if len(runs) > 1 and _alone(bank, run)]
        if len(sound) == len(runs):
            raise  # all of them together are what is wrong: out of memory
        if len(runs) == 1:
            runs[0].fail(error)
        return _answers(bank, sound) if sound else []
    return list(zip(runs, answers, strict=True))


@torch.no_grad()
def _alone(bank: Bank, run: _Run) -> bool:
    try:
        bank.answer([(run.job.cell, run.ask)], [run.seed()])
    except Exception as error:
        run.fail(error)
        return False
    return True


def _descend(bank: Bank, runs: Sequence[_Run]) -> None:
    """One backward pass on the sum of the losses; each cell steps its own optimizer."""
    if not runs:
        return
    values = torch.stack([run.loss.detach() for run in runs]).tolist()
    sound = [run for run, value in zip(runs, values, strict=True) if math.isfinite(value)]
    if sound:
        bank.backward(torch.stack([run.scaler.scale(run.loss) for run in sound]).sum())
    bank.settle()
    for run, value in zip(runs, values, strict=True):
        if math.isfinite(value):
            run.descend(value)
        else:
            steps = f"step {run.k + 1} of {run.job.recipe.steps}"
            run.fail(BenchError(f"The loss became {value} in {steps}; lower the learning rate (method.recipe.lr)."))


@dataclass
class _Run:
    """A job with its coroutine, its optimizer and its place in time."""

    job: Job
    bank: Bank
    k: int = 0
    pending: Ask | Loss | None = None
    finished: bool = False
    failure: Exception | None = None
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        recipe, device = self.job.recipe, self.bank.backbone.device
        whole = {name: self.bank.row(name, self.job.cell) for name in self.bank.specs}
        self.rows = {label: row[part] for name, row in whole.items() for label, part in self.bank.parts(name).items()}
        groups = [{"params": [row], "name": name} for name, row in self.rows.items()]
        self.kind, self.draws = self.job.options.optimizer, self.job.options.accumulate
        self.optimizer = optimizers.made(self.kind, groups, recipe)
        self.average = None if self.job.options.ema is None else Average(self.rows, self.job.options.ema)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.bank.backbone.dtype == torch.float16)
        self.trained: frozenset[str] = frozenset()
        self.saved_at, self.save_s = time.monotonic(), 0.0

    @property
    def ask(self) -> Ask:
        assert isinstance(self.pending, Ask)
        return self.pending

    @property
    def loss(self) -> Tensor:
        assert isinstance(self.pending, Loss)
        return self.pending.value

    def seed(self) -> int:
        """Of the dropout in the next pass: it depends on the cell's seed and on the draws and losses before it."""
        return generator("pass", self.job.seed, self.k * self.draws + self.draw, self.place).initial_seed()

    def start(self) -> bool:
        if self.job.checkpoint is not None:
            self._restore(self.job.checkpoint)
        return self._begin()

    def next_step(self, stopping: bool = False) -> bool:
        """Go on to the next step; False at the end of the recipe, or when stopping."""
        self._follow()
        self.k, self.finished, self.losses = self.k + 1, False, []
        self._save_when_due(stopping)
        return not stopping and self._begin()

    def _follow(self) -> None:
        """Take the step into the average, which takes the place of the adapters after the last one."""
        if self.average is not None:
            self.average.follow(self.k)
            if self.k + 1 == self.job.recipe.steps:
                self.average.install()

    def _begin(self) -> bool:
        if self.k >= self.job.recipe.steps:
            return False
        self.draw = 0
        self.sums: dict[int, dict[str, Tensor]] = {}  # place of a loss in its draw -> adapter -> gradient
        self._draw()
        return True

    def _draw(self) -> None:
        """Begin one of the draws of a step: random numbers depend on the seed and the number of draws before it."""
        self.place = 0
        rng = generator("train", self.job.seed, self.k * self.draws + self.draw)
        self.coroutine: Generator[Ask | Loss, Any, None] = self.job.method.step(self.job.data, self.k, rng)
        self.advance(None)

    def advance(self, answer: Tensor | None) -> None:
        """Send an answer into the coroutine and keep what it wants next; what it raises ends this run alone."""
        try:
            self.pending = self.coroutine.send(answer)
        except StopIteration:
            self._end_draw()
        except Exception as error:
            self.fail(error)
        if isinstance(self.pending, Ask) and self.pending.trains:
            self.trained = self.pending.trains

    def _end_draw(self) -> None:
        self.pending, self.draw = None, self.draw + 1
        if self.draw < self.draws:
            self._draw()
        else:
            self.finished = True

    def descend(self, value: float) -> None:
        """Take in the gradients of a loss; in the last draw of a step, update the adapters with their mean.

        The losses of a draw are counted, and each has gradients of its own. Adapters that no ask trained have none.
        """
        grads = self.sums.setdefault(self.place, {})
        for name in self.trained:
            for label, part in self.bank.parts(name).items():
                grad = self.bank.grad_row(name, self.job.cell)[part]
                grads[label] = grad if self.draws == 1 else grads.get(label, 0) + grad / self.draws
        if self.draw + 1 == self.draws:
            self._update(grads)
        self.losses += [0.0] * (self.place + 1 - len(self.losses))
        self.losses[self.place] += value / self.draws
        self.place += 1
        self.advance(None)

    def _update(self, grads: Mapping[str, Tensor]) -> None:
        recipe = self.job.recipe
        for name, row in self.rows.items():
            row.grad = grads.get(name)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self._recipe_of(group["name"]), self.k)
        if recipe.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_([self.rows[name] for name in grads], recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _recipe_of(self, label: str) -> Recipe:
        """The recipe with the learning rate of a part of an adapter: text encoders may have their own."""
        options, recipe = self.job.options, self.job.recipe
        if ":" not in label or options.text_encoder_lr is None:
            return recipe
        return replace(recipe, lr=options.text_encoder_lr * options.lr_scale)

    def check_end(self) -> None:
        """Each step must have used the options of its data, and after the last one every adapter must have learned."""
        steps = self.job.recipe.steps
        if self.failure is None:
            sentence = unused(self.job.options, self.job.data)
            if self.k + 1 == steps:
                sentence = sentence or untrained(self.bank.specs, self.rows, self.optimizer, steps)
            if sentence:
                self.fail(BenchError(sentence))

    def fail(self, error: Exception) -> None:
        self.finished, self.pending, self.failure = True, None, error

    def report(self) -> Step:
        rate = learning_rate(self.job.recipe, self.k)
        return Step(self.job.cell, self.k + 1, tuple(self.losses), rate, self.failure)

    # --- checkpoints: the adapters and what AdamW remembers of them, as one safetensors file

    def _save_when_due(self, now: bool) -> None:
        """Save at the end, and on the way as often as `CHECKPOINT_SHARE` allows."""
        due = now or (time.monotonic() - self.saved_at) * CHECKPOINT_SHARE > max(self.save_s, 0.02)
        if self.job.checkpoint is not None and (due or self.k == self.job.recipe.steps) and self.job.mine():
            started = time.monotonic()
            self._save(self.job.checkpoint)
            self.saved_at = time.monotonic()
            self.save_s = self.saved_at - started

    def _save(self, path: Path) -> None:
        tensors = {f"{name}/theta": row for name, row in self.rows.items()}
        for name, row in self.rows.items():
            for key, value in optimizers.state(self.kind, self.optimizer, row).items():
                tensors[f"{name}/{key}"] = value
            if self.average is not None:
                tensors[f"{name}/{checkpoint.AVERAGE}"] = self.average.values[name]
        tensors["k"] = torch.tensor(self.k)
        if self.scaler.is_enabled():
            tensors["scale"] = torch.tensor([self.scaler.get_scale(), self.scaler._get_growth_tracker()])
        checkpoint.save(path, tensors)

    def _restore(self, path: Path) -> None:
        """Go on where the checkpoint was written; from the beginning where it is damaged."""
        tensors = checkpoint.read(path, self.rows, self.job.recipe.steps)
        if tensors is None:
            return
        self.k = int(tensors["k"])
        for name, row in self.rows.items():
            found = {key.split("/")[1]: value for key, value in tensors.items() if key.startswith(f"{name}/")}
            row.copy_(found.pop("theta"))
            average = found.pop(checkpoint.AVERAGE, None)
            if self.average is not None and average is not None:
                self.average.values[name].copy_(average)
            optimizers.restored(self.kind, self.optimizer, row, found)
        if "scale" in tensors:
            scale, growth = tensors["scale"].tolist()
            self.scaler.load_state_dict(self.scaler.state_dict() | {"scale": scale, "_growth_tracker": int(growth)})
