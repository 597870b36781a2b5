"""Concept Sliders (Gandikota et al. 2024, arXiv 2311.12092): one small adapter as a direction, turned by a number.

At the slider value +s it adds an attribute, at -s it takes it away. The direction is learnt from opposing prompts
(`TextualSlider`) or from pairs of images (`VisualSlider`); both are drawn with in the same way.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from bench.contracts import (
    AdapterSpec,
    Ask,
    BenchError,
    Dataset,
    Loss,
    Method,
    Recipe,
    TrainingData,
    at_least_one,
    check_entries,
    plain_guidance,
)
from bench.data.templates import filled

ACTIONS = {"enhance": 1.0, "erase": -1.0}
COMPOSED = ("file", "scale")  # what an entry of `compose` has
PRESERVE = ("sum", "random")
PROMPTS = frozenset({"target", "positive", "negative"})  # what an entry must have


# --- what both ways of learning share ----------------------------------------------------------------------------


def slider_adapters(spec: AdapterSpec, compose: Sequence[Mapping[str, Any]]) -> Mapping[str, AdapterSpec]:
    """The slider that learns, and the finished ones that take part in sampling, with the ranks of their files."""
    others = {f"compose{i}": replace(spec, file=str(other["file"])) for i, other in enumerate(compose)}
    return {"style": spec, **others}


def values(value: float, compose: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """All sliders that are on while sampling; their deltas add."""
    return {"style": value} | {f"compose{i}": float(other["scale"]) for i, other in enumerate(compose)}


def pick(among: Sequence[Any], rng: torch.Generator) -> Any:
    """One of them, all equally likely."""
    return among[int(torch.randint(len(among), (), generator=rng))]


# --- from pairs of images ----------------------------------------------------------------------------------------


@dataclass
class VisualSlider(Method):
    """|| E_{+s}(x_high, c_positive, t) - eps ||^2 + || E_{-s}(x_low, c_neutral, t) - eps ||^2, one eps for both.

    A pair's content image is the low side and its style image the high side, so the slider's axis is the style.
    """

    recipe: Recipe
    scale: float = 1.0  # s while training
    positive: str = ""  # prompt of the high side
    neutral: str = ""  # prompt of the low side
    stride: int = 1  # noise levels are multiples of it
    levels: tuple[int, int] | None = None  # the first and the last multiple that is drawn; None: all timesteps alike
    t_shift: int = 0  # the network is told this much more noise than there is
    rank: int = 4
    alpha: float = 1.0
    where: str = "noxattn"
    strength: float = 1.0
    start_t: float = 750
    compose: Sequence[Mapping[str, Any]] = ()  # finished sliders, on while sampling: {file, scale}

    needs = frozenset({"pairs"})
    strength_knob = "slider value"

    def __post_init__(self) -> None:
        check_entries("compose", self.compose, COMPOSED)
        at_least_one(stride=self.stride)

    def adapters(self, dataset: Dataset) -> Mapping[str, AdapterSpec]:
        """`down` begins as in the code of visual sliders, kaiming a = sqrt(5); the code of textual ones has a = 1."""
        return slider_adapters(AdapterSpec(self.rank, self.where, self.alpha, init="kaiming_sqrt5"), self.compose)

    def step(self, data, k, rng):
        (low, high), _ = data.draw(("content", "style"), rng)
        eps, t = data.noise(low, rng)  # shared by both sides
        t = self._levels(t, rng)
        n, side = len(low), torch.full((len(low),), self.scale)
        out = yield Ask(
            torch.cat([data.noisy(high, eps, t), data.noisy(low, eps, t)]),
            (t + self.t_shift).repeat(2),
            data.text([self.positive] * n + [self.neutral] * n),
            {"style": torch.cat([side, -side])},
        )
        above, below = out.chunk(2)
        yield Loss(data.loss(above, data.target(high, eps, t), t) + data.loss(below, data.target(low, eps, t), t))

    def _levels(self, t: Tensor, rng: torch.Generator) -> Tensor:
        """Timesteps (B,) from `levels` in the place of t (B,), or the multiples of the stride below t."""
        if self.levels is None:
            return t - t % self.stride if self.stride > 1 else t
        first, last = self.levels
        return self.stride * torch.randint(first, last + 1, t.shape, generator=rng).to(t)

    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        return {"content": prompt, "negative": ""}

    def guide(self, z, t, texts, cfg, strength):
        return (yield from plain_guidance(z, t, texts, cfg, adapters=values(strength, self.compose)))


# --- from opposing prompts ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Direction:
    """The prompts of one training step: more of `plus` and less of `minus`, attribute by attribute."""

    target: str  # c_t
    neutral: str  # c_n
    negative: str  # c-, also what the rollout is guided away from
    plus: tuple[str, ...]  # (c+, p)
    minus: tuple[str, ...]  # (c-, p)
    eta: float  # with the sign of the action


@dataclass
class TextualSlider(Method):
    """E*(x, c_t, t) <- E(x, c_n, t) + eta sum_p (E(x, (c+, p), t) - E(x, (c-, p), t)), on rollouts x of the slider.

    `entries` are {target, positive, negative, neutral, action, eta}: neutral is the target where there is none, action
    is enhance or erase, and {noun} and {style_words} are filled in from the dataset. `attributes` (the set P) are put
    in front of the prompts: all of them in one sum, or (`preserve: random`) one, drawn anew for each step, in front of
    all prompts.
    """

    recipe: Recipe
    entries: Sequence[Mapping[str, Any]] = ()
    eta: float = 4.0
    attributes: Sequence[str] = ()
    preserve: Literal["sum", "random"] = "sum"
    rollout_steps: int = 50
    rollout_cfg: float = 3.0
    # in the loss the network is told this much more noise than there is; None: one less than the rollout's stride, as
    # in the code, which goes over from the rollout's schedule to one of all timesteps
    t_shift: int | None = 0
    rank: int = 4
    alpha: float = 1.0
    where: str = "noxattn"
    strength: float = 1.0
    start_t: float = 750
    compose: Sequence[Mapping[str, Any]] = ()  # finished sliders, on while sampling: {file, scale}

    strength_knob = "slider value"
    notes = ("rollouts follow the backbone's DDIM schedule; the code's has no timestep offset and set_alpha_to_one",)

    def __post_init__(self) -> None:
        check_entries("compose", self.compose, COMPOSED)
        if self.rollout_steps < 2:
            raise BenchError(f"method.rollout_steps={self.rollout_steps} was requested; give at least 2.")
        for entry in self.entries or [{}]:
            known = PROMPTS <= set(entry) <= PROMPTS | {"neutral", "action", "eta"}
            if not known or entry.get("action", "enhance") not in ACTIONS:
                raise BenchError(
                    f"A slider was given the entry {dict(entry)}; it needs target, positive and negative, and may have "
                    f"neutral, eta and action ({' or '.join(ACTIONS)}): see conf/method/slider_text.yaml."
                )
        if self.preserve not in PRESERVE:
            raise BenchError(f"Found preserve: {self.preserve!r}; type method.preserve={' or '.join(PRESERVE)}.")

    def lacks(self, dataset: Dataset) -> str | None:
        worded = any("{style_words}" in str(text) for entry in self.entries for text in entry.values())
        return "style words, or method.entries without them" if worded and not dataset.style_words else None

    def adapters(self, dataset: Dataset) -> Mapping[str, AdapterSpec]:
        return slider_adapters(AdapterSpec(self.rank, self.where, self.alpha, init="kaiming"), self.compose)

    def step(self, data, k, rng):
        way = self.direction(data.dataset, rng)
        z, t = yield from self._rollout(data, way, rng)
        n, t = len(z), t + self._shift(data.backbone.train_timesteps)
        prompts = list(dict.fromkeys((way.neutral, *way.plus, *way.minus)))  # equal ones once
        text = data.text([prompt for prompt in prompts for _ in range(n)])
        out = yield Ask(torch.cat([z] * len(prompts)), t.repeat(len(prompts)), text)  # the slider is off
        found = dict(zip(prompts, out.chunk(len(prompts)), strict=True))
        edit = sum(found[more] - found[less] for more, less in zip(way.plus, way.minus, strict=True))
        out = yield Ask(z, t, data.text([way.target] * n), {"style": 1.0})
        yield Loss(mse_loss(out, found[way.neutral] + way.eta * edit))

    def direction(self, dataset: Dataset, rng: torch.Generator) -> Direction:
        """An entry, drawn, with the dataset's words and the attributes in its prompts."""
        drawn = pick(self.entries, rng)
        entry = {"neutral": drawn["target"], "action": "enhance", "eta": self.eta, **drawn}
        kept = [f"{attribute} " for attribute in self.attributes] or [""]
        front = pick(kept, rng) if self.preserve == "random" else ""
        kept = [front] if self.preserve == "random" else kept

        def words(role: str) -> str:
            return filled(entry[role], noun=dataset.noun, style_words=dataset.style_words)

        return Direction(
            target=front + words("target"),
            neutral=front + words("neutral"),
            negative=front + words("negative"),
            plus=tuple(attribute + words("positive") for attribute in kept),
            minus=tuple(attribute + words("negative") for attribute in kept),
            eta=entry["eta"] * ACTIONS[entry["action"]],
        )

    def _rollout(
        self, data: TrainingData, way: Direction, rng: torch.Generator
    ) -> Generator[Ask, Tensor, tuple[Tensor, Tensor]]:
        """Latents (B, C, H, W) after 1 to all but one of the sampler's steps from noise, and their timesteps (B,)."""
        scheduler = data.scheduler(data.backbone.rollout_scheduler, self.rollout_steps)
        last = int(torch.randint(1, self.rollout_steps, (), generator=rng))
        z = data.start_noise(rng)
        n, timesteps = len(z), scheduler.timesteps.to(z.device)
        prompts = list(dict.fromkeys((way.negative, way.target)))  # once, where they are equal
        text = data.text([prompt for prompt in prompts for _ in range(n)])
        for t in timesteps[:last]:
            on = {"style": 1.0}
            out = yield Ask(torch.cat([z] * len(prompts)), t.repeat(n * len(prompts)), text, on, frozen=frozenset(on))
            away, towards = out[:n], out[-n:]
            z = scheduler.step(away + self.rollout_cfg * (towards - away), t, z).prev_sample
        return z, timesteps[last].repeat(n)

    def _shift(self, train_timesteps: int) -> int:
        return train_timesteps // self.rollout_steps - 1 if self.t_shift is None else self.t_shift

    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        return {"content": prompt, "negative": ""}

    def guide(self, z, t, texts, cfg, strength):
        return (yield from plain_guidance(z, t, texts, cfg, adapters=values(strength, self.compose)))
