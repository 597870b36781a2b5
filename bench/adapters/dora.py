"""DoRA (Liu et al. 2024, arXiv 2402.09353): a trained length for each output of W0 + scale * up @ down.

K cells, B rows, r rank. The row of W that makes an output has the length m (K, out), which begins as that of W0:

    W = m * (W0 + scale * up @ down) / ||W0 + scale * up @ down||

with the norm as a constant in the backward pass (section 4.3), as PEFT has it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts import BenchError


def lengths(module: Any) -> Tensor:
    """Of the rows of a layer's own weights (out,). Raises BenchError where they are quantized."""
    weight = module.weight
    wide = module.out_channels if isinstance(module, nn.Conv2d) else module.out_features
    if not weight.is_floating_point() or weight.shape[0] != wide:
        raise BenchError(
            "trainer.dora=true needs the weights of a layer as they are, and here they are quantized; "
            "type backbone.quantize=null."
        )
    return torch.linalg.vector_norm(weight.detach().float().flatten(1), dim=1)


def ratios(module: Any, down: Tensor, up: Tensor, scale: float, magnitude: Tensor) -> Tensor:
    """m / ||W0 + scale * up @ down|| (k, out), of the k cells of a block."""
    with torch.autocast(down.device.type, enabled=False):
        product = torch.bmm(up.detach(), down.detach().flatten(2))  # (k, out, in)
        weight = module.weight.detach().to(product.dtype).flatten(1)
        return magnitude / torch.linalg.vector_norm(weight + scale * product, dim=2)


def without_bias(x: Tensor, module: Any) -> Tensor:
    """What the layer itself makes of x, less its bias."""
    weight = module.weight
    if isinstance(module, nn.Conv2d):
        return F.conv2d(x, weight, None, module.stride, module.padding, module.dilation, module.groups)
    return F.linear(x, weight)


def delta(plain: Tensor, low_rank: Tensor, ratio: Tensor, size: int) -> Tensor:
    """What is added to a layer's output: (ratio - 1) W0 x + ratio * scale * up down x.

    `plain` and `low_rank` are W0 x and scale * up down x, (k * b, ..., out) or (k * b, out, H, W) of a convolution.
    `ratio` is (k, out), the k-th for the k-th `size` rows.
    """
    rows = ratio.repeat_interleave(size, 0)  # in the precision of the lengths, which are close to those of W0
    convolved = plain.dim() == 4
    rows = rows[:, :, None, None] if convolved else rows.view(len(rows), *[1] * (plain.dim() - 2), -1)
    return ((rows - 1) * plain + rows * low_rank).to(plain.dtype)
