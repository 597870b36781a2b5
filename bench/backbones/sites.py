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
SELF = re.compile(r"\.attn1\.")  # all of a self-attention
CROSS = re.compile(r"\.attn2\.")  # all of a cross-attention
RESNET = re.compile(r"\.(resnets|downsamplers|upsamplers)\.\d+\.")  # time_emb_proj and shortcuts included


def _attention(name: str, module: nn.Module) -> bool:
    return bool(PROJECTION.search(name))


def _linear(name: str, module: nn.Module) -> bool:
    from torch import nn

    return isinstance(module, nn.Linear) and bool(TRANSFORMER.search(name))


def _attention_conv(name: str, module: nn.Module) -> bool:
    from torch import nn

    spatial = isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
    return _attention(name, module) or (spatial and bool(BLOCK.search(name)))


def _all(name: str, module: nn.Module) -> bool:
    from torch import nn

    return _linear(name, module) or (isinstance(module, nn.Conv2d) and bool(BLOCK.search(name)))


def _inside(*parts: re.Pattern[str]) -> Callable[[str, nn.Module], bool]:
    """Every linear and convolutional layer within one of the parts."""

    def chosen(name: str, module: nn.Module) -> bool:
        from torch import nn

        return isinstance(module, (nn.Linear, nn.Conv2d)) and any(part.search(name) for part in parts)

    return chosen


def _cross_inputs(name: str, module: nn.Module) -> bool:
    return _inside(CROSS)(name, module) and ".to_out." not in name


WHERE: dict[str, Callable[[str, nn.Module], bool]] = {
    "attention": _attention,  # every to_q, to_k, to_v, to_out.0
    "attention_conv": _attention_conv,  # attention, and the spatial (3x3) convolutions of all blocks
    "linear": _linear,  # every linear layer of the transformer blocks
    "all": _all,  # linear, and the convolutions of all blocks (resnets, samplers, 1x1 projections)
    # The layer filters of Concept Sliders (arXiv 2311.12092); feed-forward, proj_in and proj_out are in none of them.
    "noxattn": _inside(SELF, RESNET),  # its authors also leave out the time embedding, which lies in no such part
    "innoxattn": _inside(SELF, RESNET),
    "selfattn": _inside(SELF),
    "xattn": _inside(CROSS),
    "xattn-strict": _cross_inputs,  # without the output projection
    "full": _inside(SELF, CROSS, RESNET),
}


def check_where(where: str, setting: str = "") -> None:
    """Raises BenchError for an unknown selection; `setting` names what asked for it."""
    if where not in WHERE:
        asked = f"Adapters were requested at {where!r}{f' by {setting}' if setting else ''}"
        raise BenchError(f"{asked}; known places are {', '.join(WHERE)}.")


def sites(network: nn.Module, where: str) -> dict[str, nn.Module]:
    """Layers of `network` by name, in the network's order. Raises BenchError for an unknown selection."""
    check_where(where)
    return {name: module for name, module in network.named_modules() if WHERE[where](name, module)}
