"""Which rows of a forward pass use an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.contracts import Ask


@dataclass
class Block:
    """Rows of the current forward pass that use one adapter: `size` consecutive rows for each of `cells`.

    What compiled blocks read of it (`bench.training.compiling`) is tensors and few constants: `picks`, not `cells`.
    """

    rows: Tensor | None  # (len(cells) * size,), or None for all rows in order
    cells: tuple[int, ...]
    picks: Tensor | None  # cells as an index (len(cells),), or None for all cells in order
    size: int
    scale: Tensor  # (len(cells) * size,)
    ones: bool = False  # the scale is 1 everywhere
    trained: bool = True
    ranks: Tensor | None = None  # (len(cells) * size, r) scales of the ranks, beside `scale`
    seeds: tuple[int, ...] = ()  # of the dropout of each of the cells, in passes that train the adapter

    def listed(self, total: int) -> list[int]:
        """The rows, of `total` in the pass."""
        return list(range(total)) if self.rows is None else self.rows.tolist()


def blocks(
    name: str,
    asks: Sequence[tuple[int, Ask]],
    cells: int,
    device: torch.device,
    trained: bool,
    seeds: Sequence[int] = (),
) -> list[Block]:
    """Rows that use an adapter of `cells` cells, in blocks in which every cell has the same number of rows.

    `seeds`, one for each ask, are those of the dropout.
    """
    by_size: dict[int, list[tuple[int, list[int], list[float]]]] = {}
    start, ranks = 0, _ranks(name, asks)
    for cell, ask in asks:
        size, scale = len(ask.z), ask.adapters.get(name)
        if isinstance(scale, Tensor) and scale.dim() == 2:
            scale = scale.any(1).double()  # the scales themselves stand in `ranks`
        scales = scale.tolist() if isinstance(scale, Tensor) else [scale or 0.0] * size
        used = {start + row: value for row, value in enumerate(scales) if value}
        if used:
            by_size.setdefault(len(used), []).append((cell, list(used), list(used.values())))
        start += size
    everywhere, dtype = list(range(cells)), asks[0][1].z.dtype
    found = [_block(size, users, start, everywhere, dtype, device, trained) for size, users in by_size.items()]
    if trained and seeds:
        own = dict(zip([cell for cell, _ in asks], seeds, strict=False))
        found = [replace(block, seeds=tuple(own[cell] for cell in block.cells)) for block in found]
    return found if ranks is None else [replace(block, ranks=ranks[block.listed(start)].to(device)) for block in found]


def _ranks(name: str, asks: Sequence[tuple[int, Ask]]) -> Tensor | None:
    """(B, r) scales of the ranks of all rows, 1 where an ask gives none; None where no ask does."""
    scales = [ask.adapters.get(name) for _, ask in asks]
    given = [scale for scale in scales if isinstance(scale, Tensor) and scale.dim() == 2]
    if not given:
        return None
    ones = given[0].new_ones(1, given[0].shape[1])
    parts = [
        s if isinstance(s, Tensor) and s.dim() == 2 else ones.expand(len(ask.z), -1)
        for (_, ask), s in zip(asks, scales, strict=True)
    ]
    return torch.cat([part.to(ones) for part in parts])


def _block(
    size: int, users: list, total: int, everywhere: list[int], dtype: torch.dtype, device: torch.device, trained: bool
) -> Block:
    rows = [row for _, used, _ in users for row in used]
    scales = [value for *_, values in users for value in values]
    cells = [cell for cell, *_ in users]
    return Block(
        rows=None if len(rows) == total else torch.tensor(rows, device=device),
        cells=tuple(cells),
        picks=None if cells == everywhere else torch.tensor(cells, device=device),
        size=size,
        scale=torch.tensor(scales, dtype=dtype, device=device),
        ones=all(value == 1 for value in scales),
        trained=trained,
    )
