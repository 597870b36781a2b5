"""Which layers of a joint-attention transformer carry adapters, under the names of `bench.backbones.sites`.

Image and text tokens attend to each other in one attention, so self-attention and cross-attention are not apart. The
filters of Concept Sliders take what their own code takes on FLUX.1: every linear layer of an attention.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bench.backbones.sites import check_where, parse, sites, within
from bench.contracts import BenchError

if TYPE_CHECKING:
    from torch import nn

BLOCK = re.compile(r"^((single_)?transformer_blocks|layers|(noise|context)_refiner)\.\d+\.")
ATTENTION = re.compile(r"\.(attn2?|attention)\.")
STRICT = re.compile(r"\.(attn2?|attention)\.(to|add)_[kv](_proj)?$")  # keys and values


def transformer_sites(network: nn.Module, where: str, published: re.Pattern[str]) -> dict[str, nn.Module]:
    """Linear layers of the blocks by name. `published` are those of diffusers' LoRA script, where "attention" goes.

    Patterns of names are read as in `bench.backbones.sites`. Raises BenchError for an unknown selection, and for one
    that such a network does not have.
    """
    from torch import nn

    check_where(where)
    selection, names = parse(where)
    if selection is None:
        return sites(network, where)
    patterns = {
        **dict.fromkeys(("attention", "attention_conv"), published),
        **dict.fromkeys(("linear", "all"), BLOCK),
        **dict.fromkeys(("noxattn", "innoxattn", "xattn", "full"), ATTENTION),
        "xattn-strict": STRICT,
    }
    if selection not in patterns:
        raise BenchError(
            f"Adapters were requested at {where!r}, which a transformer with joint attention does not have; "
            f"give one of {', '.join(patterns)}."
        )
    found: dict[str, nn.Module] = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and BLOCK.search(name) and patterns[selection].search(name)
    }
    return within(found, names, where) if names else found
