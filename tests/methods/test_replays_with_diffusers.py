"""The published updates on tiny Stable Diffusion and SDXL, replayed in plain torch with diffusers' own pipeline.

The pipeline reads the prompts, its UNet predicts with merged weights, its scheduler has the alphas, and torch's AdamW
steps. Ours are bank, trainer and method on the same folder. Both in float64.
"""

import functools
import tempfile

import pytest
import torch
from random_pipelines import sdxl, stable_diffusion
from tiny import picture, tiny_dataset
from torch.nn.functional import mse_loss

from bench.adapters.bank import Bank
from bench.backbones.sdxl import StableDiffusionXL
from bench.backbones.stable_diffusion import StableDiffusion
from bench.contracts import Example, Recipe
from bench.seeding import generator
from bench.training.latents import Latents
from bench.training.trainer import Job, train
from methods.dreambooth import DreamBooth
from methods.pair import PairCustomization
from methods.sliders import TextualSlider, VisualSlider
from methods.styleforge import StyleForge

torch.set_num_threads(1)
P = 64  # pixels of the tiny dataset
RECIPE = Recipe(steps=3, lr=1e-2, weight_decay=1e-2)
PRIOR = [Example(picture(40), "a photo of a dog", "dog")]
FAMILIES = {"sd": (stable_diffusion, StableDiffusion), "sdxl": (sdxl, StableDiffusionXL)}


class Plain:
    """diffusers' pipeline and the factors of all adapters, as they begin on our side."""

    def __init__(self, pipeline, start):
        self.pipeline, self.start = pipeline, start
        self.alphas = pipeline.scheduler.alphas_cumprod.double()
        self.factors = {
            name: {s: [half[0].detach().clone() for half in (layer.down, layer.up)] for s, layer in layers.items()}
            for name, layers in start.layers.items()
        }

    def optimizer(self, name, *halves):
        trained = [factors[i].requires_grad_() for factors in self.factors[name].values() for i in halves]
        return torch.optim.AdamW(trained, lr=1e-2, weight_decay=1e-2)

    def noisy(self, z, eps, t):
        return self.alphas[t] ** 0.5 * z + (1 - self.alphas[t]) ** 0.5 * eps

    def predict(self, z, t, prompt, **scales):
        """One row with W + scale * alpha / rank * up down, for every adapter that has a scale."""
        weights = dict(self.pipeline.unet.named_parameters())
        for name, scale in scales.items():
            for site, (down, up) in self.factors[name].items():
                delta = torch.einsum("or,r...->o...", up, down) * self.start.layers[name][site].scale
                weights[f"{site}.weight"] = weights[f"{site}.weight"] + scale * delta
        states, added = self.read(prompt)
        kwargs = {"encoder_hidden_states": states, "added_cond_kwargs": added}
        return torch.func.functional_call(self.pipeline.unet, weights, (z, torch.as_tensor(t).view(1)), kwargs).sample

    @functools.cache  # noqa: B019
    @torch.no_grad()
    def read(self, prompt):
        out = self.pipeline.encode_prompt(
            prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        sizes = torch.tensor([[P, P, 0, 0, P, P]]).double()
        return out[0], ({"text_embeds": out[2], "time_ids": sizes} if len(out) == 4 else None)

    def step(self, optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()


@functools.cache
def made(family):
    build, kind = FAMILIES[family]
    pipeline = build()
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder)
        ours = kind(folder, P, dtype="float64", device="cpu", name=family)
    for part in (pipeline.unet, pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)):
        if part is not None:
            part.to(torch.float64).requires_grad_(False)
    return pipeline, ours


def both(family, method, replay, dataset=None):
    """Train ours; replay(plain, latents, k) gives the losses of step k; losses and all factors are the same."""
    pipeline, backbone = made(family)
    data = dataset or tiny_dataset()
    start = Bank(backbone, method.adapters(data), [generator("adapters", 0)])
    start.close()
    bank = Bank(backbone, method.adapters(data), [generator("adapters", 0)])
    steps = list(train(bank, [Job(0, method, Latents(data, backbone, RECIPE, PRIOR), RECIPE, seed=7)]))
    bank.close()
    plain, latents = Plain(pipeline, start), Latents(data, backbone, RECIPE, PRIOR)
    go = replay(plain, latents)
    for k in range(RECIPE.steps):
        assert steps[k].losses == pytest.approx(go(k, generator("train", 7, k)), abs=1e-9)
    for name, sites in plain.factors.items():
        for site, (down, up) in sites.items():
            layer = bank.layers[name][site]
            torch.testing.assert_close(layer.down[0].detach(), down.detach(), rtol=0, atol=1e-8)
            torch.testing.assert_close(layer.up[0].detach(), up.detach(), rtol=0, atol=1e-8)
    assert any((up != 0).any() for _, up in plain.factors["style"].values())


families = pytest.mark.parametrize("family", FAMILIES)


@families
def test_pair_customization(family):
    """Two optimizers, one step each; the style pass has the content adapter as the content step left it."""

    def replay(plain, latents):
        optimizers = {name: plain.optimizer(name, 1) for name in ("content", "style")}

        def go(k, rng):
            (content, style), _ = latents.draw(("content", "style"), rng)
            eps, t = latents.noise(content, rng)
            prompt = "a photo of a sbu dog"
            out = plain.predict(plain.noisy(content, eps, t), t, prompt, content=1)
            losses = [plain.step(optimizers["content"], mse_loss(out, eps))]
            if k >= 1:
                out = plain.predict(plain.noisy(style, eps, t), t, f"{prompt} in inverted style", content=1, style=1)
                losses.append(plain.step(optimizers["style"], mse_loss(out, eps)))
            return losses

        return go

    both(family, PairCustomization(RECIPE, rank=4, content_steps=1), replay)


@families
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_dreambooth_lora(family, weight):
    def replay(plain, latents):
        optimizer = plain.optimizer("style", 0, 1)

        def go(k, rng):
            (z,), _ = latents.draw(("style",), rng)
            eps, t = latents.noise(z, rng)
            loss = mse_loss(plain.predict(plain.noisy(z, eps, t), t, "a photo of a dog in sks style", style=1), eps)
            if weight:
                (z,), _ = latents.draw(("prior",), rng)
                eps, t = latents.noise(z, rng)
                out = plain.predict(plain.noisy(z, eps, t), t, "a photo of a dog", style=1)
                loss = loss + weight * mse_loss(out, eps)
            return [plain.step(optimizer, loss)]

        return go

    both(family, DreamBooth(RECIPE, prior_weight=weight), replay)


@families
def test_styleforge_lora(family):
    def replay(plain, latents):
        optimizer = plain.optimizer("style", 0, 1)

        def go(k, rng):
            (z,), _ = latents.draw(("references",), rng)
            eps, t = latents.noise(z, rng)
            loss = mse_loss(plain.predict(plain.noisy(z, eps, t), t, "a photo of zwx style", style=1), eps)
            (z,), _ = latents.draw(("auxiliary",), rng)
            eps, t = latents.noise(z, rng)
            loss = loss + mse_loss(plain.predict(plain.noisy(z, eps, t), t, "a photo of style", style=1), eps)
            return [plain.step(optimizer, loss)]

        return go

    both(family, StyleForge(RECIPE, tune="lora", text_encoder=False, token="zwx"), replay)


@families
def test_visual_slider_with_empty_prompts(family):
    """The empty prompts of both sides are encoded, on SDXL too: only an absent negative prompt is zeros there."""

    def replay(plain, latents):
        optimizer = plain.optimizer("style", 0, 1)

        def go(k, rng):
            (low, high), _ = latents.draw(("content", "style"), rng)
            eps, t = latents.noise(low, rng)
            t = 20 * torch.randint(1, 49, (1,), generator=rng)
            above = plain.predict(plain.noisy(high, eps, t), t + 19, "", style=1)
            below = plain.predict(plain.noisy(low, eps, t), t + 19, "", style=-1)
            return [plain.step(optimizer, mse_loss(above, eps) + mse_loss(below, eps))]

        return go

    both(family, VisualSlider(RECIPE, stride=20, t_shift=19, levels=(1, 48)), replay)


@families
def test_textual_slider_guided_away_from_the_empty_prompt(family):
    """The rollout's unconditional prompt is a prompt of the entry and is encoded."""
    from diffusers import DDIMScheduler

    def replay(plain, latents):
        optimizer = plain.optimizer("style", 0, 1)

        def go(k, rng):
            torch.randint(1, (), generator=rng)  # which entry
            last = int(torch.randint(1, 5, (), generator=rng))
            z = torch.randn(1, 4, 16, 16, generator=rng).double()
            scheduler = DDIMScheduler.from_config(plain.pipeline.scheduler.config, clip_sample=False)
            scheduler.set_timesteps(5)
            with torch.no_grad():
                for t in scheduler.timesteps[:last]:
                    away, towards = (plain.predict(z, t, prompt, style=1) for prompt in ("", "dog"))
                    z = scheduler.step(away + 3.0 * (towards - away), t, z).prev_sample
                told = scheduler.timesteps[last] + 199
                off = {prompt: plain.predict(z, told, prompt) for prompt in ("dog", "old dog", "")}
            aim = off["dog"] + 4.0 * (off["old dog"] - off[""])
            return [plain.step(optimizer, mse_loss(plain.predict(z, told, "dog", style=1), aim))]

        return go

    entry = {"target": "{noun}", "positive": "old {noun}", "negative": ""}
    both(family, TextualSlider(RECIPE, entries=(entry,), rollout_steps=5, t_shift=None), replay)
