"""Concept Sliders: the invariants of the paper, and replays of both its updates in plain torch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import TinyBackbone, tiny_dataset
from torch.nn.functional import mse_loss

from bench.adapters.bank import Bank
from bench.backbones.sites import sites
from bench.contracts import BenchError, Loss, Pair, Recipe
from bench.sampling.sampler import Request, Sampler, Untouched, sample, shots
from bench.seeding import generator
from bench.training.latents import Latents
from bench.training.trainer import Job, train
from methods.sliders import TextualSlider, VisualSlider

RECIPE = Recipe(steps=5, lr=1e-2, weight_decay=1e-2)
SAMPLER = Sampler(steps=4, cfg=3.0)
AGE = {"target": "{noun}", "positive": "{noun}, very old", "negative": "{noun}, very young"}


def visual(**changes):
    return VisualSlider(**{"recipe": RECIPE, "start_t": 1000, **changes})


def textual(*entries, **changes):
    return TextualSlider(**{"recipe": RECIPE, "entries": entries or (AGE,), "rollout_steps": 6, **changes})


def bank_of(backbone, method, filled=False):
    bank = Bank(backbone, method.adapters(tiny_dataset()), [generator("adapters", 0)])
    if filled:
        for theta in bank.theta.values():
            theta.normal_(generator=generator("fill")).mul_(0.2)
    return bank


# --- where the slider sits -------------------------------------------------------------------------------------------

FILTERS = {  # training_method -> whether a parent module of this name is kept, and which of its children are not
    "noxattn": (lambda name: "attn2" not in name and "time_embed" not in name, None),
    "innoxattn": (lambda name: "attn2" not in name, None),
    "selfattn": (lambda name: "attn1" in name, None),
    "xattn": (lambda name: "attn2" in name, None),
    "xattn-strict": (lambda name: "attn2" in name, "out"),
    "full": (lambda name: True, None),
}


def by_class(network, kept, left_out):
    """A second implementation, by diffusers' classes instead of names: methods.md section 3, parameters trained."""
    parents = ("Attention", "ResnetBlock2D", "Downsample2D", "Upsample2D", "DownBlock2D", "UpBlock2D")
    return {
        f"{outer}.{inner}"
        for outer, parent in network.named_modules()
        if type(parent).__name__ in parents and kept(outer)
        for inner, layer in parent.named_modules()
        if type(layer) in (torch.nn.Linear, torch.nn.Conv2d) and not (left_out and left_out in inner)
    }


def small_unet():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(
            block_out_channels=(16, 32, 32), layers_per_block=2, norm_num_groups=8, attention_head_dim=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=2, cross_attention_dim=16, use_linear_projection=True,
        )  # fmt: skip


@pytest.mark.parametrize("where", FILTERS)
def test_layer_filters_are_those_of_the_authors(where):
    for network in (small_unet(), TinyBackbone().network):
        found = sites(network, where)
        assert set(found) == by_class(network, *FILTERS[where]) and found
        assert list(found) == [name for name, _ in network.named_modules() if name in found]
        assert not [name for name in found if ".ff." in name or "proj_in" in name or "proj_out" in name]


def test_noxattn_counted_by_hand():
    """8 resnets of 3 layers, 5 shortcuts, 2 samplers, 4 self-attentions of 4 layers."""
    found = TinyBackbone().sites("noxattn")
    assert len(found) == 8 * 3 + 5 + 2 + 4 * 4
    assert sum(name.endswith("time_emb_proj") for name in found) == 8
    assert sum(name.endswith("conv_shortcut") for name in found) == 5


@pytest.mark.parametrize(("method", "square"), [(visual(), 1), (textual(), 3)])
def test_each_form_starts_as_its_own_official_file(method, square):
    """imagesliders/lora.py draws within sqrt(1 / inputs) (a = sqrt(5)), textsliders/lora.py within sqrt(3 / inputs)."""
    layers = bank_of(TinyBackbone(), method).layers["style"].values()
    largest = [(layer.down.abs().max() * layer.module.weight[0].numel() ** 0.5).item() for layer in layers]
    assert 0.95 * square**0.5 < max(largest) <= square**0.5


# --- drawing with it -------------------------------------------------------------------------------------------------


def drawn(bank, method, strength):
    request = Request(0, method, tiny_dataset(), shots(tiny_dataset()), strength)
    return np.concatenate([chunk[0] for chunk in sample(bank, [request], SAMPLER)])


def test_slider_zero_is_the_backbone_bit_for_bit_and_both_signs_are_not():
    bank = bank_of(TinyBackbone(), visual(), filled=True)
    base = drawn(bank, Untouched(), 0.0)
    for method in (visual(), textual(start_t=1000)):
        assert np.array_equal(drawn(bank, method, 0.0), base)
        more, less = drawn(bank, method, 2.0), drawn(bank, method, -2.0)
        assert not np.array_equal(more, base) and not np.array_equal(less, base) and not np.array_equal(more, less)


def test_before_its_start_the_slider_is_off():
    bank = bank_of(TinyBackbone(), visual(), filled=True)
    base, early = drawn(bank, Untouched(), 0.0), drawn(bank, visual(), 2.0)
    assert np.array_equal(drawn(bank, visual(start_t=-1), 2.0), base)  # the four timesteps are 750, 500, 250, 0
    late = drawn(bank, visual(start_t=500), 2.0)
    assert not np.array_equal(late, base) and not np.array_equal(late, early)
    assert np.abs(late.astype(int) - base).mean() < np.abs(early.astype(int) - base).mean()


def guided(bank, method, strength, z, cfg=3.0):
    texts = {role: bank.backbone.embed([p]) for role, p in method.prompts("a photo of a cat", tiny_dataset()).items()}
    coroutine, answer = method.guide(z, torch.tensor([500]), texts, cfg, strength), None
    try:
        while True:
            answer = bank.answer([(0, coroutine.send(answer))])[0]
    except StopIteration as stop:
        return stop.value


def latent():
    return torch.randn(1, 4, 8, 8, generator=generator("z"), dtype=torch.float64)


def test_the_slider_is_on_in_the_conditional_and_the_unconditional_row():
    backbone = TinyBackbone(torch.float64)
    bank = bank_of(backbone, visual(), filled=True)
    found = guided(bank, visual(), -1.5, latent())
    factors = {site: (layer.down[0].detach(), layer.up[0].detach()) for site, layer in bank.layers["style"].items()}
    bank.close()

    def predicted(prompt):
        return with_slider(backbone, factors, -1.5, latent(), torch.tensor([500]), [prompt])

    empty, content = predicted(""), predicted("a photo of a cat")
    torch.testing.assert_close(found, empty + 3.0 * (content - empty), rtol=0, atol=1e-9)


def test_composing_one_slider_with_itself_adds_the_values(tmp_path: Path):
    backbone = TinyBackbone(torch.float64)
    bank = bank_of(backbone, visual(), filled=True)
    save_file(bank.state("style", 0), tmp_path / "other.safetensors")
    single, whole = guided(bank, visual(), -0.7, latent()), guided(bank, visual(), 1.3, latent())
    state = bank.state("style", 0)
    bank.close()
    composing = visual(compose=[{"file": tmp_path / "other.safetensors", "scale": -0.7}])
    both = bank_of(backbone, composing)
    both.load("style", 0, state)
    torch.testing.assert_close(guided(both, composing, 2.0, latent()), whole, rtol=0, atol=1e-6)
    only = guided(both, composing, 0.0, latent())  # a composition of one is that slider alone
    torch.testing.assert_close(only, single, rtol=0, atol=1e-6)
    assert (single - whole).abs().max() > 1e-3


# --- learning --------------------------------------------------------------------------------------------------------


def walked(bank, method, dataset, k=0):
    """The asks of one step, the loss, and the gradient that it leaves on the slider."""
    data = Latents(dataset, bank.backbone, RECIPE, resample=False)
    step, answer, asks = method.step(data, k, generator("train", 7, k)), None, []
    while not isinstance(said := step.send(answer), Loss):
        asks.append(said)
        answer = bank.answer([(0, said)])[0]
        assert answer.requires_grad == bool(said.trains)
    bank.zero_grad()
    said.value.backward()
    bank.settle()
    return asks, said.value.item(), bank.grad_row("style", 0).clone()


def test_the_visual_loss_is_symmetric_under_swapping_the_sides_and_the_sign():
    data = tiny_dataset()
    swapped = replace(data, pairs=tuple(Pair(pair.style, pair.content) for pair in data.pairs))
    bank = bank_of(TinyBackbone(torch.float64), visual(), filled=True)
    _, loss, grad = walked(bank, visual(scale=1.5), data)
    _, other_loss, other_grad = walked(bank, visual(scale=-1.5), swapped)
    assert other_loss == pytest.approx(loss, abs=1e-12)
    torch.testing.assert_close(other_grad, grad, rtol=0, atol=1e-12)
    assert walked(bank, visual(scale=1.5), swapped)[1] != pytest.approx(loss, abs=1e-6)


def test_the_two_sides_share_noise_and_differ_in_sign():
    bank = bank_of(TinyBackbone(torch.float64), visual())
    (ask,), _, _ = walked(bank, visual(scale=2.0), tiny_dataset())
    assert ask.t[0] == ask.t[1] and ask.adapters["style"].tolist() == [2.0, -2.0]
    (pair,) = tiny_dataset().pairs
    high, low = (bank.backbone.encode(torch.tensor(side.image)[None])[0] for side in (pair.style, pair.content))
    kept = bank.backbone.ddim.alphas_cumprod.double()[ask.t[0]]
    torch.testing.assert_close(ask.z[:1] - ask.z[1:], kept.sqrt() * (high - low), rtol=0, atol=1e-9)


def test_erase_mirrors_enhance():
    """Untrained, a slider predicts e_n for the target too: both losses are |eta (e+ - e-)|^2, gradients mirrored."""
    bank = bank_of(TinyBackbone(torch.float64), textual())
    _, loss, grad = walked(bank, textual(), tiny_dataset())
    _, erased, opposite = walked(bank, textual({**AGE, "action": "erase"}), tiny_dataset())
    assert erased == pytest.approx(loss, abs=1e-12) and loss > 1e-6
    torch.testing.assert_close(opposite, -grad, rtol=0, atol=1e-12)
    assert grad.abs().max() > 1e-6


def test_rollouts_have_the_slider_on_and_no_gradient_and_the_three_predictions_have_it_off():
    bank = bank_of(TinyBackbone(torch.float64), textual(), filled=True)
    counts = set()
    for k in range(6):
        *rollout, three, last = walked(bank, textual(), tiny_dataset(), k)[0]
        assert all(ask.adapters == {"style": 1.0} and not ask.trains and len(ask.z) == 2 for ask in rollout)
        assert not three.adapters and len(three.z) == 3
        assert last.trains == {"style"} and torch.equal(last.z, three.z[:1]) and not last.z.requires_grad
        assert last.t < rollout[-1].t[0]  # the network is told the noise level that the rollout has come to
        counts.add(len(rollout))
    assert counts <= set(range(1, 6)) and len(counts) > 2


def test_equal_prompts_are_predicted_once():
    bank = bank_of(TinyBackbone(torch.float64), textual(), filled=True)
    *rollout, two, last = walked(bank, textual({**AGE, "negative": "{noun}"}), tiny_dataset())[0]
    assert rollout and all(len(ask.z) == 1 for ask in rollout) and len(two.z) == 2 and len(last.z) == 1


def test_attributes_stand_before_the_prompts_as_the_paper_or_the_code_has_it():
    data, rng = tiny_dataset(), generator("prompts")
    summed = textual(attributes=("male", "female")).direction(data, rng)
    assert (summed.target, summed.neutral, summed.negative) == ("dog", "dog", "dog, very young")
    assert summed.plus == ("male dog, very old", "female dog, very old")
    assert summed.minus == ("male dog, very young", "female dog, very young")
    drawn = [textual(attributes=("male", "female"), preserve="random").direction(data, rng) for _ in range(20)]
    assert {way.target for way in drawn} == {"male dog", "female dog"}
    for way in drawn:
        sex = way.target.split()[0]
        assert way.neutral == f"{sex} dog" and way.negative == f"{sex} dog, very young"
        assert way.plus == (f"{sex} dog, very old",) and way.minus == (f"{sex} dog, very young",)
    styled = textual({"target": "{noun}", "positive": "{noun} {style_words}", "negative": "{noun}", "eta": 2.5})
    assert styled.direction(data, rng).plus == ("dog in inverted style",) and styled.direction(data, rng).eta == 2.5
    assert styled.lacks(data) is None and "style words" in styled.lacks(replace(data, style_words=None))
    assert textual().lacks(replace(data, style_words=None, pairs=())) is None


@pytest.mark.parametrize("entry", [{"target": "x", "positive": "y"}, {**AGE, "guidance": 4}, {**AGE, "action": "add"}])
def test_a_misspelt_entry_is_a_sentence_and_not_a_silent_default(entry):
    """The official *_GPT.yaml files say `guidance` for `guidance_scale` and train with 1 instead of 4."""
    with pytest.raises(BenchError, match=r"needs target, positive and negative.*\(enhance or erase\)"):
        textual(entry)


def test_unknown_ways_to_preserve_are_told():
    with pytest.raises(BenchError, match="type method.preserve=sum or random"):
        textual(preserve="mean")


# --- the published updates, replayed without bank or trainer ---------------------------------------------------------


def with_slider(backbone, factors, multiplier, z, t, prompts):
    """The backbone with W + multiplier * alpha / rank * up down, alpha 1, rank 4, in plain torch."""
    modules, weights = dict(backbone.network.named_modules()), {}
    for site, (down, up) in factors.items():
        delta = torch.einsum("or,r...->o...", up, down)
        weights[f"{site}.weight"] = modules[site].weight + multiplier / 4 * delta
    args = (z, t, backbone.embed(prompts).states)
    return torch.func.functional_call(backbone.network, weights, args).sample


def beginning(backbone, method):
    """The initial halves of every layer, as parameters of our own."""
    start = bank_of(backbone, method)
    start.close()
    return {
        site: [half[0].detach().clone().requires_grad_() for half in (layer.down, layer.up)]
        for site, layer in start.layers["style"].items()
    }


def assert_same_after(method, loss_of):
    """Train with bank and trainer, then with torch's AdamW on `loss_of(factors, k)`; same losses, same weights."""
    backbone = TinyBackbone(torch.float64)
    factors = beginning(backbone, method)
    bank = bank_of(backbone, method)
    steps = list(train(bank, [Job(0, method, Latents(tiny_dataset(), backbone, RECIPE), RECIPE, seed=7)]))
    bank.close()
    parameters = [half for halves in factors.values() for half in halves]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=1e-2)
    for k in range(RECIPE.steps):
        loss = loss_of(backbone, factors, k)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert steps[k].losses == pytest.approx([loss.item()], abs=1e-9)
    assert len(factors) == 47
    for site, (down, up) in factors.items():
        layer = bank.layers["style"][site]
        torch.testing.assert_close(layer.down[0].detach(), down.detach(), rtol=0, atol=1e-9)
        torch.testing.assert_close(layer.up[0].detach(), up.detach(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("stride, t_shift, scale", [(1, 0, 1.0), (20, 19, 2.0)])
def test_the_visual_update_replayed_without_bank_or_trainer(stride, t_shift, scale):
    """Two losses added before one step; the second case is the official code's timesteps."""

    def loss_of(backbone, factors, k):
        data, rng = Latents(tiny_dataset(), backbone, RECIPE), generator("train", 7, k)
        (low, high), _ = data.draw(("content", "style"), rng)
        eps, t = data.noise(low, rng)
        level = t // stride * stride
        kept = backbone.ddim.alphas_cumprod.double()[level]
        z_high, z_low = (kept.sqrt() * side + (1 - kept).sqrt() * eps for side in (high, low))
        told = level + t_shift
        above = mse_loss(with_slider(backbone, factors, scale, z_high, told, ["good"]), eps)
        return above + mse_loss(with_slider(backbone, factors, -scale, z_low, told, [""]), eps)

    assert_same_after(visual(stride=stride, t_shift=t_shift, scale=scale, positive="good"), loss_of)


def ddim_step(alphas, z, e, t, previous):
    """Song et al. 2021, eq. 12 with sigma 0, in the schedule's own float32."""
    x0 = (z - (1 - alphas[t]) ** 0.5 * e) / alphas[t] ** 0.5
    return alphas[previous] ** 0.5 * x0 + (1 - alphas[previous]) ** 0.5 * e


@pytest.mark.parametrize(
    "changes, action, t_shift, negative",
    [
        ({}, "enhance", 0, "dog, very young"),
        ({"attributes": ("male", "female")}, "erase", 0, "dog, very young"),
        ({"t_shift": 19}, "enhance", 19, "dog, very young"),
        ({}, "enhance", 0, "dog"),  # the opposite is the target itself, as for a style's words
    ],
)
def test_the_textual_update_replayed_without_bank_or_trainer(changes, action, t_shift, negative):
    """Rollout with the slider, three predictions without it, one loss; six sampler steps instead of fifty."""
    fronts = [f"{attribute} " for attribute in changes.get("attributes", ())] or [""]
    sign = {"enhance": 1, "erase": -1}[action]

    def loss_of(backbone, factors, k):
        rng = generator("train", 7, k)
        torch.randint(1, (), generator=rng)  # which entry
        last = int(torch.randint(1, 6, (), generator=rng))
        z = torch.randn(1, 4, 8, 8, generator=rng).double()
        timesteps = [996 - 166 * (i + 1) for i in range(6)]  # 830, 664, ..., 0
        fixed = {site: [half.detach() for half in halves] for site, halves in factors.items()}
        for t, following in zip(timesteps[:last], timesteps[1:], strict=False):
            away = with_slider(backbone, fixed, 1, z, torch.tensor([t]), [negative])
            plain = with_slider(backbone, fixed, 1, z, torch.tensor([t]), ["dog"])
            z = ddim_step(backbone.ddim.alphas_cumprod, z, away + 3.0 * (plain - away), t, following)
        told = torch.tensor([timesteps[last] + t_shift])

        def off(prompt):
            return with_slider(backbone, {}, 0, z, told, [prompt])

        aim = off("dog")
        for front in fronts:
            aim = aim + sign * 4.0 * (off(f"{front}dog, very old") - off(front + negative))
        return mse_loss(with_slider(backbone, factors, 1, z, told, ["dog"]), aim.detach())

    assert_same_after(textual({**AGE, "action": action, "negative": negative}, **changes), loss_of)
