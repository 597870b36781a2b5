"""Low-rank adapters of text encoders: where they sit, and prompts as each row's own adapters read them.

A text encoder that carries adapters reads its prompts anew, those of all cells together. Without gradients what was
read is kept until the adapters move. The adapters are plain ones also beside a DoRA: diffusers loses the lengths of a
text encoder when it reads a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bench.adapters.lora_files import TEXT
from bench.backbones.embedding import read, sized_as
from bench.backbones.text_encoder import PROMPTS_AT_ONCE
from bench.contracts import AdapterSpec, Ask, Backbone, BenchError, Impossible, Text

PROJECTION = re.compile(r"\.self_attn\.(q|k|v|out)_proj$")  # the layers of diffusers' training scripts
KEPT = 256  # texts

Key = tuple[int, tuple[float, ...], str | None]  # cell, scale of each adapter, prompt


def at(site: str, spec: AdapterSpec) -> AdapterSpec:
    """The kind of adapter at a site."""
    return replace(spec, dora=False) if site.startswith(TEXT) else spec


def text_layers(backbone: Backbone) -> dict[str, nn.Module]:
    """Linear layers of CLIP text encoders by diffusers' names in files, "text_encoder.text_model.(...)"."""
    return {
        f"{part}.text_model.{name.removeprefix('text_model.')}": module
        for part, encoder in backbone.parts().items()
        if part.startswith(TEXT) and backbone.part == "unet"
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear)
    }


def text_sites(backbone: Backbone) -> dict[str, nn.Module]:
    """The attention projections among them. Raises Impossible where there are none."""
    found = {name: module for name, module in text_layers(backbone).items() if PROJECTION.search(name)}
    if not found:
        raise Impossible(
            f"trainer.text_encoder_lr was requested, and {backbone.name} has no CLIP text encoder to adapt; "
            "type trainer.text_encoder_lr=null."
        )
    return found


class TextReader:
    """Reads the prompts of asks with adapters on. `route` puts them on for rows, `names` are those of text encoders."""

    def __init__(self, backbone: Backbone, names: Sequence[str], route: Callable[..., Any]):
        self.backbone, self.names, self.route = backbone, names, route
        self.kept: dict[Key, Text] = {}

    def texts(self, asks: Sequence[tuple[int, Ask]], dropout: Sequence[int], trained: bool) -> Text:
        """The texts of all rows; those of rows without such an adapter as they were given."""
        given, seeds = Text.cat([ask.text for _, ask in asks]), dict(zip([c for c, _ in asks], dropout, strict=False))
        if not self.names:
            return given
        keys = [key for cell, ask in asks for key in self._keys(cell, ask)]
        wanted = dict.fromkeys(key for key in keys if any(key[1]))
        if not wanted:
            return given
        known = self._read(list(wanted), seeds) if trained else self._remembered(list(wanted), seeds)
        places = {key: len(given) + i for i, key in enumerate(wanted)}
        rows = torch.tensor([places.get(key, row) for row, key in enumerate(keys)], device=given.states.device)
        every = Text.cat([replace(given, images={}), *(known[key] for key in wanted)])
        return replace(sized_as(self.backbone, every[rows], given), images=given.images)

    def _keys(self, cell: int, ask: Ask) -> list[Key]:
        if len(ask.text.prompts) != len(ask.z):
            raise BenchError("A trained text encoder needs the prompts of every text; embed them with the backbone.")
        scales = [ask.adapters.get(name, 0.0) for name in self.names]
        if any(isinstance(scale, torch.Tensor) and scale.dim() == 2 for scale in scales):
            raise BenchError(
                "Scales of ranks were requested with trained text encoders; type trainer.text_encoder_lr=null."
            )
        columns = [s.tolist() if isinstance(s, torch.Tensor) else [float(s)] * len(ask.z) for s in scales]
        return [
            (cell, scales, prompt) for scales, prompt in zip(zip(*columns, strict=True), ask.text.prompts, strict=True)
        ]

    def _remembered(self, wanted: Sequence[Key], seeds: Mapping[int, int]) -> dict[Key, Text]:
        if len(self.kept) > KEPT:
            self.kept = {}
        self.kept |= self._read([key for key in wanted if key not in self.kept], seeds)
        return self.kept

    def _read(self, keys: Sequence[Key], seeds: Mapping[int, int]) -> dict[Key, Text]:
        found: dict[Key, Text] = {}
        for part in _parts(keys):
            cells = dict.fromkeys(cell for cell, *_ in part)
            asks = [(cell, self._ask([key for key in part if key[0] == cell])) for cell in cells]
            self.route(asks, [seeds[cell] for cell in cells if cell in seeds])
            text = read(self.backbone, [prompt for _, ask in asks for prompt in ask.text.prompts])
            found |= {key: text[i : i + 1] for i, key in enumerate(part)}
        return found

    def _ask(self, keys: Sequence[Key]) -> Ask:
        """Rows of one cell, of which nothing but the adapters and the prompts is looked at."""
        columns = zip(*(scales for _, scales, _ in keys), strict=True)
        adapters = {name: torch.tensor(column) for name, column in zip(self.names, columns, strict=True)}
        blank = torch.empty(len(keys), 1, dtype=self.backbone.dtype)
        return Ask(blank, blank, Text(blank, prompts=tuple(prompt for *_, prompt in keys)), adapters)


def _parts(keys: Sequence[Key]) -> Iterator[list[Key]]:
    """Keys cell by cell, as many as an encoder reads at once; a cell is divided only where it has more than that."""
    part: list[Key] = []
    for cell in dict.fromkeys(cell for cell, *_ in keys):
        own = [key for key in keys if key[0] == cell]
        if part and len(part) + len(own) > PROMPTS_AT_ONCE:
            yield part
            part = []
        part += own
        while len(part) > PROMPTS_AT_ONCE:
            yield part[:PROMPTS_AT_ONCE]
            part = part[PROMPTS_AT_ONCE:]
    if part:
        yield part
