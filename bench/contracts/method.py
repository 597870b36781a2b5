"""What a customization method is, and the recipe of its training."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bench.choices import LearningRate
from bench.contracts.adapters import Spec
from bench.contracts.backbone import TrainingData
from bench.contracts.dataset import Dataset, Example
from bench.contracts.prediction import Ask, Loss, Text
from bench.errors import BenchError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from bench.contracts.dataset import Images


def at_least_one(**counts: int) -> None:
    """Raises BenchError for a setting of a method that counts something and is less than 1."""
    for name, count in counts.items():
        if count < 1:
            raise BenchError(f"method.{name}={count} was requested; give at least 1.")


def check_entries(setting: str, entries: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    """Raises BenchError unless each entry of a method's list setting has these keys and no others."""
    for i, entry in enumerate(entries):
        lacks, strange = [key for key in keys if key not in entry], [key for key in entry if key not in keys]
        if lacks or strange:
            found = f"lacks {', '.join(lacks)}" if lacks else f"has {', '.join(map(str, strange))}, which has no effect"
            raise BenchError(f"method.{setting}[{i}] {found}; give {', '.join(keys)} and nothing else.")


@dataclass(frozen=True)
class Recipe:
    """What a publication fixes about its optimisation."""

    steps: int
    lr: float
    batch_size: int = 1
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    schedule: LearningRate = "constant"
    warmup_steps: int = 0
    clip_norm: float | None = None
    flip: bool = False  # mirror each drawn example with `flip_probability`, pairs together
    flip_probability: float = 0.5
    crop: float = 1.0  # smallest side of a random square crop as a fraction of the image, pairs together

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise BenchError(
                f"A recipe of {self.steps} steps of {self.batch_size} examples was requested; type at least 1 of each."
            )


@dataclass(frozen=True)
class Unbound:
    """Texts without a place for the rare token that they should get."""

    captions: Sequence[str] = ()  # of training images
    of: int = 0  # captions in all
    prompts: Sequence[str] = ()  # of the evaluation

    @classmethod
    def among(cls, examples: Sequence[Example], prompts: Sequence[str] = (), noun: str = "") -> Unbound:
        """Those captions without their example's class noun, and those prompts without `noun`: see `with_token`."""
        captions = [example.caption for example in examples if not _noun(example.noun).search(example.caption)]
        return cls(captions, len(examples), [prompt for prompt in prompts if not _noun(noun).search(prompt)])


@dataclass(frozen=True)
class Reference:
    """A picture that is drawn again beside the images, from its own noise (DDIM inversion under `prompt`)."""

    image: np.ndarray  # uint8 (3, P, P)
    prompt: str
    guidance: float = 1.0  # of the inversion
    offset: int = 0  # until the step after this one it is shown at the noise of that step


class Method(ABC):
    """A customization method. It never calls the network: it asks, and the trainer or the sampler answers."""

    needs: ClassVar[frozenset[str]] = frozenset()  # of "pairs", "references", "auxiliary", "class", "oracle"
    bound: ClassVar[str] = ""  # "floor" or "ceiling" of the scale: such a method does not compete with others
    words: ClassVar[frozenset[str]] = frozenset()  # "style_words" when training writes them into captions
    strength_knob: ClassVar[str]  # what `strength` turns, in the paper's words
    strength: float = 1.0  # the value used when none is requested
    neutral_strength: ClassVar[float | None] = 0.0  # nothing that was learned shows; None: there is no such strength
    start_t: float = 1000  # guidance begins at this timestep; before it the backbone's own guidance runs
    recipe: Recipe | None = None  # None: nothing to train
    notes: Sequence[str] = ()  # what a reader of the record must know

    @property
    def rare_tokens(self) -> Sequence[str]:
        """Words that the method binds to what it learns; the record notes those that the tokenizer takes apart."""
        return ()

    def unbound(self, dataset: Dataset) -> Unbound:
        """Captions and evaluation prompts that should get a rare token and have no place for it."""
        return Unbound()

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

    def from_baseline(self, baseline: Images, prompts: Sequence[str], dataset: Dataset) -> np.ndarray | None:
        """The images of a method that draws nothing, made from the baseline's, both uint8 (N, 3, P, P); else None.

        `prompts` are the N content prompts of the baseline's images.
        """
        return None

    @abstractmethod
    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        """The texts that `guide` uses for one evaluation prompt, by role; "content" and "negative" are always there.

        An empty negative text means that there is none, which SDXL replaces by zeros.
        """

    def shown(self, dataset: Dataset) -> Mapping[str, Mapping[str, Tensor]]:
        """What those texts show: role -> adapter -> image features (1, E) or (1, S, E)."""
        return {}

    def reference(self, dataset: Dataset) -> Reference | None:
        """A picture whose latents at the noise of each step `guide` finds in `texts["reference"].images[REFERENCE]`.

        The role "reference" is one of `prompts`.
        """
        return None

    @abstractmethod
    def guide(
        self, z: Tensor, t: Tensor, texts: Mapping[str, Text], cfg: float, strength: float
    ) -> Generator[Ask, Tensor, Tensor]:
        """Guided prediction (N, C, H, W) for latents z (N, C, H, W) at timesteps t (N,)."""


def learned_from(dataset: Dataset, images: str | None = None) -> tuple[str, Sequence[Example]]:
    """A role and its images: the requested one, or a pair's style image, or the references where there is no pair."""
    role = images or ("style" if dataset.pairs else "references")
    return role, dataset.references if role == "references" else [pair.style for pair in dataset.pairs]


def with_token(prompt: str, noun: str, token: str, keep_noun: bool = True) -> str:
    """The rare token in front of the class noun: "a photo of a dog" -> "a photo of a sks dog"; capitals do not count.

    With `keep_noun=False` it stands in the place of the noun. A prompt without the noun stays as it is:
    `Unbound.among` finds such prompts.
    """
    return _noun(noun).sub(lambda found: f"{token} {found[0]}" if keep_noun else token, prompt, count=1)


def _noun(noun: str) -> re.Pattern[str]:
    """The noun, not as a part of a longer word."""
    return re.compile(rf"(?<!\w){re.escape(noun)}(?!\w)", re.IGNORECASE)


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
