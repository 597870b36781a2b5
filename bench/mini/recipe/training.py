"""What the stages share: progress with rate and time left, checkpoints, averages, batches from (seed, step)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


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


@dataclass
class Fit:
    """A resumable optimisation of some modules; `averages` are their exponential moving averages."""

    name: str
    folder: Path
    modules: dict[str, nn.Module]
    steps: int
    lr: float
    weight_decay: float = 0.01
    save_every_s: float = 120
    schedule: Callable[[int, int], float] = warm_cosine
    step: int = 0
    averages: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parameters = [p for m in self.modules.values() for p in m.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay, betas=(0.9, 0.99))
        self.file = self.folder / f"{self.name}.checkpoint.pt"
        if self.file.exists():
            self._resume()
        elif not self.averages:
            self.averages = {
                k: {n: v.detach().clone() for n, v in m.state_dict().items()} for k, m in self.modules.items()
            }

    def _resume(self) -> None:
        saved = torch.load(self.file, map_location="cpu", weights_only=True)
        for key, module in self.modules.items():
            module.load_state_dict(saved["modules"][key])
        device = next(next(iter(self.modules.values())).parameters()).device
        self.averages = {k: {n: v.to(device) for n, v in m.items()} for k, m in saved["averages"].items()}
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step = saved["step"]
        print(f"{self.name}: resumed at step {self.step}", flush=True)

    def save(self) -> None:
        state = {
            "modules": {k: m.state_dict() for k, m in self.modules.items()},
            "averages": self.averages,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        torch.save(state, self.file.with_suffix(".tmp"))
        os.replace(self.file.with_suffix(".tmp"), self.file)

    def _average(self) -> None:
        decay = average_decay(self.step)
        for key, module in self.modules.items():
            for name, value in module.state_dict().items():
                mean = self.averages[key][name]
                mean.lerp_(value, 1 - decay) if mean.is_floating_point() else mean.copy_(value)

    def run(self, loss_at: Callable[[int], Tensor]) -> None:
        """Minimise loss_at(step) from the current step to the last; a checkpoint now and then and at the end."""
        progress, saved = Progress(self.name, self.steps, self.step), time.time()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        smooth = None
        while self.step < self.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * self.schedule(self.step, self.steps)
            loss = loss_at(self.step)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            self._average()
            value = float(loss.detach())
            if not np.isfinite(value):
                raise FloatingPointError(
                    f"{self.name}: the loss is {value} at step {self.step}; lower the learning rate."
                )
            smooth = value if smooth is None else 0.98 * smooth + 0.02 * value
            progress.tick(f"loss {smooth:.4f}")
            if time.time() - saved > self.save_every_s:
                self.save()
                saved = time.time()
        self.save()

    def finished(self) -> dict[str, nn.Module]:
        """The modules with their averaged weights, in evaluation mode."""
        for key, module in self.modules.items():
            module.load_state_dict(self.averages[key])
            module.eval()
        return self.modules
