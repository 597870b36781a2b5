"""One training step of a method, walked through without a trainer: its asks, its losses, and whom they train."""

import random
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bench.contracts import Ask, Loss
from bench.seeding import generator


@dataclass
class Walked:
    """Asks with their answers; of each loss its value, the place of the ask that it trains, and its gradients."""

    asks: list[Ask] = field(default_factory=list)
    answers: list[Tensor] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    trained_by: list[int | None] = field(default_factory=list)  # place in `asks`
    gradients: list[dict[str, Tensor]] = field(default_factory=list)  # adapter -> (n,)


def walk(method, data, k, answer: Callable[[int, Ask], Tensor], gradients=lambda ask, loss: {}) -> Walked:
    """Step k of the cell with seed 0. `answer` is given an ask and its place, `gradients` an ask and its loss."""
    walked, reply, last = Walked(), None, None
    step = method.step(data, k, generator("train", 0, k))
    while True:
        try:
            said = step.send(reply)
        except StopIteration:
            return walked
        assert isinstance(said, (Ask, Loss)), f"step {k} yields {said!r}, neither an Ask nor a Loss"
        if isinstance(said, Ask):
            reply, last = answer(len(walked.asks), said), len(walked.asks) if said.trains else last
            walked.asks.append(said)
            walked.answers.append(reply.detach())
        else:
            reply = None
            walked.losses.append(said.value.item())
            walked.trained_by.append(last)
            walked.gradients.append(gradients(None if last is None else walked.asks[last], said.value))


def walk_on(bank, method, data, k, replayed: Walked | None = None) -> Walked:
    """Step k on a bank, with the gradients of each loss. `replayed` gives the answers that have no gradient."""

    def answer(place: int, ask: Ask) -> Tensor:
        if replayed is not None and not ask.trains:
            return replayed.answers[place]
        return bank.answer([(0, ask)])[0]

    def gradients(ask: Ask | None, loss: Tensor) -> dict[str, Tensor]:
        if ask is None or not loss.requires_grad:
            return {}
        bank.backward(loss)
        bank.settle()
        return {name: bank.grad_row(name, 0).clone() for name in sorted(ask.trains)}

    return walk(method, data, k, answer, gradients)


@contextmanager
def global_random(seed):
    """The global random states of Python, NumPy and torch start at a seed; whoever draws from one of them fails."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        start = _states()
        yield
        drawn = [name for name, state in _states().items() if state != start[name]]
        assert not drawn, (
            f"it draws from the global random state of {', '.join(drawn)}; draw with the rng that is given"
        )
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _states():
    numpy = np.random.get_state()
    return {
        "Python": random.getstate(),
        "NumPy": (numpy[1].tobytes(), *numpy[2:]),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
