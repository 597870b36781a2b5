"""The part of a plan that speaks of GPU memory: a training step of each kind of cell, from shapes alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from bench.backbones.architectures import published
from bench.cell import Cell
from bench.contracts import AdapterSpec, Ask, Backbone, BenchError, Dataset, Example, Method, Text, TrainingData
from bench.sweeps.plan import kind

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def sentences(cells: Sequence[Cell], pack: int) -> Iterator[str]:
    """One for each kind of cell on a backbone whose shapes are known; `pack` cells train together."""
    kinds = {kind(cell.method, cell.backbone, cell.trainer): cell for cell in cells if "recipe" in cell.method}
    for cell in kinds.values():
        if published(cell.backbone) is None:
            continue
        name = f"{cell.method['name']} on {cell.backbone['name']} at {cell.backbone['resolution']} pixels"
        try:
            yield f"memory of {name}: {_words(cell, pack)}"
        except BenchError as reason:
            yield f"no forecast of memory for {name}: {reason}"


def _words(cell: Cell, pack: int) -> str:
    from bench.steps.work import Work
    from bench.training import memory

    work = Work(cell, cell.results)
    specs = work.method.adapters(work.dataset)
    if not all(isinstance(spec, AdapterSpec) for spec in specs.values()):
        raise BenchError("it is known for low-rank adapters alone.")
    low_rank = {name: spec for name, spec in specs.items() if isinstance(spec, AdapterSpec)}
    rows = training_rows(work.method, work.dataset)
    trained = {**cell.backbone, "resolution": work.trainer.resolution or cell.backbone["resolution"]}
    found = [(n, memory.forecast(trained, low_rank, rows, n)) for n in sorted({1, pack})]
    return "; ".join(f"{f'{n} cells in a pack' if n > 1 else 'one cell'} {made.words()}" for n, made in found)


def training_rows(method: Method, dataset: Dataset) -> int:
    """The most rows that an ask with gradients has in a step, from the first and the last step on blank latents."""
    import torch

    recipe = method.recipe
    assert recipe is not None
    data, most = _Blank(dataset, recipe.batch_size), 1
    for k in (0, recipe.steps - 1):
        step = method.step(data, k, torch.Generator().manual_seed(0))
        said: Any = next(step, None)
        while said is not None:
            reply = None
            if isinstance(said, Ask):
                most = max(most, len(said.z)) if said.trains else most
                reply = torch.zeros_like(said.z).requires_grad_()
            said = _next(step, reply)
    return most


def _next(step: Any, reply: Any) -> Any:
    try:
        return step.send(reply)
    except StopIteration:
        return None


class _Blank(TrainingData):
    """Latents (B, 1, 8, 8) of zeros for any role, and texts without words."""

    def __init__(self, dataset: Dataset, batch_size: int):
        from typing import cast

        self.dataset, self.batch_size = dataset, batch_size
        shapes = SimpleNamespace(train_timesteps=1000, latent_shape=(1, 8, 8), rollout_scheduler="ddim")
        shapes.draw_timesteps = lambda n, rng: _timesteps(n)
        self.backbone = cast(Backbone, shapes)

    def draw(self, roles: Sequence[str], rng: torch.Generator) -> tuple[list[Tensor], list[Example]]:
        import torch

        halves = [half for pair in self.dataset.pairs for half in (pair.content, pair.style)]
        examples = [*halves, *self.dataset.references, *self.dataset.auxiliary]
        return [torch.zeros(self.batch_size, 1, 8, 8) for _ in roles], examples[:1] * self.batch_size

    def text(self, prompts: Sequence[str]) -> Text:
        import torch

        return Text(torch.zeros(len(prompts), 1, 1), prompts=tuple(prompts))

    def noisy(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return z

    def target(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return eps

    def start_noise(self, rng: torch.Generator) -> Tensor:
        import torch

        return torch.zeros(self.batch_size, 1, 8, 8)

    def scheduler(self, name: str, steps: int) -> Any:
        made = SimpleNamespace(timesteps=_timesteps(steps))
        made.step = lambda out, t, z: SimpleNamespace(prev_sample=z)
        return made


def _timesteps(n: int) -> Tensor:
    import torch

    return torch.full((n,), 500)
