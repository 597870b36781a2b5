"""Which layers of a UNet carry adapters: named selections, and patterns of the names of blocks and layers.

attention                                      a selection, a key of WHERE
up_blocks.0.attentions.1                       every linear and convolutional layer of a block
*.attn2.to_k, *.attn2.to_v                     layers; * stands for any letters, also for dots
attention in up_blocks.0.attentions.1          the layers of a selection that lie in a block
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from bench.contracts import BenchError

if TYPE_CHECKING:
    from torch import nn

PROJECTION = re.compile(r"\.attn\d\.to_(q|k|v|out\.0)$")  # of self-attention (attn1) and cross-attention (attn2)
TRANSFORMER = re.compile(r"\.attentions\.\d+\.")  # attention projections, feed-forward, proj_in and proj_out
BLOCK = re.compile(r"^(down_blocks|mid_block|up_blocks)\.")  # all but conv_in, conv_out and the embeddings
SELF = re.compile(r"\.attn1\.")  # all of a self-attention
CROSS = re.compile(r"\.attn2\.")  # all of a cross-attention
PLACE = re.compile(r"^[a-z_]+(\.\d+)?(\.(attentions|resnets)\.\d+)?(?=\.)")  # a block, as errors list them
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


def parse(where: str) -> tuple[str | None, list[str]]:
    """The named selection, if there is one, and the patterns, if there are any, of a `where`."""
    selection, _, patterns = where.rpartition(" in ")
    if not selection and not re.search(r"[.*]", where):
        return where.strip(), []
    return selection.strip() or None, [part.strip() for part in patterns.split(",")]


def check_where(where: str, setting: str = "") -> None:
    """Raises BenchError for an unknown selection; `setting` names what asked for it."""
    selection, patterns = parse(where)
    if (selection is not None and selection not in WHERE) or "" in patterns:
        asked = f"Adapters were requested at {where!r}{f' by {setting}' if setting else ''}"
        raise BenchError(
            f"{asked}; known places are {', '.join(WHERE)}, a name such as up_blocks.0.attentions.1 with or without *, "
            "and both, attention in up_blocks.0.attentions.1."
        )


def sites(network: nn.Module, where: str) -> dict[str, nn.Module]:
    """Layers of `network` by name, in the network's order.

    Raises BenchError for an unknown selection, and for a pattern with which no layer agrees.
    """
    check_where(where)
    selection, patterns = parse(where)
    chosen = WHERE[selection] if selection else _any
    found = {name: module for name, module in network.named_modules() if chosen(name, module)}
    return within(found, patterns, where) if patterns else found


def within(layers: Mapping[str, nn.Module], patterns: list[str], where: str) -> dict[str, nn.Module]:
    """Those of the layers that agree with a pattern or lie in a block that does. Raises BenchError for an idle one."""
    for pattern in patterns:
        if not any(_agrees(name, pattern) for name in layers):
            blocks = sorted({found[0] for name in layers if (found := PLACE.match(name))})
            raise BenchError(
                f"Adapters were requested at {where!r}, and no layer of this network agrees with {pattern!r}; "
                f"its blocks with such layers are {', '.join(blocks) or 'none'}."
            )
    return {name: module for name, module in layers.items() if any(_agrees(name, pattern) for pattern in patterns)}


def _agrees(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _any(name: str, module: nn.Module) -> bool:
    from torch import nn

    return isinstance(module, (nn.Linear, nn.Conv2d))
