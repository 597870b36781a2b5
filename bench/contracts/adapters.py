"""The kinds of adapter that a method can ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.errors import BenchError


@dataclass(frozen=True)
class AdapterSpec:
    """A low-rank adapter W = W0 + scale * up @ down, with `down` (r, in) and `up` (out, r) starting at zero.

    `down` is drawn as `init` says and trained, or, when `orthonormal_row` is set, made of rows
    [orthonormal_row, orthonormal_row + rank) of a random orthonormal basis (one per input width, shared by all layers
    of that width) and frozen (Pair Customization section 3.2).
    """

    rank: int
    where: str = "attention"  # a named selection of layers or names of blocks, see `bench.backbones.sites`
    alpha: float | None = None  # None: alpha = rank, so the scale is 1
    # gaussian: N(0, (1/r)^2) | kaiming: uniform within sqrt(3 / inputs), a = 1 |
    # kaiming_sqrt5: within sqrt(1 / inputs), a = sqrt(5)
    init: str = "gaussian"
    orthonormal_row: int | None = None
    basis_seed: int = 123846
    file: str | None = None  # a LoRA file to start from, e.g. another cell's style; it says rank and layers itself
    dora: bool = False  # with a trained length for each output (`bench.adapters.dora`); a file says so itself
    text_encoder: bool = False  # also at the attention projections of the text encoders
    dropout: float = 0.0  # share of the inputs of `down` that are 0 in passes that train the adapter


@dataclass(frozen=True)
class FullSpec:
    """A trainable copy of the whole network, and of the text encoders when requested: full fine-tuning.

    Rows with scale s use W0 + s (W - W0), rows without it the frozen network. Alone in its cell, and a pack of one.
    """

    text_encoder: bool = False
    file: None = None  # it always starts from the backbone


@dataclass(frozen=True)
class CrossAttentionSpec:
    """Image tokens that every cross-attention layer reads beside the text (IP-Adapter, arXiv 2308.06721 section 3.2).

    The tokens are made from the features that a prompt shows (`Text.images`): from one vector by a linear layer, or,
    when `heads` is set, from patches by a resampler with that many heads of 64. A `file` says all that itself.
    """

    features: int  # width E of the image features
    tokens: int = 4
    heads: int = 0
    depth: int = 4  # of the resampler
    scales: float | Mapping[str, Any] = 1.0  # for all layers, or {"up": {"block_0": [0, 1, 0]}}: unlisted blocks are 0
    file: str | None = None  # weights in IP-Adapter's public format; see `bench.data.weights.weights_at`


@dataclass(frozen=True)
class TokenSpec:
    """Trainable embeddings of a word, in every text encoder (Textual Inversion, arXiv 2208.01618).

    The word is one token of the backbone; python -m bench.tokens lists rare ones. A prompt that should read V vectors
    holds it V times. Rows with scale s read e + s (learned - e), with e the word's own embedding.
    """

    word: str
    vectors: int = 1
    start: str | None = None  # a word of one token whose embedding they begin as; None: at random
    file: str | None = None  # learned elsewhere; see `bench.adapters.embedding_files`. It says the vectors itself


@dataclass(frozen=True)
class SharedAttentionSpec:
    """Self-attention that also reads the tokens of another row, of `Ask.references` (StyleAligned, arXiv 2312.02133).

    The scale of a row is the weight of those tokens beside its own: log(scale) is added to their scores. Nothing is
    trained.
    """

    adain: bool = True  # queries and keys get the mean and deviation of the reference's
    share_norm: bool = True  # group normalisations take their statistics over the row and the reference
    file: str = ""  # it holds no numbers


def tuned(tune: str, rank: int, where: str, text_encoder: bool = False) -> AdapterSpec | FullSpec:
    """What `tune` asks for: a low-rank adapter ("lora"), or a copy of all weights ("full"). Raises BenchError."""
    if tune == "full":
        return FullSpec(text_encoder)
    if tune != "lora":
        raise BenchError(f"tune={tune!r} was requested; type method.tune=lora or method.tune=full.")
    if text_encoder:
        raise BenchError(
            "A text encoder was to be trained with tune=lora, whose adapters sit in the denoiser alone; "
            "type method.text_encoder=false or method.tune=full, or train low-rank adapters of the text encoders with "
            "trainer.text_encoder_lr=5e-6."
        )
    return AdapterSpec(rank, where)


Spec = AdapterSpec | FullSpec | CrossAttentionSpec | TokenSpec | SharedAttentionSpec
