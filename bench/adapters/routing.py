"""Which rows of a forward pass use an adapter."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
    seeds: tuple[int, ...] = ()  # of the dropout of each of the cells, in passes that train the adapter
