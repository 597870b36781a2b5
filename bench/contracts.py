"""What methods, metrics, backbones and datasets promise each other. Everything else in `bench` is a pipe between these.

Shapes: B rows of one forward pass, N images, C latent channels, H W latent size, P pixels per side, L tokens, D text
width.
Images cross every border as uint8 (N, 3, P, P); ranges are converted in one place, inside whoever needs another one.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from bench.data.images import Images

EVALUATION_SEED_OFFSET = 1_000_000  # evaluation noise never meets training noise


class BenchError(Exception):
    """One clear sentence for the user: what was asked, what was found, what to type."""


class Impossible(BenchError):
    """This method cannot run on this dataset or backbone; the cell is recorded as skipped with this reason."""


# --- what a method says ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """Embedded prompts: token states and what else the backbone's network needs, one row per prompt.

    A prompt may show an image, too: `images` holds, for adapters at the cross-attention, the features of what is shown,
    a vector or a row of patches for each prompt.
    """

    states: Tensor  # (B, L, D)
    extras: Mapping[str, Tensor] = field(default_factory=dict)  # each (B, ...), e.g. SDXL's pooled embedding
    images: Mapping[str, Tensor] = field(default_factory=dict)  # adapter -> features (B, E) or (B, S, E)
    prompts: tuple[str, ...] = ()  # B, what was embedded; a trained text encoder reads them again

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

    def _each(self, change: Callable[[Tensor], Tensor], prompts: tuple[str, ...]) -> Text:
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
    adapters: Mapping[str, Tensor | float] = field(default_factory=dict)  # adapter -> signed scale, for all or per row
    frozen: frozenset[str] = frozenset()  # these take part but receive no gradient

    @property
    def trains(self) -> frozenset[str]:
        return frozenset(self.adapters) - self.frozen


@dataclass(frozen=True)
class Loss:
    """A scalar; the trainer runs the backward pass and steps the adapters that the last ask trained."""

    value: Tensor  # ()


@dataclass(frozen=True)
class AdapterSpec:
    """A low-rank adapter W = W0 + scale * up @ down, with `down` (r, in) and `up` (out, r) starting at zero.

    `down` is drawn as `init` says and trained, or, when `orthonormal_row` is set, made of rows
    [orthonormal_row, orthonormal_row + rank) of a random orthonormal basis (one per input width, shared by all layers
    of that width) and frozen (Pair Customization section 3.2).
    """

    rank: int
    where: str = "attention"  # a key of bench.backbones.sites.WHERE
    alpha: float | None = None  # None: alpha = rank, so the scale is 1
    init: str = "gaussian"  # gaussian: N(0, (1/r)^2) | kaiming: uniform, a = 1, within sqrt(3 / inputs)
    orthonormal_row: int | None = None
    basis_seed: int = 123846
    file: str | None = None  # a LoRA file to start from, e.g. another cell's style to blend in


@dataclass(frozen=True)
class FullSpec:
    """A trainable copy of the whole network, and of the text encoders when asked for: full fine-tuning.

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
    file: str | None = None  # weights in IP-Adapter's public format; see `bench.data.fetch.weights_at`


def tuned(tune: str, rank: int, where: str, text_encoder: bool = False) -> AdapterSpec | FullSpec:
    """What `tune` asks for: a low-rank adapter ("lora"), or a copy of all weights ("full"). Raises BenchError."""
    if tune == "full":
        return FullSpec(text_encoder)
    if tune != "lora":
        raise BenchError(f"tune={tune!r} was asked for; type method.tune=lora or method.tune=full.")
    if text_encoder:
        raise BenchError(
            "A text encoder was asked to be trained with tune=lora, whose adapters sit in the denoiser alone; "
            "type method.text_encoder=false or method.tune=full."
        )
    return AdapterSpec(rank, where)


Spec = AdapterSpec | FullSpec | CrossAttentionSpec


@dataclass(frozen=True)
class Recipe:
    """What a publication fixes about its optimisation."""

    steps: int
    lr: float
    batch_size: int = 1
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    schedule: str = "constant"  # constant | cosine
    warmup_steps: int = 0
    clip_norm: float | None = None
    flip: bool = False  # mirror each drawn example with probability 1/2, pairs together
    crop: float = 1.0  # smallest side of a random square crop as a fraction of the image, pairs together

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise BenchError(
                f"A recipe of {self.steps} steps of {self.batch_size} examples was asked for; type at least 1 of each."
            )


class Method(ABC):
    """A customization method. It never calls the network: it asks, and the trainer or the sampler answers."""

    needs: ClassVar[frozenset[str]] = frozenset()  # of "pairs", "references", "auxiliary", "class", "oracle"
    strength_knob: ClassVar[str]  # what `strength` turns, in the paper's words
    strength: float = 1.0  # the value used when none is asked for
    neutral_strength: ClassVar[float | None] = 0.0  # nothing that was learned shows; None: there is no such strength
    start_t: float = 1000  # guidance begins at this timestep; before it the backbone's own guidance runs
    recipe: Recipe | None = None  # None: nothing to train
    notes: Sequence[str] = ()  # what a reader of the record must know

    @property
    def rare_tokens(self) -> Sequence[str]:
        """Words that the method binds to what it learns; the record notes those that the tokenizer takes apart."""
        return ()

    def adapters(self, dataset: Dataset) -> Mapping[str, Spec]:
        """The adapters to create, by name; the one called "style" is what is saved for others to load."""
        return {}

    def missing(self) -> str | None:
        """A sentence that names the weights of its own that are not on this machine, or None."""
        return None

    def lacks(self, dataset: Dataset) -> str | None:
        """What the dataset lacks for this method, in words, or None."""
        missing = sorted(self.needs - dataset.provides)
        return ", ".join(missing) or None

    def prior(self, dataset: Dataset) -> tuple[str, int] | None:
        """Prompt and number of images to be drawn from the untouched backbone before training; role "prior"."""
        return None

    def step(self, data: TrainingData, k: int, rng: torch.Generator) -> Generator[Ask | Loss, Tensor | None, None]:
        """One training step. `rng` depends on (seed, k) alone, so a resumed cell is the same cell."""
        raise NotImplementedError(f"{type(self).__name__} has a recipe but no step")
        yield

    def from_baseline(self, baseline: Images, dataset: Dataset) -> np.ndarray | None:
        """The images of a method that draws nothing, made from the baseline's, both uint8 (N, 3, P, P); else None."""
        return None

    @abstractmethod
    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        """The texts that `guide` uses for one evaluation prompt, by role; "content" and "negative" are always there."""

    def shown(self, dataset: Dataset) -> Mapping[str, Mapping[str, Tensor]]:
        """What those texts show: role -> adapter -> image features (1, E) or (1, S, E)."""
        return {}

    @abstractmethod
    def guide(
        self, z: Tensor, t: Tensor, texts: Mapping[str, Text], cfg: float, strength: float
    ) -> Generator[Ask, Tensor, Tensor]:
        """Guided prediction (N, C, H, W) for latents z (N, C, H, W) at timesteps t (N,)."""


def with_token(prompt: str, noun: str, token: str) -> str:
    """The rare token in front of the class noun: "a photo of a dog" -> "a photo of a sks dog"."""
    return re.sub(rf"\b{re.escape(noun)}\b", f"{token} {noun}", prompt, count=1)


def plain_guidance(
    z: Tensor,
    t: Tensor,
    texts: Mapping[str, Text],
    cfg: float,
    role: str = "content",
    adapters: Mapping[str, float] | None = None,
) -> Generator[Ask, Tensor, Tensor]:
    """Classifier-free guidance (Ho & Salimans 2022) on the prompt of a role, with the adapters on in both rows."""
    import torch

    text = Text.cat([texts["negative"], texts[role]])
    answer = yield Ask(torch.cat([z, z]), torch.cat([t, t]), text, adapters or {})
    unconditional, conditional = answer.chunk(2)
    return unconditional + cfg * (conditional - unconditional)


# --- what a dataset provides -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """One training image with its caption (no style words, no rare token)."""

    image: np.ndarray  # uint8 (3, P, P)
    caption: str  # "a photo of a dog"
    noun: str  # "dog"
    person: bool = False  # whether it shows a person, or what the dataset counts as one


@dataclass(frozen=True)
class Pair:
    """The same picture plain and stylised, aligned pixel by pixel."""

    content: Example
    style: Example


@dataclass(frozen=True)
class Dataset:
    """A style or a subject: what to learn from, what to ask for, what to compare with."""

    name: str
    version: int
    licence: str
    source: str
    style_words: str | None  # appended to a prompt, "in digital art style"; None for a subject
    noun: str  # the class word, "dog"
    pairs: tuple[Pair, ...]
    references: tuple[Example, ...]  # style or subject images without a plain partner
    auxiliary: tuple[Example, ...]
    prompts: tuple[str, ...]  # evaluation prompts: content only
    seeds: tuple[int, ...]  # evaluation seeds
    controls: tuple[np.ndarray, ...]  # unrelated content images, each uint8 (3, P, P)
    reference_set: Callable[[], Images] | None  # uint8 (M, 3, P, P), loaded when a metric needs it
    oracle: Callable[[np.ndarray], np.ndarray] | None  # the style itself: uint8 (3, P, P) -> uint8 (3, P, P)
    content_hash: str
    own_seeds: tuple[tuple[int, ...], ...] = ()  # of each prompt, where a published list gives each its own
    control_captions: tuple[str, ...] = ()  # one for each control, as an `Example` has it

    def seeds_of(self, index: int) -> tuple[int, ...]:
        """Evaluation seeds of the prompt at this place."""
        return self.own_seeds[index] if self.own_seeds else self.seeds

    def styled(self, prompt: str) -> str:
        """The prompt with the style words, "a photo of a dog in digital art style"; a subject's prompt is unchanged."""
        return f"{prompt} {self.style_words}" if self.style_words else prompt

    @property
    def provides(self) -> frozenset[str]:
        have: dict[str, Any] = {"pairs": self.pairs, "references": self.references, "auxiliary": self.auxiliary}
        have |= {"class": self.noun, "oracle": self.oracle}
        return frozenset(name for name, value in have.items() if value)


class TrainingData(ABC):
    """What `Method.step` draws from: latents and embedded prompts, both cached, and the backbone's noise."""

    dataset: Dataset
    backbone: Backbone
    batch_size: int

    @abstractmethod
    def draw(self, roles: Sequence[str], rng: torch.Generator) -> tuple[list[Tensor], list[Example]]:
        """Latents (batch, C, H, W) per role, and the dataset's own examples that were drawn for the first role.

        Roles are "content" and "style" (the two halves of the pairs), "references", "auxiliary" and "prior". Roles
        drawn together share indices, flips and crops, so pairs stay aligned.
        """

    @abstractmethod
    def text(self, prompts: Sequence[str]) -> Text:
        """Embedded prompts, one row each; computed once per prompt."""

    def noise(self, like: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Gaussian noise shaped as `like` (B, C, H, W) and uniform timesteps (B,)."""
        import torch

        eps = torch.randn(like.shape, generator=rng, dtype=torch.float32).to(like)
        t = torch.randint(self.backbone.train_timesteps, (len(like),), generator=rng)
        return eps, t.to(like.device)

    def noisy(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Latents diffused to timestep t, all (B, C, H, W)."""
        return self.backbone.noisy(z, eps, t)

    def target(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should predict: eps, or v (Salimans & Ho 2022), as the backbone was trained."""
        return self.backbone.target(z, eps, t)

    def start_noise(self, rng: torch.Generator) -> Tensor:
        """Gaussian noise (batch, C, H, W) to begin a rollout of the network from."""
        import torch

        eps = torch.randn((self.batch_size, *self.backbone.latent_shape), generator=rng, dtype=torch.float32)
        precise = self.backbone.dtype == torch.float64
        return eps.to(self.backbone.device, torch.float64 if precise else torch.float32)

    def scheduler(self, name: str, steps: int) -> Any:
        """A fresh diffusers scheduler with its timesteps set, for such a rollout."""
        return self.backbone.scheduler(name, steps)

    def pixels(self, z: Tensor) -> Tensor:
        """Latents (B, C, H, W) -> float (B, 3, P, P) in [0, 1], with gradients."""
        return self.backbone.pixels(z)


# --- what a backbone does ----------------------------------------------------------------------------------------


class Backbone(ABC):
    """A frozen text-to-image model behind one face: encode, decode, embed, diffuse, predict, schedule."""

    name: str
    resolution: int  # P, pixels per side
    network: nn.Module  # where adapters attach
    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def embed(self, prompts: Sequence[str]) -> Text: ...

    @abstractmethod
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, 3, P, P) -> mean and standard deviation of the latent posterior, scaled, each (N, C, H, W)."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """(N, C, H, W) -> uint8 (N, 3, P, P)."""

    def pixels(self, z: Tensor) -> Tensor:
        """(N, C, H, W) -> float (N, 3, P, P) in [0, 1], with gradients, for losses on images."""
        raise Impossible(f"The backbone {self.name} decodes without gradients; choose another backbone.")

    @abstractmethod
    def noisy(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor: ...

    @abstractmethod
    def target(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor: ...

    @abstractmethod
    def predict(self, z: Tensor, t: Tensor, text: Text) -> Tensor:
        """The network's own prediction (B, C, H, W)."""

    @abstractmethod
    def sites(self, where: str) -> Mapping[str, nn.Module]:
        """Layers of `network` by name where adapters go: attention (q, k, v, out), linear, all, noxattn, ..."""

    def cross_attention(self) -> Mapping[str, nn.Module]:
        """Attention layers that read the text, by name, in the network's order; each has to_q, to_k, to_v, to_out."""
        return {name: module for name, module in self.network.named_modules() if name.endswith(".attn2")}

    @abstractmethod
    def scheduler(self, name: str, steps: int) -> Any:
        """A fresh diffusers scheduler with its timesteps set, from the backbone's own noise schedule."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""

    @property
    @abstractmethod
    def train_timesteps(self) -> int: ...

    def truncated(self, prompt: str) -> int:
        """Tokens of the prompt beyond what the text encoder reads."""
        return 0

    def parts(self) -> Mapping[str, nn.Module]:
        """What full fine-tuning can train, by diffusers' folder names: "unet", "text_encoder", ..."""
        return {"unet": self.network}

    def tokenizers(self) -> Sequence[Any]:
        """One per text encoder, in transformers' form; none where prompts are not read in tokens."""
        return ()


# --- what a metric measures --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """Everything a metric may look at. Row i of every field belongs to generated image i.

    Images may be files that are decoded when rows are taken; `np.asarray` makes an array of them.
    """

    images: Images  # uint8 (N, 3, P, P)
    baseline: Images  # uint8 (N, 3, P, P): the untouched backbone, same prompts and seeds
    prompts: Sequence[str]  # content prompts, N
    full_prompts: Sequence[str]  # as the method was asked at sampling, style words included, N
    seeds: Sequence[int]  # evaluation seeds, N
    dataset: Dataset
    cache: Path  # features may be kept here
    class_images: Callable[[], Images] | None = None  # the customised model on "a photo of a <noun>", drawn if asked


@dataclass(frozen=True)
class Score:
    """Numbers of one metric: `values` by id, per-image values where they exist, and what they depend on."""

    values: Mapping[str, float]
    per_image: Mapping[str, np.ndarray] = field(default_factory=dict)  # id -> float (N,), NaN where undefined
    fingerprint: Mapping[str, Any] = field(default_factory=dict)  # network, weights hash, preprocessing, n, versions
    notes: Sequence[str] = ()  # sentences for the record: which value is absent and why, what was cut


class Metric(ABC):
    """A measurement of a set of images. Missing is absent, with the reason; no number is ever invented."""

    version: ClassVar[int] = 1  # raise it when numbers change: finished cells are then scored again
    higher_is_better: ClassVar[Mapping[str, bool]]  # id of each value -> direction

    def identity(self) -> list[str]:
        """What its numbers depend on besides the images and its settings: the version, and the `id` of each part that
        has one, which a network changes with its weights. Raises BenchError where weights are missing."""
        return [f"version {self.version}", *(part.id for part in vars(self).values() if hasattr(part, "id"))]

    @abstractmethod
    def missing(self) -> str | None:
        """A sentence that names the weights file that is not on this machine, or None."""

    @abstractmethod
    def score(self, evaluation: Evaluation) -> Score:
        """Raise `Impossible` with a sentence when the dataset lacks what the metric needs."""
