"""What the stages share: progress with rate and time left, checkpoints, averages, batches from (seed, step)."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.files import replacing


class Progress:
    """Prints `name step/total rate left` at most every few seconds, one line each, readable in a log."""

    def __init__(self, name: str, total: int, start: int = 0, every_s: float = 20):
        self.name, self.total, self.step, self.every_s = name, total, start, every_s
        self.began, self.first, self.spoke = time.time(), start, 0.0

    def tick(self, note: str = "") -> None:
        self.step += 1
        now = time.time()
        if now - self.spoke < self.every_s and self.step < self.total:
            return
        self.spoke = now
        rate = (self.step - self.first) / max(now - self.began, 1e-9)
        left = (self.total - self.step) / max(rate, 1e-9)
        print(f"{self.name} {self.step}/{self.total}  {rate:.2f}/s  {left:.0f} s left  {note}", flush=True)


def fast_precision(device: str) -> AbstractContextManager:
    """bfloat16 where the machine computes in it; a CPU without it only emulates, ten times slower than float32."""
    if torch.device(device).type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return nullcontext()
    return torch.autocast(device, torch.bfloat16)


def rows_at(seed: int, step: int, size: int, batch: int) -> np.ndarray:
    """Indices (batch,) drawn at a step: a function of (seed, step) alone, so a resumed run is the same run."""
    return np.random.default_rng((seed, step)).integers(0, size, batch)


def warm_cosine(step: int, steps: int, warm: int = 100, floor: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up, then half a cosine down to `floor`."""
    if step < warm:
        return (step + 1) / warm
    return float(floor + (1 - floor) * 0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, steps - warm))))


def warm_hold_cool(step: int, steps: int, warm: int = 200, cool: float = 0.15) -> float:
    """Learning-rate factor: linear warm-up, constant, linear down to 2 % over the last `cool` share."""
    return min(1.0, (step + 1) / warm, max(0.02, (steps - step) / (cool * steps)))


def average_decay(step: int, most: float = 0.998) -> float:
    return min(most, (1 + step) / (10 + step))


@dataclass(frozen=True)
class Run:
    """Where and how long one stage trains; `until` is a time.time()."""

    folder: Path
    steps: int
    seed: int
    device: str
    until: float = float("inf")


class OutOfTime(Exception):
    """The time that a run was given is over; the checkpoint is written."""


@dataclass
class Fit:
    """A resumable optimisation of some modules; `averages` are their exponential moving averages.

    A checkpoint is a safetensors file with every tensor by its path (`modules.unet.conv_in.weight`) and the step.
    """

    name: str
    folder: Path
    modules: dict[str, nn.Module]
    steps: int
    lr: float
    weight_decay: float = 0.01
    save_every_s: float = 300
    schedule: Callable[[int, int], float] = warm_cosine
    most_averaged: float = 0.998
    until: float = float("inf")  # time.time() at which to stop
    state: Path | None = None  # a checkpoint to start from where the folder has none
    step: int = 0
    averages: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parameters = [p for m in self.modules.values() for p in m.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=self.lr, weight_decay=self.weight_decay, betas=(0.9, 0.99), fused=True
        )
        self.file = self.folder / f"{self.name}.checkpoint.safetensors"
        start = self.file if self.file.exists() else self.state
        if start is not None and start.exists():
            self._resume(start)
        elif not self.averages:
            self.averages = {
                k: {n: v.detach().clone() for n, v in m.state_dict().items()} for k, m in self.modules.items()
            }

    def _named(self) -> dict[str, nn.Parameter]:
        """Trained parameters by module and name, in the optimizer's order."""
        named = {f"{k}.{n}": p for k, m in self.modules.items() for n, p in m.named_parameters()}
        return {name: p for name, p in named.items() if p.requires_grad}

    def _resume(self, file: Path) -> None:
        with safe_open(file, "pt") as saved:
            self.step = int(saved.metadata()["step"])
            tensors = {key: saved.get_tensor(key) for key in saved.keys()}  # noqa: SIM118
        for key, module in self.modules.items():
            known = module.state_dict()
            module.load_state_dict({n: tensors[f"modules.{key}.{n}"].to(v.dtype) for n, v in known.items()})
            self.averages[key] = {n: tensors[f"averages.{key}.{n}"].to(v) for n, v in known.items()}
        for name, p in self._named().items():
            moments = {m: tensors[f"{m}.{name}"].to(p) for m in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[p] = {"step": torch.tensor(float(self.step)), **moments}
        print(f"{self.name}: resumed at step {self.step} from {file.name}", flush=True)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint holds."""
        out = {f"modules.{k}.{n}": v for k, m in self.modules.items() for n, v in m.state_dict().items()}
        out |= {f"averages.{k}.{n}": v for k, part in self.averages.items() for n, v in part.items()}
        for name, p in self._named().items():
            moments = self.optimizer.state.get(p) or {m: torch.zeros_like(p) for m in ("exp_avg", "exp_avg_sq")}
            out |= {f"{m}.{name}": moments[m] for m in ("exp_avg", "exp_avg_sq")}
        return {k: v.detach().cpu().contiguous() for k, v in out.items()}

    def save(self) -> None:
        with replacing(self.file) as part:
            save_file(self.tensors(), part, metadata={"step": str(self.step)})

    def _average(self) -> None:
        decay = average_decay(self.step, self.most_averaged)
        for key, module in self.modules.items():
            for name, value in module.state_dict().items():
                mean = self.averages[key][name]
                mean.lerp_(value, 1 - decay) if mean.is_floating_point() else mean.copy_(value)

    def _update(self, loss_at: Callable[[int], Tensor], parameters: list[Tensor]) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * self.schedule(self.step, self.steps)
        loss = loss_at(self.step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._average()
        return float(loss.detach())

    def run(self, loss_at: Callable[[int], Tensor]) -> None:
        """Minimise loss_at(step) from the current step to the last; a checkpoint now and then and at the end.

        Raises OutOfTime after `until`, and FloatingPointError where the loss is not finite.
        """
        progress, saved = Progress(self.name, self.steps, self.step), time.time()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        smooth = None
        while self.step < self.steps:
            value = self._update(loss_at, parameters)
            if not np.isfinite(value):
                raise FloatingPointError(f"{self.name}: the loss is {value} at step {self.step}; lower the rate.")
            smooth = value if smooth is None else 0.98 * smooth + 0.02 * value
            progress.tick(f"loss {smooth:.4f}")
            if time.time() - saved > self.save_every_s:
                self.save()
                saved = time.time()
            if time.time() > self.until:
                self.save()
                raise OutOfTime(f"{self.name}: stopped at step {self.step} of {self.steps}; start again to go on.")
        self.save()

    def finished(self) -> dict[str, nn.Module]:
        """The modules with their averaged weights, in evaluation mode."""
        for key, module in self.modules.items():
            module.load_state_dict(self.averages[key])
            module.eval()
        return self.modules


def averaged(checkpoint: Path, name: str, module: nn.Module) -> nn.Module:
    """A module of that name with the averaged weights of a checkpoint, in evaluation mode."""
    with safe_open(checkpoint, "pt") as saved:
        module.load_state_dict({k: saved.get_tensor(f"averages.{name}.{k}").float() for k in module.state_dict()})
    return module.eval()
