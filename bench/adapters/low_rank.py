"""Stacked low-rank layers: how they begin, and what they add to a layer's output.

K cells, B rows, r rank. `down` (K, r, in), `up` (K, out, r); for convolutions `down` (K, r, in, kh, kw).
LoRA: Hu et al. 2021; orthonormal frozen `down`: Pair Customization (arXiv 2405.01536) section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.adapters import dora
from bench.adapters.routing import Block
from bench.contracts import AdapterSpec, BenchError
from bench.seeding import generator

MAGNITUDE = "lora_magnitude_vector"  # of DoRA, in the names of PEFT
SMALL_RANK, SMALL = 8, 64  # of convolutional adapters: rank, and rank times cells


@dataclass
class Layer:
    """One adapter at one site, for all cells."""

    module: Any  # nn.Linear or nn.Conv2d
    down: Tensor  # (K, r, in) or (K, r, in, kh, kw)
    up: Tensor  # (K, out, r)
    scale: float  # alpha / rank
    magnitude: Tensor | None = None  # (K, out) of DoRA
    dropout: float = 0.0  # share of the inputs of `down` that are 0 in training
    site: str = ""

    def halves(self) -> dict[str, Tensor]:
        """The stacked weights by the names of PEFT."""
        lengths = {} if self.magnitude is None else {MAGNITUDE: self.magnitude}
        return {"lora_A.weight": self.down, "lora_B.weight": self.up, **lengths}

    def stored(self, name: str) -> tuple[int, ...]:
        """Shape of one of them in a file."""
        shape = tuple(self.halves()[name].shape[1:])
        if self.down.dim() != 5 or name == "lora_A.weight":
            return shape
        return (1, *shape, 1, 1) if name == MAGNITUDE else (*shape, 1, 1)


def orthonormal(spec: AdapterSpec, shape: tuple[int, ...]) -> Tensor:
    """Rows (1, r, in...) of the frozen basis that the spec names."""
    assert spec.orthonormal_row is not None
    first, last, width = spec.orthonormal_row, spec.orthonormal_row + spec.rank, prod(shape[1:])
    if last > width:
        raise BenchError(
            f"Orthonormal adapters need {last} rows in all, but a layer has only {width} inputs; "
            f"choose ranks that add up to at most {width}, e.g. method.rank={width // 2}."
        )
    return basis(width, spec.basis_seed)[first:last].reshape(1, *shape)


def _gaussian(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=rng) / shape[0]


def _kaiming(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return nn.init.kaiming_uniform_(torch.empty(shape), a=1, generator=rng)


def _kaiming_sqrt5(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return nn.init.kaiming_uniform_(torch.empty(shape), a=5**0.5, generator=rng)


# of the trained `down` (r, in, ...)
INITS = {"gaussian": _gaussian, "kaiming": _kaiming, "kaiming_sqrt5": _kaiming_sqrt5}


@cache
def basis(width: int, seed: int) -> Tensor:
    """A random orthonormal basis (width, width), the Q of a Gaussian matrix, the same for every layer of that width."""
    gaussian = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(gaussian).Q


def widths(module: Any) -> tuple[tuple[int, ...], int]:
    """Input shape of one adapter row, and output width, of a linear or convolutional layer."""
    if isinstance(module, nn.Conv2d):
        return (module.in_channels, *module.kernel_size), module.out_channels
    return (module.in_features,), module.out_features


def shapes(module: Any, spec: AdapterSpec, rank: int) -> dict[str, tuple[int, ...]]:
    """The trained numbers of one cell at a layer, by field of `Layer`, in the order in which they are kept."""
    inputs, outputs = widths(module)
    down = {"down": (rank, *inputs)} if spec.orthonormal_row is None else {}
    return down | {"up": (outputs, rank)} | ({"magnitude": (outputs,)} if spec.dora else {})


def stacked(site: str, module: Any, spec: AdapterSpec, rank: int, values: Tensor, grads: Tensor) -> Layer:
    """The stacked adapter of K cells at a layer, views of flat numbers and gradients (K, n)."""
    trained = shapes(module, spec, rank)
    sizes = [prod(shape) for shape in trained.values()]
    parts = zip(trained.items(), values.split(sizes, 1), grads.split(sizes, 1), strict=True)
    leaves = {field: leaf(own, gradient, shape) for (field, shape), own, gradient in parts}
    if "down" not in leaves:
        frozen = orthonormal(replace(spec, rank=rank), (rank, *widths(module)[0])).to(values)
        leaves["down"] = frozen.expand(len(values), *frozen.shape[1:])
    scale = 1.0 if spec.alpha is None else spec.alpha / rank
    return Layer(module, scale=scale, dropout=spec.dropout, site=site, **leaves)


def leaf(values: Tensor, grads: Tensor, shape: Sequence[int]) -> Tensor:
    """A trainable view of the flat numbers whose gradient accumulates in the flat gradient."""
    made = values.unflatten(1, tuple(shape)).detach().requires_grad_(True)
    made.grad = grads.unflatten(1, tuple(shape))
    return made


def add_delta(out: Tensor, x: Tensor, own: Tensor, layer: Layer, block: Block) -> Tensor:
    """`out` plus scale * up(down(x)) on the rows of the block; `own` is what the layer alone makes of x."""
    module = layer.module
    if block.rows is not None:
        x = x.index_select(0, block.rows)
    if dropped := bool(layer.dropout and block.seeds):
        x = with_dropout(x, layer, block)
    down, up = _pick(layer.down, block), _pick(layer.up, block)
    if not torch.is_autocast_enabled(x.device.type):
        x = x.to(down.dtype)  # text encoders run in their own precision
    delta = _conv(x, down, up, module, block) if down.dim() == 5 else _linear(x, down, up, block)
    delta, scale = delta.to(out.dtype), layer.scale
    if layer.magnitude is not None:
        if block.ranks is not None:
            raise BenchError("A method with scales of ranks was requested with DoRA; type trainer.dora=false.")
        plain = dora.without_bias(x, module).to(out.dtype) if dropped else _plain(own, module, block)
        ratio = dora.ratios(module, down, up, layer.scale, _pick(layer.magnitude, block))
        delta, scale = dora.delta(plain, delta * scale, ratio, block.size), 1.0
    if not (block.ones and scale == 1):
        delta = delta * (block.scale * scale).to(out.dtype).view(-1, *[1] * (delta.dim() - 1))
    return out + delta if block.rows is None else out.index_add(0, block.rows, delta)


def _plain(own: Tensor, module: Any, block: Block) -> Tensor:
    """The rows of the block of a layer's own output, less the bias."""
    rows = own if block.rows is None else own.index_select(0, block.rows)
    if module.bias is None:
        return rows
    return rows - (module.bias[:, None, None] if isinstance(module, nn.Conv2d) else module.bias)


def with_dropout(x: Tensor, layer: Layer, block: Block) -> Tensor:
    """x (k * b, ...) with a share of its numbers at 0 and the others enlarged; each cell has a mask of its own.

    The mask depends on the cell's seed of this pass and the site alone, so blocks that are computed again have it, too.
    """
    kept = 1 - layer.dropout
    masks = []
    for part, seed in zip(x.split(block.size), block.seeds, strict=True):
        rng = torch.Generator(x.device).manual_seed(generator("dropout", seed, layer.site).initial_seed())
        masks.append(torch.empty(part.shape, device=x.device).bernoulli_(kept, generator=rng))
    return x * (torch.cat(masks) / kept).to(x.dtype)


def _pick(stacked: Tensor, block: Block) -> Tensor:
    """(K, ...) -> (len(cells), ...)"""
    kept = stacked if block.trained else stacked.detach()
    return kept if block.picks is None else kept.index_select(0, block.picks)


def _linear(x: Tensor, down: Tensor, up: Tensor, block: Block) -> Tensor:
    """x (k * b, ..., in) -> (k * b, ..., out), the k-th part of the rows through the k-th adapter."""
    if len(down) == 1:
        return F.linear(_ranked(F.linear(x, down[0]), block, -1), up[0])
    hidden = torch.bmm(x.reshape(len(down), -1, x.shape[-1]), down.transpose(1, 2))
    if block.ranks is not None:
        hidden = _ranked(hidden.reshape(*x.shape[:-1], -1), block, -1).reshape(hidden.shape)
    return torch.bmm(hidden, up.transpose(1, 2)).reshape(*x.shape[:-1], up.shape[1])


def _ranked(hidden: Tensor, block: Block, place: int) -> Tensor:
    """What lies between `down` and `up`, the ranks of its dimension `place` with the scales of each row."""
    if block.ranks is None:
        return hidden
    shape = [len(hidden), *[1] * (hidden.dim() - 1)]
    shape[place] = block.ranks.shape[1]
    return hidden * block.ranks.to(hidden).view(shape)


def _conv(x: Tensor, down: Tensor, up: Tensor, module: Any, block: Block) -> Tensor:
    """x (k * b, in, H, W) -> (k * b, out, H', W'), the k-th part of the rows through the k-th adapter."""
    k, rank = down.shape[:2]
    shape = (module.stride, module.padding, module.dilation)
    if k == 1:
        return F.conv2d(_ranked(F.conv2d(x, down[0], None, *shape), block, 1), up[0, :, :, None, None])
    if rank <= SMALL_RANK and k * rank <= SMALL:
        hidden = _dense(x, down, shape, block.size)
    else:
        hidden = _grouped(x, down, shape, block.size)
    hidden = _ranked(hidden, block, 1)
    ups = up.repeat_interleave(block.size, 0) if block.size > 1 else up
    return torch.bmm(ups, hidden.flatten(2)).unflatten(2, hidden.shape[2:])


def _dense(x: Tensor, down: Tensor, shape: tuple[Any, Any, Any], size: int) -> Tensor:
    """(k * b, in, H, W) -> (k * b, r, H', W'): every row through all adapters, then its own is picked.

    For few narrow adapters this is quicker than a grouped convolution (twice, at 4 to 8 cells of rank 4 on CPU).
    """
    k, rank = down.shape[:2]
    hidden = F.conv2d(x, down.flatten(0, 1), None, *shape)
    own = torch.arange(k, device=x.device)
    return hidden.unflatten(1, (k, rank)).unflatten(0, (k, size))[own, :, own].flatten(0, 1)


def _grouped(x: Tensor, down: Tensor, shape: tuple[Any, Any, Any], size: int) -> Tensor:
    """(k * b, in, H, W) -> (k * b, r, H', W'): one grouped convolution for all cells."""
    k = len(down)
    x = x.unflatten(0, (k, size)).transpose(0, 1).flatten(1, 2)  # (b, k * in, H, W)
    hidden = F.conv2d(x, down.flatten(0, 1), None, *shape, groups=k)  # (b, k * r, H', W')
    return hidden.unflatten(1, (k, -1)).transpose(0, 1).flatten(0, 1)
