"""Which layers of a UNet carry adapters: selections of named linear and convolutional layers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from bench.contracts import BenchError

if TYPE_CHECKING:
    from torch import nn

PROJECTION = re.compile(r"\.attn\d\.to_(q|k|v|out\.0)$")  # of self-attention (attn1) and cross-attention (attn2)
TRANSFORMER = re.compile(r"\.attentions\.\d+\.")  # attention projections, feed-forward, proj_in and proj_out
BLOCK = re.compile(r"^(down_blocks|mid_block|up_blocks)\.")  # all but conv_in, conv_out and the embeddings


def _attention(name: str, module: nn.Module) -> bool:
    return bool(PROJECTION.search(name))


def _linear(name: str, module: nn.Module) -> bool:
    from torch import nn

    return isinstance(module, nn.Linear) and bool(TRANSFORMER.search(name))


def _all(name: str, module: nn.Module) -> bool:
    from torch import nn

    return _linear(name, module) or (isinstance(module, nn.Conv2d) and bool(BLOCK.search(name)))


WHERE: dict[str, Callable[[str, nn.Module], bool]] = {
    "attention": _attention,  # every to_q, to_k, to_v, to_out.0
    "linear": _linear,  # every linear layer of the transformer blocks
    "all": _all,  # linear, and the convolutions of all blocks (resnets, samplers, 1x1 projections)
}


def sites(network: nn.Module, where: str) -> dict[str, nn.Module]:
    """Layers of `network` by name, in the network's order. Raises BenchError for an unknown selection."""
    if where not in WHERE:
        raise BenchError(f"Adapters were asked for at {where!r}; known places are {', '.join(WHERE)}.")
    return {name: module for name, module in network.named_modules() if WHERE[where](name, module)}
