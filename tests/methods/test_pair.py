"""Pair Customization: the invariants of the paper, and a replay of its update in plain torch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import TinyBackbone, picture, tiny_dataset
from torch.nn.functional import mse_loss

from bench.adapters.bank import Bank
from bench.adapters.low_rank import basis
from bench.contracts import BenchError, Example, Pair, Recipe, Text
from bench.sampling.sampler import Request, Sampler, Untouched, sample, shots
from bench.seeding import generator
from bench.training.latents import Latents
from bench.training.trainer import Job, train
from methods.pair import PairCustomization, content_names

RECIPE = Recipe(steps=5, lr=1e-2, weight_decay=1e-4, flip=True)
SAMPLER = Sampler(steps=5, cfg=3.0)


def pair(**changes):
    return PairCustomization(**{"recipe": RECIPE, "rank": 4, "content_steps": 2, **changes})


def several(count):
    """A dataset of some pairs, whose captions end in a, b, c."""

    def half(image, i):
        return Example(image, f"a photo of a dog {'abc'[i]}", "dog")

    return tiny_dataset(pairs=tuple(Pair(half(picture(i), i), half(255 - picture(i), i)) for i in range(count)))


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


@pytest.mark.parametrize("pairs, batch", [(1, 1), (3, 1), (2, 3)])
def test_the_published_update_replayed_without_bank_or_trainer(pairs, batch):
    """Two AdamW steps per iteration, shared noise, content first; the style pass sees the updated content adapters.

    Each row of a batch goes through the network alone, with the content adapter of its own pair; one that no row uses
    is not stepped.
    """
    recipe, data = replace(RECIPE, batch_size=batch), several(pairs)
    backbone, method = TinyBackbone(torch.float64), pair(recipe=recipe)
    bank = Bank(backbone, method.adapters(data), [generator("adapters", 0)])
    steps = list(train(bank, [Job(0, method, Latents(data, backbone, recipe), recipe, seed=7)]))
    sites = backbone.sites("attention")
    down = {site: basis(module.in_features, 123846) for site, module in sites.items()}
    ups = {
        name: {s: torch.zeros(m.out_features, 4, dtype=torch.float64, requires_grad=True) for s, m in sites.items()}
        for name in (*range(pairs), "style")
    }
    optimizers = {
        name: torch.optim.AdamW(rows.values(), lr=1e-2, weight_decay=1e-4, eps=1e-8) for name, rows in ups.items()
    }

    def error(z, eps, t, prompt, **on):
        weights = {}
        for site, module in sites.items():
            delta = sum((up[site] @ down[site][first : first + 4] for first, up in on.values()), 0 * module.weight)
            weights[f"{site}.weight"] = module.weight + delta
        args = (latents.noisy(z[None], eps[None], t[None]), t[None], backbone.embed([prompt]).states)
        return mse_loss(torch.func.functional_call(backbone.network, weights, args).sample, eps[None])

    def step(loss, *names):
        for name in names:
            optimizers[name].zero_grad()
        loss.backward()
        for name in names:
            optimizers[name].step()
        return loss.item()

    latents, seen = Latents(data, backbone, recipe), set()
    for k in range(recipe.steps):
        rng = generator("train", 7, k)
        (content, style), examples = latents.draw(("content", "style"), rng)
        eps, t = latents.noise(content, rng)
        own = [ord(example.caption[-1]) - ord("a") for example in examples]
        seen |= set(own)
        rows = list(zip(content, style, eps, t, own, strict=True))
        plain = [error(c, e, t, f"a photo of a sbu dog {'abc'[i]}", c=(0, ups[i])) for c, _, e, t, i in rows]
        losses = [step(sum(plain) / batch, *set(own))]
        if k >= 2:
            fixed = {i: {site: up.detach() for site, up in ups[i].items()} for i in own}
            both = [
                error(
                    s, e, t, f"a photo of a sbu dog {'abc'[i]} in inverted style", c=(0, fixed[i]), s=(4, ups["style"])
                )
                for _, s, e, t, i in rows
            ]
            losses.append(step(sum(both) / batch, "style"))
        assert steps[k].losses == pytest.approx(losses, abs=1e-9)
    assert len(seen) >= min(pairs, 2)
    for name, rows in ups.items():
        adapter = name if name == "style" else content_names(data)[name]
        for site, up in rows.items():
            torch.testing.assert_close(bank.layers[adapter][site].up[0].detach(), up.detach(), rtol=0, atol=1e-9)


def test_a_pair_that_is_not_drawn_leaves_its_content_adapter_alone():
    backbone, method, data = TinyBackbone(), pair(), several(3)
    bank = Bank(backbone, method.adapters(data), [generator("adapters", 0)])
    latents, drawn, draw = Latents(data, backbone, RECIPE), [], Latents.draw
    latents.draw = lambda roles, rng: drawn.append(draw(latents, roles, rng)) or drawn[-1]
    rows = {name: bank.row(name, 0).clone() for name in content_names(data)}
    for _ in train(bank, [Job(0, method, latents, RECIPE, seed=7)]):
        for i, name in enumerate(content_names(data)):
            moved = not torch.equal(bank.row(name, 0), rows[name])
            assert moved == (drawn[-1][1][0] is data.pairs[i].content)
            rows[name] = bank.row(name, 0).clone()


@pytest.mark.parametrize("pairs", [1, 3])
def test_any_number_of_pairs_needs_the_rows_of_two_adapters(pairs):
    """r_c + r_s <= n with n = 16, the narrowest layer; all content adapters are orthogonal to the one style adapter."""
    backbone, data = TinyBackbone(torch.float64), several(pairs)
    bank = Bank(backbone, pair(rank=8).adapters(data), [generator("adapters", 0)])
    assert set(bank.specs) == {*content_names(data), "style"} and len(content_names(data)) == pairs
    for name in content_names(data):
        for site, layer in bank.layers[name].items():
            assert (layer.down[0] @ bank.layers["style"][site].down[0].T).abs().max() < 1e-12
    bank.close()
    with pytest.raises(BenchError, match="need 18 rows in all, but a layer has only 16 inputs"):
        Bank(backbone, pair(rank=9).adapters(data), [generator("adapters", 0)])


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


@pytest.mark.parametrize("others", [0, 1, 3])
def test_each_further_style_is_one_more_row_of_the_one_forward_pass(others):
    blending = pair(blend=[{"file": "unread", "style_words": f"in manner {i}", "strength": 1.0} for i in range(others)])
    texts = {role: Text(torch.zeros(2, 6, 16)) for role in blending.prompts("a photo of a cat", tiny_dataset())}
    coroutine = blending.guide(torch.zeros(2, 4, 8, 8), torch.tensor([500, 500]), texts, 3.0, 1.0)
    ask = next(coroutine)
    assert len(ask.z) == len(ask.t) == len(ask.text) == 2 * (3 + others)
    on = torch.stack(list(ask.adapters.values()))
    assert torch.equal(on, torch.eye(3 + others)[2:].repeat_interleave(2, 1))  # adapter i in the rows of style i alone
    with pytest.raises(StopIteration):
        coroutine.send(torch.zeros(len(ask.z), 4, 8, 8))


def asks_of(method, k):
    """What one step asks, each with the loss that it leads to when the answer is zero."""
    data = Latents(tiny_dataset(), TinyBackbone(torch.float64), RECIPE)
    step, made = method.step(data, k, generator("step", k)), []
    said = next(step, None)
    while said is not None:
        ask = said
        loss = step.send(torch.zeros_like(ask.z))
        made.append((ask, loss.value))
        said = next(step, None)
    return made


def test_without_content_adapter_each_step_is_the_style_half_alone():
    alone = pair(content_adapter=False, content_steps=0)
    assert set(alone.adapters(tiny_dataset())) == {"style"}
    ((ask, loss),) = asks_of(alone, 0)
    (_, (whole, same)) = asks_of(pair(content_steps=0), 0)
    assert torch.equal(ask.z, whole.z) and torch.equal(ask.t, whole.t) and loss == same
    assert ask.adapters == {"style": 1.0} and set(whole.adapters) == {"style", "content"}
