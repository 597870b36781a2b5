"""Self-attention that also reads the tokens of a reference row (StyleAligned, arXiv 2312.02133).

    out = Attn(adain(q, q_r), [adain(k, k_r); k_r], [v; v_r]),    scores of the reference's tokens + log(scale)

AdaIN gives queries and keys the mean and deviation over tokens that the reference's have. With `share_norm`
group normalisations take their statistics over a row and its reference. There are no numbers to train.
B rows of a pass, R rows that share, N tokens, C attention width, h heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.adapters.routing import Block
from bench.contracts import Ask, Backbone, BenchError, Impossible, SharedAttentionSpec

EPS = 1e-5  # of AdaIN, as in the authors' code


class SharedAttention:
    """All self-attention layers of a network, for all cells."""

    def __init__(self, backbone: Backbone, spec: SharedAttentionSpec):
        self.spec = spec
        self.layers: dict[str, Any] = {
            name: module for name, module in backbone.network.named_modules() if name.endswith(".attn1")
        }
        if not self.layers:
            raise Impossible(f"The backbone {backbone.name} has no self-attention layers to share; choose another one.")
        self.norms = [module for module in backbone.network.modules() if isinstance(module, nn.GroupNorm)]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.weights: dict[str, Tensor] = {}
        self.rows: Tensor | None = None  # (R,) rows of the current pass that share, with the rows that they share with
        self.others: Tensor | None = None  # (R,)
        self.scale: Tensor | None = None  # (R,)
        self._kept: dict[str, dict[str, Tensor]] = {}

    def begin(self, cell: int, generator: Any) -> None:
        """Nothing to draw."""

    def state(self, cell: int) -> dict[str, Tensor]:
        return {}

    def load(self, cell: int, state: Mapping[str, Tensor]) -> None:
        """Nothing to load."""

    def files(self, name: str) -> dict[str, str]:
        return {}

    # --- one forward pass

    def look(self, name: str, asks: Sequence[tuple[int, Ask]], blocks: Sequence[Block]) -> None:
        """Take the rows of the blocks and, from their asks, the rows that they share with. Raises BenchError."""
        rows = [row for block in blocks for row in block.listed(sum(len(ask.z) for _, ask in asks))]
        others = _references(name, asks)
        self.settle()
        if rows:
            device = blocks[0].scale.device
            self.rows = torch.tensor(rows, device=device)
            self.others = torch.tensor([others[row] for row in rows], device=device)
            self.scale = torch.cat([block.scale for block in blocks])

    def settle(self) -> None:
        self.rows, self._kept = None, {}

    def attach(self) -> list[Any]:
        """Hooks that keep each layer's queries, keys and values and put the shared attention before its output."""
        hooks = []
        for name, layer in self.layers.items():
            for kind in "qkv":
                hooks.append(getattr(layer, f"to_{kind}").register_forward_hook(self._keep(name, kind)))
            hooks.append(layer.to_out[0].register_forward_pre_hook(self._share(name)))
        return hooks + [norm.register_forward_hook(self._normalise) for norm in self.norms if self.spec.share_norm]

    def _keep(self, name: str, kind: str):
        def keep(module: nn.Module, args: tuple, out: Tensor) -> None:
            if self.rows is not None:
                self._kept.setdefault(name, {})[kind] = out

        return keep

    def _share(self, name: str):
        def share(module: nn.Module, args: tuple) -> tuple | None:
            if self.rows is None:
                return None
            kept = self._kept.pop(name)
            q, k, v = ((kept[kind][self.rows], kept[kind][self.others]) for kind in "qkv")
            own = shared(q, k, v, self.layers[name].heads, self.scale, self.spec.adain)
            return (args[0].index_copy(0, self.rows, own.to(args[0])), *args[1:])

        return share

    def _normalise(self, module: Any, args: tuple, out: Tensor) -> Tensor | None:
        """A row and its reference one below the other, normalised together; the row is kept."""
        if self.rows is None:
            return None
        x = args[0]
        both = torch.cat([x[self.rows], x[self.others]], dim=-2)
        made = F.group_norm(both, module.num_groups, module.weight, module.bias, module.eps)
        return out.index_copy(0, self.rows, made[..., : x.shape[-2], :].to(out))


def shared(q: tuple, k: tuple, v: tuple, heads: int, scale: Any, with_adain: bool) -> Tensor:
    """Attention (R, N, C) of rows whose q, k, v, each (own, reference's) of (R, N, C), share with their references."""
    (query, q_ref), (key, k_ref), (value, v_ref) = (
        tuple(x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in pair) for pair in (q, k, v)
    )  # (R, h, N, C / h)
    if with_adain:
        query, key = adain(query, q_ref), adain(key, k_ref)
    n = key.shape[-2]
    shift = query.new_zeros(len(query), 1, 1, 2 * n)
    shift[..., n:] = scale.to(query).log()[:, None, None, None]
    keys, values = torch.cat([key, k_ref], -2), torch.cat([value, v_ref], -2)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=shift).transpose(1, 2).flatten(2)


def adain(x: Tensor, reference: Tensor) -> Tensor:
    """x (.., N, d) with the mean and the deviation over tokens of the reference."""

    def moments(y: Tensor) -> tuple[Tensor, Tensor]:
        return y.mean(-2, keepdim=True), (y.var(-2, keepdim=True) + EPS).sqrt()

    (mean, std), (wanted, wanted_std) = moments(x), moments(reference)
    return (x - mean) / std * wanted_std + wanted


def _references(name: str, asks: Sequence[tuple[int, Ask]]) -> dict[int, int]:
    """Row -> row that it shares with, both in the whole pass. Raises BenchError for an ask that does not say so."""
    found: dict[int, int] = {}
    start = 0
    for _, ask in asks:
        if name in ask.adapters and len(ask.references) != len(ask.z):
            raise BenchError(
                f"The adapter {name!r} takes part in an ask of {len(ask.z)} rows, {len(ask.references)} of which say "
                "their reference; give Ask.references a row for each."
            )
        found |= {start + row: start + other for row, other in enumerate(ask.references)}
        start += len(ask.z)
    return found
