"""DreamBooth: a replay of its update with prior preservation, and what it asks for."""

import pytest
import torch
from tiny import PlainTuning, TinyBackbone, picture, tiny_dataset
from torch.nn.functional import mse_loss

from bench.adapters.bank import Bank
from bench.contracts import BenchError, Example, FullSpec, Recipe
from bench.seeding import generator
from bench.training.latents import Latents
from bench.training.trainer import Job, train
from methods.dreambooth import DreamBooth
from methods.zero_shot import ZeroShot

RECIPE = Recipe(steps=5, lr=1e-2, weight_decay=1e-2, clip_norm=1.0)
PRIOR = [Example(picture(40 + i), "a photo of a dog", "dog") for i in range(3)]


def trained(method, dataset, prior=PRIOR):
    backbone = TinyBackbone(torch.float64)
    bank = Bank(backbone, method.adapters(dataset), [generator("adapters", 0)])
    data = Latents(dataset, backbone, RECIPE, prior)
    return bank, list(train(bank, [Job(0, method, data, RECIPE, seed=7)]))


def replayed(weight, dataset, role, prompt, prior=PRIOR):
    """The published loss in plain torch: two forward passes, weights merged, torch's AdamW on both factors."""
    backbone = TinyBackbone(torch.float64)
    start = Bank(backbone, DreamBooth(RECIPE).adapters(dataset), [generator("adapters", 0)])
    start.close()
    factors = {
        site: [layer.down[0].detach().clone().requires_grad_(), layer.up[0].detach().clone().requires_grad_()]
        for site, layer in start.layers["style"].items()
    }
    parameters = [factor for pair in factors.values() for factor in pair]
    optimizer, data = (
        torch.optim.AdamW(parameters, lr=1e-2, weight_decay=1e-2),
        Latents(dataset, backbone, RECIPE, prior),
    )

    def loss_on(z, eps, t, text):
        weights = {
            f"{site}.weight": layer.module.weight + factors[site][1] @ factors[site][0]
            for site, layer in start.layers["style"].items()
        }
        args = (data.noisy(z, eps, t), t, backbone.embed([text]).states)
        return mse_loss(torch.func.functional_call(backbone.network, weights, args).sample, eps)

    for k in range(RECIPE.steps):
        rng = generator("train", 7, k)
        (z,), _ = data.draw((role,), rng)
        eps, t = data.noise(z, rng)
        loss = loss_on(z, eps, t, prompt)
        if weight:
            (own,), _ = data.draw(("prior",), rng)
            loss = loss + weight * loss_on(own, *data.noise(own, rng), "a photo of a dog")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return factors


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.3])
def test_the_published_update_replayed_without_bank_or_trainer(weight):
    subject = tiny_dataset(style_words=None, pairs=())
    bank, _ = trained(DreamBooth(RECIPE, prior_weight=weight), subject)
    for site, (down, up) in replayed(weight, subject, "references", "a photo of a sks dog").items():
        layer = bank.layers["style"][site]
        torch.testing.assert_close(layer.down[0].detach(), down.detach(), rtol=0, atol=1e-9)
        torch.testing.assert_close(layer.up[0].detach(), up.detach(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("weight,text_encoder", [(0.0, False), (1.0, True), (0.3, False)])
def test_full_fine_tuning_replayed_in_plain_torch(weight, text_encoder):
    """All weights by torch's AdamW; prior weight 0 is the loss of the instances alone, and needs no class image."""
    subject, prior = tiny_dataset(style_words=None, pairs=()), PRIOR if weight else []
    method = DreamBooth(RECIPE, tune="full", text_encoder=text_encoder, prior_weight=weight)
    bank, steps = trained(method, subject, prior)
    backbone = TinyBackbone(torch.float64)
    plain, data = PlainTuning(backbone, RECIPE, text_encoder), Latents(subject, backbone, RECIPE, prior)
    for k in range(RECIPE.steps):
        rng = generator("train", 7, k)
        (z,), _ = data.draw(("references",), rng)
        eps, t = data.noise(z, rng)
        loss = mse_loss(plain.predict(data.noisy(z, eps, t), t, ["a photo of a sks dog"]), eps)
        if weight:
            (own,), _ = data.draw(("prior",), rng)
            eps, t = data.noise(own, rng)
            loss = loss + weight * mse_loss(plain.predict(data.noisy(own, eps, t), t, ["a photo of a dog"]), eps)
        plain.descend(loss)
        assert steps[k].losses == pytest.approx([loss.item()], abs=1e-9)
    expected = plain.state()
    assert set(expected) == set(bank.full["style"].leaves)
    for key, leaf in bank.full["style"].leaves.items():
        torch.testing.assert_close(leaf.detach(), expected[key], rtol=0, atol=1e-9)


def test_what_is_tuned_is_asked_for_in_words():
    assert DreamBooth(RECIPE, tune="full", text_encoder=True).adapters(None) == {"style": FullSpec(True)}
    with pytest.raises(BenchError, match="tune='lroa' was requested; type method.tune=lora or method.tune=full"):
        DreamBooth(RECIPE, tune="lroa").adapters(None)
    with pytest.raises(BenchError, match="type method.text_encoder=false or method.tune=full"):
        DreamBooth(RECIPE, text_encoder=True).adapters(None)


def test_on_a_style_it_learns_the_style_image_under_the_rare_token():
    bank, _ = trained(DreamBooth(RECIPE), tiny_dataset())
    for site, (down, _) in replayed(1.0, tiny_dataset(), "style", "a photo of a dog in sks style").items():
        torch.testing.assert_close(bank.layers["style"][site].down[0].detach(), down.detach(), rtol=0, atol=1e-9)


def test_what_it_lacks_and_what_it_asks_the_backbone_for():
    assert DreamBooth(RECIPE).lacks(tiny_dataset()) is None
    assert DreamBooth(RECIPE).lacks(tiny_dataset(pairs=(), references=())) == "references or pairs"
    assert DreamBooth(RECIPE, class_images=9).prior(tiny_dataset()) == ("a photo of a dog", 9)
    assert DreamBooth(RECIPE, prior_weight=0).prior(tiny_dataset()) is None


def test_zero_shot_is_the_backbone_asked_for_the_style():
    texts = {"negative": "n", "content": "c", "style": "s"}
    assert ZeroShot().prompts("a cat", tiny_dataset())["style"] == "a cat in inverted style"
    backbone = TinyBackbone()
    texts = {role: backbone.embed([word]) for role, word in texts.items()}
    z, t = torch.zeros(1, 4, 8, 8), torch.tensor([10])
    ask = next(ZeroShot().guide(z, t, texts, 3.0, 1.0))
    assert torch.equal(ask.text.states, torch.cat([texts["negative"].states, texts["style"].states]))
    assert not ask.adapters
