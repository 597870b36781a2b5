"""Faster backends to run the network in training, each kept only where it pays: channels_last, and compiled blocks.

A pack starts as its backbone was loaded. Where a backend may save more over the ticks left than it may cost, it is
tried on the training itself, and stays if its ticks were quicker. What was found holds for the process, and so do the
compiled blocks. Weights differ by rounding; samples are always drawn as the backbone was loaded.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from statistics import median
from typing import Any

import torch

from bench.contracts import AdapterSpec, Backbone, BenchError, Spec

BACKENDS = ("channels_last", "compile")  # in this order: another layout is compiled anew
GUESSES = {"channels_last": (0.9, 1.0), "compile": (0.75, 60.0)}  # share of a tick's seconds left, cost in seconds
WINDOW = 12  # ticks whose median is compared
GAIN = 1.03  # what is kept is so much quicker
REQUESTED = ("auto", True, False, "graphs")
VARIANTS = 64  # of compiled code: widths of blocks times routings of rows

log = logging.getLogger(__name__)


def pays(now_s: float, then_s: float, cost_s: float, left: int) -> bool:
    """Whether going from `now_s` to `then_s` seconds a tick, for `cost_s` once, is quicker over `left` ticks."""
    return (now_s - then_s) * left > cost_s


def offered(requested: Any, backbone: Backbone, specs: Mapping[str, Spec]) -> list[str]:
    """The backends that a pack may run in, for a setting `trainer.compile`. Raises BenchError when it means nothing.

    `auto` offers them on a GPU alone: there a step of a small batch waits for launches, which compiled code has fewer
    of. `graphs` is `true` with CUDA graphs.
    """
    if requested not in REQUESTED or (requested == "graphs" and backbone.device.type != "cuda"):
        raise BenchError(
            f"trainer.compile={requested} was requested on {backbone.device.type}; "
            "type trainer.compile=auto, true, false, or on a GPU graphs."
        )
    if requested is False or not all(isinstance(spec, AdapterSpec) and not spec.dropout for spec in specs.values()):
        return []
    if requested != "auto":
        return ["compile"]
    if backbone.device.type != "cuda":
        return []
    plain = importlib.util.find_spec("triton") is not None and not _checkpointed(backbone.network)
    return [backend for backend in BACKENDS if plain or backend != "compile"]


def _checkpointed(network: Any) -> bool:
    return bool(getattr(network, "is_gradient_checkpointing", False))


def backends_of(backbone: Backbone) -> Backends:
    """Of this backbone, kept with it: what is compiled once stays for all packs that it trains."""
    if "_backends" not in vars(backbone):
        vars(backbone)["_backends"] = Backends(backbone.network)
    return vars(backbone)["_backends"]


class Backends:
    """A network's repeated blocks as they are and compiled, its memory layout, and what is known of both."""

    def __init__(self, network: Any):
        kinds = getattr(network, "_repeated_blocks", None) or ()  # diffusers names their classes
        self.network = network
        self.blocks: list[Any] = [module for module in network.modules() if type(module).__name__ in kinds]
        self.failure: str | None = None  # a sentence; from then on the blocks run as they are
        self.known = dict(GUESSES)  # measured values take their place
        self.tried: dict[Any, dict[str, bool]] = {}  # kind of tick -> backend -> whether it was kept
        self._forwards: dict[bool, list[Callable]] = {}  # by whether with CUDA graphs
        self._loaded = _layout(network)
        self._now = self._loaded

    def lay(self, channels_last: bool) -> None:
        """Put the frozen weights into this memory layout, or back into the one they were loaded in."""
        wanted = torch.channels_last if channels_last else self._loaded
        if wanted != self._now:
            self.network.to(memory_format=wanted)
            self._now = wanted

    @contextmanager
    def running(self, backends: Collection[str], graphs: bool = False) -> Iterator[None]:
        """The network runs in these backends; afterwards its blocks are as they were."""
        self.lay("channels_last" in backends)
        forwards = self._compiled(graphs) if "compile" in backends and self.failure is None else []
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            for block, forward in zip(self.blocks, forwards, strict=False):
                block.forward = forward
            yield
        finally:
            for block in self.blocks:
                vars(block).pop("forward", None)

    def _compiled(self, graphs: bool) -> list[Callable]:
        """Blocks of one class share their code, and so what is compiled of it."""
        if graphs not in self._forwards:
            try:
                import torch._dynamo

                torch._dynamo.config.skip_nnmodule_hook_guards = False  # adapters come and go as hooks
                torch._dynamo.config.cache_size_limit = VARIANTS
                options: dict[str, Any] = {"mode": "reduce-overhead"} if graphs else {}
                made = [self._safe(block.forward, torch.compile(block.forward, **options)) for block in self.blocks]
            except Exception as error:
                self._fail(error)
                return []
            self._forwards[graphs] = made
        return self._forwards[graphs]

    def _safe(self, plain: Callable, compiled: Callable) -> Callable:
        """Falls back for good when the compiler fails; what fails uncompiled as well is not the compiler's."""

        @wraps(plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.failure is not None:
                return plain(*args, **kwargs)
            try:
                return compiled(*args, **kwargs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                out = plain(*args, **kwargs)
                self._fail(error)
                return out

        return forward

    def _fail(self, error: Exception) -> None:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        self.failure = f"the blocks could not be compiled and ran as they are ({type(error).__name__}: {reason})"
        log.warning("%s", self.failure)


def _layout(network: Any) -> torch.memory_format:
    """Of the spatial convolutions."""
    kernels = [weight for weight in network.parameters() if weight.dim() == 4 and weight.shape[-1] > 1]
    last = bool(kernels) and not kernels[0].is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


class Timing:
    """The backends in which one kind of tick runs, chosen by the seconds of its ticks as they pass."""

    def __init__(self, backends: Backends, offered: Sequence[str], tried: dict[str, bool], graphs: bool = False):
        self.backends, self.tried, self.graphs = backends, tried, graphs
        self.on = [backend for backend in offered if tried.get(backend)]
        self.to_try = [backend for backend in offered if backend not in tried]
        self.trying: str | None = None
        self.best_s = math.inf
        self.seconds: list[float] = []

    def running(self) -> Any:
        return self.backends.running(self.on, self.graphs)

    def ran(self) -> list[str]:
        """The backends of the last tick: without compiled blocks where the compiler failed."""
        return [backend for backend in self.on if backend != "compile" or self.backends.failure is None]

    def passed(self, seconds: float, left: int) -> None:
        """A tick took so many seconds, and `left` of its kind are to come."""
        if self.trying is None and not self.to_try:
            return
        self.seconds.append(seconds)
        if len(self.seconds) < (WINDOW if self.trying is None else 2 * WINDOW):  # the first half of a trial warms up
            return
        now_s = median(self.seconds[-WINDOW:])
        if self.trying is None or self._keeps(self.trying, now_s):
            self.best_s = now_s
        self._try_next(left)

    def _keeps(self, backend: str, now_s: float) -> bool:
        """Whether the backend that was tried stays; what it saved and cost is known from now on."""
        cost_s = sum(max(0.0, seconds - now_s) for seconds in self.seconds)
        self.backends.known[backend] = (now_s / self.best_s, cost_s)
        self.tried[backend] = now_s * GAIN < self.best_s and (backend != "compile" or self.backends.failure is None)
        log.info("%s: %.4f s a tick instead of %.4f, %.1f s to begin", backend, now_s, self.best_s, cost_s)
        if not self.tried[backend]:
            self.on.remove(backend)
        return self.tried[backend]

    def _try_next(self, left: int) -> None:
        self.trying, self.seconds = None, []
        while self.to_try and self.trying is None:
            backend = self.to_try.pop(0)
            share, cost_s = self.backends.known[backend]
            if pays(self.best_s, share * self.best_s, cost_s, left):
                self.trying = backend
                self.on.append(backend)
