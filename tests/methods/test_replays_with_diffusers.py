"""The published updates on tiny Stable Diffusion and SDXL, replayed in plain torch with diffusers' own pipeline.

The pipeline reads the prompts, its UNet predicts with merged weights, its scheduler has the alphas, and torch's AdamW
steps. Ours are bank, trainer and method on the same folder. Both in float64.
"""

import copy
import functools
import tempfile
from dataclasses import replace

import pytest
import torch
from random_pipelines import sdxl, stable_diffusion
from tiny import picture, tiny_dataset
from torch.nn.functional import mse_loss

from bench.adapters.bank import Bank
from bench.backbones.sdxl import StableDiffusionXL
from bench.backbones.stable_diffusion import StableDiffusion
from bench.contracts import AdapterSpec, Example, Recipe
from bench.sampling.sampler import Request, Sampler, denoise, shots
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
        """States and added conditions of a prompt; of the absent negative prompt for None."""
        out = self.pipeline.encode_prompt(
            prompt or "", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=prompt is None
        )
        out = out[1::2] if prompt is None else out[::2]
        sizes = torch.tensor([[P, P, 0, 0, P, P]]).double()
        return out[0], ({"text_embeds": out[1], "time_ids": sizes} if len(out) == 2 else None)

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


# --- full fine-tuning, guidance and blending


@families
def test_full_fine_tuning_with_the_text_encoders(family):
    """All weights of diffusers' networks by torch's AdamW; the pipeline reads the prompts with gradients."""
    pipeline, backbone = made(family)
    recipe = replace(RECIPE, lr=1e-3)
    method = DreamBooth(recipe, tune="full", text_encoder=True, prior_weight=0.5)
    bank = Bank(backbone, method.adapters(tiny_dataset()), [generator("adapters", 0)])
    data = [Latents(tiny_dataset(), backbone, recipe, PRIOR) for _ in range(2)]
    steps = list(train(bank, [Job(0, method, data[0], recipe, seed=7)]))
    bank.close()
    tuned = copy.deepcopy(pipeline)
    parts = {name: getattr(tuned, name).requires_grad_(True) for name in backbone.parts()}
    weights = {f"{part}.{n}": w for part, network in parts.items() for n, w in network.named_parameters()}
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-3, weight_decay=1e-2)
    for k in range(recipe.steps):
        loss = full_loss(tuned, data[1], generator("train", 7, k))
        optimizer.zero_grad()
        loss.backward()
        for weight in weights.values():  # the last layer of a text encoder of SDXL is not read; ours has gradients of 0
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        optimizer.step()
        assert steps[k].losses == pytest.approx([loss.item()], abs=1e-9)
    leaves = bank.full["style"].leaves
    assert leaves.keys() == weights.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(leaves[key].detach(), weight.detach(), rtol=0, atol=1e-8)


def full_loss(pipeline, data, rng):
    """Of an instance, and half of one of the class."""
    alphas, loss = pipeline.scheduler.alphas_cumprod.double(), 0
    for role, prompt, weight in (("style", "a photo of a dog in sks style", 1), ("prior", "a photo of a dog", 0.5)):
        (z,), _ = data.draw((role,), rng)
        eps, t = data.noise(z, rng)
        noisy = alphas[t] ** 0.5 * z + (1 - alphas[t]) ** 0.5 * eps
        states, _, *pooled = pipeline.encode_prompt(
            prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        sizes = torch.tensor([[P, P, 0, 0, P, P]]).double()
        added = {"text_embeds": pooled[0], "time_ids": sizes} if pooled else None
        out = pipeline.unet(noisy, t, encoder_hidden_states=states, added_cond_kwargs=added).sample
        loss = loss + weight * mse_loss(out, eps)
    return loss


@families
@pytest.mark.parametrize("blended", [False, True])
def test_style_guidance_and_blending(family, blended, tmp_path):
    """Equations 10 and 11 of arXiv 2405.01536 over four DDIM steps, the first at ordinary guidance (late start)."""
    pipeline, backbone = made(family)
    others = [{"file": random_file(backbone, tmp_path), "style_words": "in ink", "strength": 1.5}] if blended else []
    method = PairCustomization(RECIPE, rank=4, blend=others)
    bank = Bank(backbone, method.adapters(tiny_dataset()), [generator("adapters", 0)])
    bank.theta["style"].add_(torch.randn(bank.theta["style"].shape, generator=generator("fill")).double(), alpha=0.2)
    plain, sampler = Plain(pipeline, bank), Sampler(scheduler="ddim", steps=4, cfg=3.0)
    chosen = shots(tiny_dataset())[:1]
    z = chosen[0].noise(backbone.latent_shape).double()[None]
    scheduler = backbone.scheduler("ddim", 4)
    request = Request(0, method, tiny_dataset(), chosen, 2.0)
    with torch.no_grad():
        mine = denoise(bank, [(request, chosen)], sampler, scheduler, z, scheduler.timesteps)
        bank.close()
        theirs = guided(plain, z, chosen[0].prompt, others)
        base = guided(plain, z, chosen[0].prompt, [], strength=0.0)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)
    assert (theirs - base).abs().max() > 1e-2


def guided(plain, z, prompt, others, strength=2.0):
    """Latents after four DDIM steps of diffusers' scheduler, by predictions of one row each."""
    from diffusers import DDIMScheduler

    config = plain.pipeline.scheduler.config
    last = config.get("set_alpha_to_one", True)  # of SD's file: false; diffusers would take it for a default of PNDM
    scheduler = DDIMScheduler.from_config(config, clip_sample=False, set_alpha_to_one=last)
    scheduler.set_timesteps(4)
    styles = {"style": (strength, f"{prompt} in inverted style")}
    styles |= {f"blend{i}": (other["strength"], f"{prompt} {other['style_words']}") for i, other in enumerate(others)}
    for t in scheduler.timesteps:
        away, content = plain.predict(z, t, None), plain.predict(z, t, prompt)
        e = away + 3.0 * (content - away)
        for name, (g, styled) in styles.items() if t <= 800 else ():
            e = e + g * (plain.predict(z, t, styled, **{name: 1}) - content)
        z = scheduler.step(e, t, z).prev_sample
    return z


def random_file(backbone, folder):
    """A style of another training."""
    bank = Bank(backbone, {"style": AdapterSpec(3)}, [generator("other")])
    bank.theta["style"].add_(torch.randn(bank.theta["style"].shape, generator=generator("more")).double(), alpha=0.2)
    bank.save("style", 0, folder)
    bank.close()
    return str(folder / "style.safetensors")
