"""Trainable embeddings of a word, for all cells of a pack (Textual Inversion, arXiv 2208.01618).

The text encoders stay frozen and read the prompts of the rows that use the adapter with other vectors in the place of
the word, whose own embedding is e: row by row e + scale * (learned - e). The k-th occurrence of the word in a prompt is
vector k modulo V.
K cells, R rows of a block, V vectors, L tokens, D width of an encoder's embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.adapters.embedding_files import read_embeddings
from bench.contracts import Backbone, BenchError, Impossible, Text, TokenSpec

if TYPE_CHECKING:
    from bench.adapters.routing import Block

AT_ONCE = 64  # prompts
KEPT = 256  # texts that were read without gradients


class TokenEmbeddings:
    """The vectors of one word, by text encoder. Whoever creates it binds `weights` of `shapes`."""

    def __init__(self, backbone: Backbone, spec: TokenSpec):
        self.backbone, self.spec = backbone, spec
        self.tables = dict(backbone.token_tables())
        if not self.tables:
            raise Impossible(f"The backbone {backbone.name} has no text encoder whose words can be learned.")
        self.ids = {encoder: _piece(tokenizer, spec.word) for encoder, (_, tokenizer) in self.tables.items()}
        self._file = read_embeddings(spec.file, list(self.tables)) if spec.file else None
        vectors = spec.vectors if self._file is None else max(map(len, self._file.values()))
        self.shapes = {_key(encoder, spec): (vectors, _width(table)) for encoder, (table, _) in self.tables.items()}
        self.weights: dict[str, Tensor] = {}  # (K, V, D)
        self._texts: dict[tuple[int, float, str | None], Text] = {}

    # --- numbers and files

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The file's vectors; or the embedding of the word `start`; or Gaussian ones, as wide as the table's."""
        if self._file is not None:
            return {_key(encoder, self.spec): value for encoder, value in self._file.items()}
        return {
            _key(encoder, self.spec): self._initial(encoder, generator, self.shapes[_key(encoder, self.spec)])
            for encoder in self.tables
        }

    def _initial(self, encoder: str, generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        table, tokenizer = self.tables[encoder]
        if self.spec.start is not None:
            return table.weight[_piece(tokenizer, self.spec.start)].detach().float().cpu().expand(shape).clone()
        values = table.weight.detach().float().cpu()
        return values.mean() + values.std() * torch.randn(shape, generator=generator)

    def state(self, cell: int) -> dict[str, Tensor]:
        """`text_encoder.<word>` (V, D), and the same of further encoders: see `files`."""
        return {key: value[cell].detach().float().cpu().contiguous() for key, value in self.weights.items()}

    @torch.no_grad()
    def load(self, cell: int, state: Mapping[str, Tensor]) -> None:
        """Fill one cell from a state dict. Raises Impossible when it belongs to another backbone."""
        found = {key: tuple(value.shape) for key, value in state.items()}
        if found != self.shapes:
            raise Impossible(
                f"Embeddings of {self.spec.word!r}: {self.backbone.name} needs {self.shapes}, found {found}; give a "
                "file that was made for the text encoders of this backbone (method.file)."
            )
        self.forget()
        for key, value in self.weights.items():
            value[cell] = state[key].to(value)

    def begin(self, cell: int, generator: torch.Generator) -> None:
        self.load(cell, self.initial(generator))

    def files(self, name: str) -> dict[str, str]:
        """`style/learned_embeds.safetensors`, and `learned_embeds_2` of a second encoder, as diffusers' scripts say."""
        return {
            f"{name}/learned_embeds{encoder.removeprefix('text_encoder')}.safetensors": f"{encoder}."
            for encoder in self.tables
        }

    def forget(self) -> None:
        """The vectors are about to move."""
        self._texts = {}

    # --- one forward pass

    def read(self, text: Text, blocks: Sequence[Block], trained: bool) -> Text:
        """The text (B rows) whose rows in the blocks are read with the vectors of their cells and scales."""
        rows, users = [], []
        for block in blocks:
            cells = [cell for cell in block.cells for _ in range(block.size)]
            for row, cell, scale in zip(block.listed(len(text)), cells, block.scale.tolist(), strict=True):
                if self.spec.word in (text.prompts[row] or ""):
                    rows.append(row)
                    users.append((cell, scale, text.prompts[row]))
        if not rows:
            return text
        own = self._read(users) if trained else self._known(users)
        place = torch.tensor(rows, device=text.states.device)
        extras = {key: x.index_copy(0, place, own.extras[key].to(x)) for key, x in text.extras.items()}
        return replace(text, states=text.states.index_copy(0, place, own.states.to(text.states)), extras=extras)

    def _known(self, users: Sequence[tuple[int, float, str | None]]) -> Text:
        """Without gradients: each is read alone, and kept while the vectors stand still."""
        if len(self._texts) > KEPT:
            self._texts = {}
        for user in users:
            if user not in self._texts:
                with torch.no_grad():
                    self._texts[user] = self._read([user])
        return Text.cat([self._texts[user] for user in users])

    def _read(self, users: Sequence[tuple[int, float, str | None]]) -> Text:
        parts = [users[i : i + AT_ONCE] for i in range(0, len(users), AT_ONCE)]
        texts = []
        for part in parts:
            cells, scales, prompts = zip(*part, strict=True)
            with self._placed(list(cells), torch.tensor(scales)):
                texts.append(self.backbone.embed(prompts))
        return Text.cat(texts)

    @contextmanager
    def _placed(self, cells: Sequence[int], scales: Tensor) -> Iterator[None]:
        """The vectors of these rows in the place of the word, in all text encoders."""
        hooks = []
        for encoder, (table, _) in self.tables.items():
            learned = self.weights[_key(encoder, self.spec)][cells]  # (R, V, D)
            own = table.weight[self.ids[encoder]].to(learned).expand(learned.shape)
            vectors = own.lerp(learned, scales.to(learned)[:, None, None])
            hooks.append(table.register_forward_hook(_replacing(self.ids[encoder], vectors)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _replacing(word: int, vectors: Tensor):
    """A hook of a table: ids (R, L), embeddings (R, L, D), and vectors (R, V, D) in the place of the word."""

    def replaced(module: Any, args: tuple, out: Tensor) -> Tensor:
        here = args[0] == word
        which = (here.long().cumsum(1) - 1).clamp(min=0) % vectors.shape[1]  # (R, L)
        own = vectors.gather(1, which[..., None].expand(*which.shape, vectors.shape[2]))
        return torch.where(here[..., None], own.to(out), out)

    return replaced


def _key(encoder: str, spec: TokenSpec) -> str:
    return f"{encoder}.<{spec.word}>"  # in brackets: diffusers refuses a word that its tokenizer knows


def _width(table: Any) -> int:
    return table.weight.shape[1]


def _piece(tokenizer: Any, word: str) -> int:
    """The id of a word. Raises BenchError unless it is one piece of the vocabulary."""
    found = tokenizer(word, add_special_tokens=False).input_ids
    if len(found) != 1:
        raise BenchError(
            f"The word {word!r} was to be one token and is {len(found)} on this backbone; "
            "python -m bench.tokens BACKBONE lists words of one piece."
        )
    return found[0]
