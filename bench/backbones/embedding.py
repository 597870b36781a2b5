"""Prompts as a frozen backbone reads them, each once per process: cells, chunks and strengths share them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

from bench.contracts import Backbone, Text

KEPT = 256  # prompts; of SDXL 80 MB

_read: WeakKeyDictionary[Backbone, dict[str | None, Text]] = WeakKeyDictionary()


def embedded(backbone: Backbone, prompts: Sequence[str | None]) -> Text:
    """One row per prompt, None for no negative prompt.

    Each is read alone, so its bits do not depend on what is read with it.
    """
    known = _read.setdefault(backbone, {})
    new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
    if len(known) + len(new) > KEPT:
        known = _read[backbone] = {prompt: known[prompt] for prompt in dict.fromkeys(prompts) if prompt in known}
    known |= {prompt: read(backbone, [prompt]) for prompt in new}
    return Text.cat([known[prompt] for prompt in prompts])


def sized_as(backbone: Backbone, text: Text, given: Text) -> Text:
    """A text read again, with the sizes of images that the given one says: those of training may be others."""
    kept = {name: given.extras[name] for name in backbone.sizes}
    return replace(text, extras={**text.extras, **kept}) if kept else text


def read(backbone: Backbone, prompts: Sequence[str | None]) -> Text:
    """The same, read together and not kept."""
    text, absent = backbone.embed([prompt or "" for prompt in prompts]), [prompt is None for prompt in prompts]
    return replace(backbone.absent(text, absent), prompts=tuple(prompts)) if any(absent) else text
