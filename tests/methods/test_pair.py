"""Pair Customization: the invariants of the paper, and a replay of its update in plain torch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import TinyBackbone, tiny_dataset
from torch.nn.functional import mse_loss

from bench.adapters import Bank, basis
from bench.contracts import Recipe
from bench.latents import Latents
from bench.sampling import Request, Sampler, Untouched, sample, shots
from bench.trainer import Job, generator, train
from methods.pair import PairCustomization

RECIPE = Recipe(steps=5, lr=1e-2, weight_decay=1e-4, flip=True)
SAMPLER = Sampler(steps=5, cfg=3.0)


def pair(**changes):
    return PairCustomization(**{"recipe": RECIPE, "rank": 4, "content_steps": 2, **changes})


def bank_of(backbone, method):
    return Bank(backbone, method.adapters(tiny_dataset()), [generator("adapters", 0)])


def job_of(backbone, method):
    return Job(0, method, Latents(tiny_dataset(), backbone, RECIPE), RECIPE, seed=7)


def drawn(bank, method, strength):
    request = Request(0, method, tiny_dataset(), shots(tiny_dataset()), strength)
    return np.concatenate([chunk[0] for chunk in sample(bank, [request], SAMPLER)])


def filled(backbone, method):
    bank = bank_of(backbone, method)
    for theta in bank.theta.values():
        theta.normal_(generator=generator("fill")).mul_(0.3)
    return bank


def test_the_frozen_halves_read_orthogonal_subspaces_and_stay():
    backbone = TinyBackbone(torch.float64)
    bank = bank_of(backbone, pair())
    before = {site: layer.down.clone() for site, layer in bank.layers["style"].items()}
    list(train(bank, [job_of(backbone, pair())]))
    for site, style in bank.layers["style"].items():
        content = bank.layers["content"][site]
        assert (content.down[0] @ style.down[0].T).abs().max() < 1e-12
        assert torch.equal(style.down, before[site])
        assert torch.equal(content.down[0], basis(style.down.shape[-1], 123846)[:4])


def test_a_content_loss_leaves_the_style_adapter_alone_and_the_other_way_round():
    backbone, method = TinyBackbone(), pair()
    bank = bank_of(backbone, method)
    previous = {name: bank.row(name, 0).clone() for name in ("content", "style")}
    for step in train(bank, [job_of(backbone, method)]):
        assert torch.equal(bank.row("style", 0), previous["style"]) == (step.k <= method.content_steps)
        assert not torch.equal(bank.row("content", 0), previous["content"])
        previous = {name: bank.row(name, 0).clone() for name in ("content", "style")}


def test_the_published_update_replayed_without_bank_or_trainer():
    """Two AdamW steps per iteration, shared noise, content first; the style pass sees the updated content adapter."""
    backbone, method, data = TinyBackbone(torch.float64), pair(), tiny_dataset()
    bank = bank_of(backbone, method)
    steps = list(train(bank, [job_of(backbone, method)]))
    sites = backbone.sites("attention")
    down = {site: basis(module.in_features, 123846) for site, module in sites.items()}
    ups = {
        name: {s: torch.zeros(m.out_features, 4, dtype=torch.float64, requires_grad=True) for s, m in sites.items()}
        for name in ("content", "style")
    }
    optimizers = {
        name: torch.optim.AdamW(rows.values(), lr=1e-2, weight_decay=1e-4, eps=1e-8) for name, rows in ups.items()
    }

    def predict(z, t, prompt, **on):
        weights = {}
        for site, module in sites.items():
            delta = sum((up[site] @ down[site][first : first + 4] for first, up in on.values()), 0 * module.weight)
            weights[f"{site}.weight"] = module.weight + delta
        text = backbone.embed([prompt]).states
        return torch.func.functional_call(backbone.network, weights, (z, t, text)).sample

    latents = Latents(data, backbone, RECIPE)
    for k in range(RECIPE.steps):
        rng = generator("train", 7, k)
        (content, style), _ = latents.draw(("content", "style"), rng)
        eps, t = latents.noise(content, rng)
        losses = [
            mse_loss(predict(latents.noisy(content, eps, t), t, "a photo of a sbu dog", c=(0, ups["content"])), eps)
        ]
        optimizers["content"].zero_grad()
        losses[0].backward()
        optimizers["content"].step()
        if k >= 2:
            frozen = {site: up.detach() for site, up in ups["content"].items()}
            prompt = "a photo of a sbu dog in inverted style"
            out = predict(latents.noisy(style, eps, t), t, prompt, c=(0, frozen), s=(4, ups["style"]))
            losses.append(mse_loss(out, eps))
            optimizers["style"].zero_grad()
            losses[1].backward()
            optimizers["style"].step()
        assert steps[k].losses == pytest.approx([loss.item() for loss in losses], abs=1e-9)
    for name, rows in ups.items():
        for site, up in rows.items():
            torch.testing.assert_close(bank.layers[name][site].up[0].detach(), up.detach(), rtol=0, atol=1e-9)


def test_guidance_zero_is_the_backbone_bit_for_bit():
    backbone = TinyBackbone()
    bank = filled(backbone, pair())
    base = drawn(bank, Untouched(), 0.0)
    assert np.array_equal(drawn(bank, pair(), 0.0), base)
    assert not np.array_equal(drawn(bank, pair(), 2.0), base)


def guided(bank, method, strength, z, cfg=3.0):
    texts = {role: bank.backbone.embed([p]) for role, p in method.prompts("a photo of a cat", tiny_dataset()).items()}
    coroutine, answer = method.guide(z, torch.tensor([500]), texts, cfg, strength), None
    try:
        while True:
            with torch.no_grad():
                answer = bank.answer([(0, coroutine.send(answer))])[0]
    except StopIteration as stop:
        return stop.value


def test_guidance_follows_equation_10_and_collapses_when_both_scales_agree():
    backbone, method = TinyBackbone(torch.float64), pair()
    bank = filled(backbone, method)
    z, t = torch.randn(1, 4, 8, 8, generator=generator("z"), dtype=torch.float64), torch.tensor([500])

    def predicted(prompt, style=0.0):
        bank.active = {}
        weights = {
            f"{site}.weight": layer.module.weight + style * (layer.up[0] @ layer.down[0])
            for site, layer in bank.layers["style"].items()
        }
        args = (z, t, backbone.embed([prompt]).states)
        with torch.no_grad():
            return torch.func.functional_call(backbone.network, weights, args).sample

    empty, content = predicted(""), predicted("a photo of a cat")
    style = predicted("a photo of a cat in inverted style", 1.0)
    expected = empty + 3.0 * (content - empty) + 1.7 * (style - content)
    torch.testing.assert_close(guided(bank, method, 1.7, z), expected, rtol=0, atol=1e-9)
    collapsed = empty + 3.0 * (style - empty)
    torch.testing.assert_close(guided(bank, method, 3.0, z), collapsed, rtol=0, atol=1e-9)


def test_blending_one_style_with_itself_adds_its_guidance(tmp_path: Path):
    backbone, plain = TinyBackbone(torch.float64), pair()
    bank = filled(backbone, plain)
    save_file(bank.state("style", 0), tmp_path / "style.safetensors")
    other = {"file": tmp_path / "style.safetensors", "style_words": "in inverted style", "strength": 1.2}
    blending = pair(blend=[other])
    z = torch.randn(1, 4, 8, 8, generator=generator("z"), dtype=torch.float64)
    twice = guided(bank, plain, 2.5, z)
    bank.close()
    both = Bank(backbone, blending.adapters(tiny_dataset()), [generator(1)])
    both.load("style", 0, bank.state("style", 0))
    torch.testing.assert_close(guided(both, blending, 1.3, z), twice, rtol=0, atol=1e-6)
    only = guided(both, blending, 0.0, z)  # a blend of one is that style alone
    both.close()
    again = bank_of(backbone, plain)
    again.load("style", 0, bank.state("style", 0))
    torch.testing.assert_close(only, guided(again, plain, 1.2, z), rtol=0, atol=1e-6)
