"""StyleForge: replays of the dual binding in plain torch, who gets which token, and what it asks for."""

from dataclasses import replace

import pytest
import torch
from tiny import PlainTuning, TinyBackbone, picture, tiny_dataset
from torch.nn.functional import mse_loss

from bench.adapters.bank import Bank
from bench.contracts import AdapterSpec, Example, FullSpec, Recipe
from bench.seeding import generator
from bench.training.latents import Latents
from bench.training.trainer import Job, train
from methods.styleforge import MultiStyleForge, StyleForge

RECIPE = Recipe(steps=5, lr=1e-2, weight_decay=1e-2, batch_size=2)
TOKENS = {StyleForge: {True: "zwx", False: "zwx"}, MultiStyleForge: {True: "zwx", False: "sbu"}}


def dataset(**changes):
    references = tuple(Example(picture(50 + i), "a photo of a dog", "dog", person=i % 2 == 0) for i in range(4))
    auxiliary = tuple(Example(picture(60 + i), "a photo of a cat", "cat") for i in range(3))
    return tiny_dataset(**{"pairs": (), "references": references, "auxiliary": auxiliary, **changes})


def trained(method):
    backbone = TinyBackbone(torch.float64)
    bank = Bank(backbone, method.adapters(dataset()), [generator("adapters", 0)])
    steps = list(train(bank, [Job(0, method, Latents(dataset(), backbone, RECIPE), RECIPE, seed=7)]))
    return bank, steps


class PlainAdapter:
    """Low-rank factors merged into the weights, in the hands of torch's AdamW."""

    def __init__(self, backbone, method):
        self.backbone = backbone
        bank = Bank(backbone, method.adapters(dataset()), [generator("adapters", 0)])
        bank.close()
        self.layers = bank.layers["style"]
        self.factors = {
            site: [layer.down[0].detach().clone().requires_grad_(), layer.up[0].detach().clone().requires_grad_()]
            for site, layer in self.layers.items()
        }
        parameters = [factor for pair in self.factors.values() for factor in pair]
        self.optimizer = torch.optim.AdamW(parameters, lr=RECIPE.lr, weight_decay=RECIPE.weight_decay)

    def predict(self, z, t, prompts):
        weights = {
            f"{site}.weight": self.layers[site].module.weight + up @ down for site, (down, up) in self.factors.items()
        }
        return torch.func.functional_call(self.backbone.network, weights, (z, t, self.backbone.words(prompts))).sample

    def descend(self, loss):
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def replay(plain, weight, tokens):
    """L = MSE(references under [V] style) + lambda MSE(auxiliary under style), separate noise, two forward passes."""
    data = Latents(dataset(), plain.backbone, RECIPE)
    for k in range(RECIPE.steps):
        rng = generator("train", 7, k)
        (z,), examples = data.draw(("references",), rng)
        eps, t = data.noise(z, rng)
        prompts = [f"a photo of {tokens[example.person]} style" for example in examples]
        loss = mse_loss(plain.predict(data.noisy(z, eps, t), t, prompts), eps)
        if weight:
            (aux,), _ = data.draw(("auxiliary",), rng)
            eps, t = data.noise(aux, rng)
            loss = loss + weight * mse_loss(plain.predict(data.noisy(aux, eps, t), t, ["a photo of style"] * 2), eps)
        plain.descend(loss)
        yield loss.item()


@pytest.mark.parametrize("kind", [StyleForge, MultiStyleForge])
@pytest.mark.parametrize("weight,text_encoder", [(0.0, True), (1.0, True), (0.3, False)])
def test_the_published_update_replayed_in_plain_torch(kind, weight, text_encoder):
    bank, steps = trained(kind(RECIPE, text_encoder=text_encoder, auxiliary_weight=weight))
    plain = PlainTuning(TinyBackbone(torch.float64), RECIPE, text_encoder)
    losses = list(replay(plain, weight, TOKENS[kind]))
    assert [step.losses[0] for step in steps] == pytest.approx(losses, abs=1e-9)
    expected = plain.state()
    assert set(expected) == set(bank.full["style"].leaves)
    for key, leaf in bank.full["style"].leaves.items():
        torch.testing.assert_close(leaf.detach(), expected[key], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", [StyleForge, MultiStyleForge])
def test_the_adapter_form_replayed_in_plain_torch(kind):
    method = kind(RECIPE, tune="lora", text_encoder=False)
    bank, steps = trained(method)
    plain = PlainAdapter(TinyBackbone(torch.float64), method)
    losses = list(replay(plain, 1.0, TOKENS[kind]))
    assert [step.losses[0] for step in steps] == pytest.approx(losses, abs=1e-9)
    for site, (down, up) in plain.factors.items():
        torch.testing.assert_close(bank.layers["style"][site].down[0].detach(), down.detach(), rtol=0, atol=1e-9)
        torch.testing.assert_close(bank.layers["style"][site].up[0].detach(), up.detach(), rtol=0, atol=1e-9)


def test_the_prefix_stands_before_the_prompt():
    single, multi = StyleForge(RECIPE), MultiStyleForge(RECIPE)
    assert single.prompts("a red cat", dataset())["style"] == "a photo of zwx style, a red cat"
    assert multi.prompts("a red cat", dataset())["style"] == "a photo of zwx style, sbu style, a red cat"
    assert single.prompts("a red cat", dataset())["content"] == "a red cat"
    assert single.rare_tokens == ("zwx",) and multi.rare_tokens == ("zwx", "sbu")


def test_what_is_tuned():
    assert StyleForge(RECIPE).adapters(dataset()) == {"style": FullSpec(text_encoder=True)}
    adapter = MultiStyleForge(RECIPE, tune="lora", text_encoder=False, rank=8)
    assert adapter.adapters(dataset()) == {"style": AdapterSpec(8, "attention")}


def test_what_it_lacks():
    assert StyleForge(RECIPE).lacks(dataset()) is None and MultiStyleForge(RECIPE).lacks(dataset()) is None
    assert StyleForge(RECIPE).lacks(dataset(auxiliary=())) == "auxiliary"
    assert MultiStyleForge(RECIPE).lacks(dataset(references=())) == "references"
    only_persons = tuple(replace(example, person=True) for example in dataset().references)
    assert StyleForge(RECIPE).lacks(dataset(references=only_persons)) is None
    assert MultiStyleForge(RECIPE).lacks(dataset(references=only_persons)) == "references with and without persons"


@pytest.mark.parametrize("kind", [StyleForge, MultiStyleForge])
def test_guidance_has_the_tuned_weights_in_both_rows(kind):
    backbone, method = TinyBackbone(torch.float64), kind(RECIPE)
    bank = Bank(backbone, method.adapters(dataset()), [None])
    noise = torch.randn(bank.row("style", 0).shape, generator=generator("w"), dtype=torch.float64)
    bank.row("style", 0).add_(0.02 * noise)
    plain = PlainTuning(backbone, RECIPE, True)
    with torch.no_grad():
        for key, leaf in bank.full["style"].leaves.items():
            mine = plain.reader if key == "text_encoder.weight" else plain.weights[key.removeprefix("unet.")]
            mine.add_(0.6 * (leaf - mine))
    z, t = torch.randn(1, 4, 8, 8, generator=generator("z"), dtype=torch.float64), torch.tensor([500])
    prompts = method.prompts("a cat", dataset())
    texts = {role: backbone.embed([prompt]) for role, prompt in prompts.items()}
    coroutine = method.guide(z, t, texts, 3.0, 0.6)
    with torch.no_grad(), pytest.raises(StopIteration) as stop:
        coroutine.send(bank.answer([(0, next(coroutine))])[0])
    with torch.no_grad():
        empty, styled = plain.predict(z, t, [""]), plain.predict(z, t, [prompts["style"]])
    torch.testing.assert_close(stop.value.value, empty + 3.0 * (styled - empty), rtol=0, atol=1e-9)
