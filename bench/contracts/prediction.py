"""What a method asks of the frozen backbone, and the losses that it hands back.

Shapes: B rows of one forward pass, C latent channels, H W latent size, L tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


CONTEXT = "context"  # in `Text.images`: pictures that the network itself reads
REFERENCE = "reference"  # in `Text.images`: latents (B, C, H, W) of `Method.reference` at the noise of the step


@dataclass(frozen=True)
class Text:
    """Embedded prompts: token states and what else the backbone's network needs, one row per prompt.

    A prompt may show an image, too: `images` holds, for adapters at the cross-attention, the features of what is shown,
    a vector or a row of patches for each prompt. Under `CONTEXT` are pictures (B, N, 3, P, P) in uint8, which the
    backbone encodes for networks that read reference images as further tokens.
    """

    states: Tensor  # (B, L, D)
    extras: Mapping[str, Tensor] = field(default_factory=dict)  # each (B, ...), e.g. SDXL's pooled embedding
    images: Mapping[str, Tensor] = field(default_factory=dict)  # adapter -> features (B, E) or (B, S, E)
    prompts: tuple[str | None, ...] = ()  # B, what was embedded (None: no negative prompt); trained encoders read it

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: Any) -> Text:
        import torch

        kept = torch.arange(len(self))[rows.cpu() if isinstance(rows, torch.Tensor) else rows].tolist()
        return self._each(lambda value: value[rows], tuple(self.prompts[i] for i in kept) if self.prompts else ())

    def expand(self, n: int) -> Text:
        """One prompt repeated for n rows."""
        return self._each(lambda value: value.expand(n, *value.shape[1:]), self.prompts * n)

    def showing(self, images: Mapping[str, Tensor]) -> Text:
        """These prompts with image features, one row for each prompt or one for all."""
        return replace(self, images={name: f.expand(len(self), *f.shape[1:]) for name, f in images.items()})

    def _each(self, change: Callable[[Tensor], Tensor], prompts: tuple[str | None, ...]) -> Text:
        extras, images = ({name: change(value) for name, value in x.items()} for x in (self.extras, self.images))
        return Text(change(self.states), extras, images, prompts)

    @staticmethod
    def cat(texts: Sequence[Text]) -> Text:
        """All rows. Where only some prompts show an image, the others have zeros for it."""
        import torch

        names = dict.fromkeys(name for text in texts for name in text.images)
        return Text(
            torch.cat([text.states for text in texts]),
            {name: torch.cat([text.extras[name] for text in texts]) for name in texts[0].extras},
            {name: _filled([text.images.get(name) for text in texts], list(map(len, texts))) for name in names},
            tuple(prompt for text in texts for prompt in text.prompts) if all(t.prompts for t in texts) else (),
        )


def _filled(parts: Sequence[Tensor | None], rows: Sequence[int]) -> Tensor:
    """The parts (rows[i], ...) joined; an absent one is zeros."""
    import torch

    known = next(part for part in parts if part is not None)
    pairs = zip(parts, rows, strict=True)
    return torch.cat([known.new_zeros(n, *known.shape[1:]) if part is None else part.to(known) for part, n in pairs])


@dataclass(frozen=True)
class Ask:
    """Rows of one forward pass through the frozen backbone. The answer is the network's prediction (B, C, H, W).

    An adapter with a scale takes part; absent is off. An ask all of whose adapters are frozen (or that has none) is
    gradient-free. Any number of gradient-free asks may precede the one ask whose answer the next `Loss` is made of.
    """

    z: Tensor  # (B, C, H, W) noisy latents
    t: Tensor  # (B,) timesteps
    text: Text  # B rows
    # adapter -> signed scale: for all rows, per row (B,), or of a low-rank adapter per row and rank (B, r)
    adapters: Mapping[str, Tensor | float] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()  # these take part but receive no gradient
    references: Sequence[int] = ()  # B, for shared attention: the row of this ask that a row shares with

    @property
    def trains(self) -> frozenset[str]:
        return frozenset(self.adapters) - self.frozen


@dataclass(frozen=True)
class Loss:
    """A scalar; the trainer runs the backward pass and steps the adapters that the last ask trained."""

    value: Tensor  # ()
