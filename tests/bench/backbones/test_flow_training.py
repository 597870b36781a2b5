"""Training on flow backbones: the update of diffusers' LoRA scripts restated, and packs against single cells."""

from dataclasses import replace
from importlib import import_module

import pytest
import torch
from random_flow_pipelines import FAMILIES, LENGTH, PIXELS
from tiny import picture, tiny_dataset

from bench.adapters.bank import Bank
from bench.contracts import Example, Pair, Recipe
from bench.seeding import generator
from bench.training.latents import Latents
from bench.training.trainer import Job, train
from methods.dreambooth import DreamBooth
from methods.pair import PairCustomization
from methods.sliders import TextualSlider, VisualSlider
from methods.styleforge import StyleForge

RECIPE = Recipe(steps=3, lr=1e-2, weight_decay=1e-2, clip_norm=1.0, flip=False)
RANK = 2


def small(seed):
    return picture(seed)[:, :PIXELS, :PIXELS]


def dataset():
    content, style = Example(small(0), "a photo of a dog", "dog"), Example(small(1), "a photo of a dog", "dog")
    references = [Example(small(2 + i), "a photo of a dog", "dog") for i in range(2)]
    return tiny_dataset(
        style_words="in ink style", pairs=(Pair(content, style),), references=references,
        auxiliary=(Example(small(7), "a photo of a cat", "cat"),),
    )  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    made = tmp_path_factory.mktemp(family)
    FAMILIES[family][0]().save_pretrained(made)
    return made


def load(family, folder):
    module, name = FAMILIES[family][1].rsplit(".", 1)
    options = {"dtype": "float64", "device": "cpu", "text_length": LENGTH}
    options |= {"time_sampling": "logit_normal"} if family == "sd35" else {}
    return getattr(import_module(module), name)(str(folder), PIXELS, **options)


def factors(bank, name, cell=0):
    """`Bank.state` in the precision of training."""
    made = {}
    for site, layer in bank.layers[name].items():
        made[f"transformer.{site}.lora_A.weight"] = layer.down[cell].detach().clone()
        made[f"transformer.{site}.lora_B.weight"] = (layer.up[cell] * layer.scale).detach().clone()
    assert {key: value.float() for key, value in made.items()}.keys() == bank.state(name, cell).keys()
    return made


def trained(backbone, methods):
    """The adapters of each method, one cell each, trained together."""
    asked = methods[0].adapters(dataset())
    bank = Bank(backbone, asked, [generator("adapters", cell) for cell in range(len(methods))])
    jobs = [
        Job(cell, method, Latents(dataset(), backbone, method.recipe), method.recipe, seed=cell)
        for cell, method in enumerate(methods)
    ]
    steps = list(train(bank, jobs))
    assert not [step.error for step in steps if step.error]
    states = [{name: factors(bank, name, cell) for name in asked} for cell in range(len(methods))]
    bank.close()
    return states


def prediction(family, network, backbone, z, t, text, pipe):
    """The call of the script: packing by the pipeline's own functions, timesteps over 1000 for FLUX."""
    n, c, h, w = z.shape
    if family == "sd35":
        return network(z, text.states, text.extras["pooled"], t, return_dict=False)[0]
    if family == "z_image":  # train_dreambooth_lora_z_image.py: time is 1 - t, and the answer is negated
        read = [states[mask] for states, mask in zip(text.states, text.extras["mask"].bool(), strict=True)]
        out = network(list(z.unsqueeze(2).unbind(0)), (1000 - t.to(z)) / 1000, read, return_dict=False)[0]
        return -torch.stack(out).squeeze(2)
    words = torch.zeros(text.states.shape[1], 3).to(z)
    if family in ("flux1", "mini_flow"):
        places = pipe._prepare_latent_image_ids(n, h // 2, w // 2, z.device, z.dtype)
        out = network(
            pipe._pack_latents(z, n, c, h, w), text.states, text.extras["pooled"], t / 1000, places, words,
            torch.full((n,), 1.0) if network.config.guidance_embeds else None, return_dict=False,
        )[0]  # fmt: skip
        return pipe._unpack_latents(out, h * pipe.vae_scale_factor, w * pipe.vae_scale_factor, pipe.vae_scale_factor)
    places = pipe._prepare_latent_ids(z)
    out = network(
        pipe._pack_latents(z), text.states, t / 1000, places, pipe._prepare_text_ids(text.states), None,
        return_dict=False,
    )[0]  # fmt: skip
    return pipe._unpack_latents_with_ids(out, places, h, w)


def test_dreambooth_makes_the_update_of_the_script(family, folder):
    """DreamBooth LoRA of diffusers (train_dreambooth_lora_{sd3,flux,flux2_klein}.py), restated with PEFT's layers.

    u from the density of the weighting scheme, t and sigma from the scheduler's table, (1 - sigma) z + sigma eps,
    weights of compute_loss_weighting_for_sd3, target eps - z, AdamW, clipping of the norm.
    """
    from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
    from peft import LoraConfig

    backbone = load(family, folder)
    method = DreamBooth(RECIPE, rank=RANK, prior_weight=0, images="references")
    (state,) = trained(backbone, [method])
    start = Bank(backbone, method.adapters(dataset()), [generator("adapters", 0)])
    initial = factors(start, "style")
    start.close()

    pipe, network = backbone.pipeline(), backbone.network
    sites = list(backbone.sites("attention"))
    network.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=sites), adapter_name="replay")
    leaves = {}
    for key, value in initial.items():
        site, half = key.removeprefix("transformer.").rsplit(".lora_", 1)
        module = network.get_submodule(site)
        leaves[key] = (module.lora_A if half[0] == "A" else module.lora_B)["replay"].weight
        leaves[key].data = value.clone()
    parameters = list(leaves.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=1e-2)
    table, scheme = pipe.scheduler, "logit_normal" if family == "sd35" else "none"
    data = Latents(dataset(), backbone, RECIPE)
    for k in range(RECIPE.steps):
        rng = generator("train", 0, k)
        (z,), _ = data.draw(("references",), rng)
        eps = torch.randn(z.shape, generator=rng).to(z)
        u = compute_density_for_timestep_sampling(scheme, 1, 0.0, 1.0, 1.29, generator=rng)
        place = (u * 1000).long()
        t = table.timesteps[place]
        sigma = t.to(z).view(-1, 1, 1, 1) / 1000  # the script's table has it rounded to float32
        torch.testing.assert_close(sigma.flatten(), table.sigmas[place].to(z), rtol=2e-7, atol=0)
        with torch.no_grad():
            text = backbone.embed(["a photo of a dog in sks style"])
        out = prediction(family, network, backbone, (1.0 - sigma) * z + sigma * eps, t, text, pipe)
        weighting = compute_loss_weighting_for_sd3(scheme, sigma)
        loss = (weighting * (out - (eps - z)) ** 2).reshape(len(z), -1).mean(1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    for key, value in leaves.items():
        torch.testing.assert_close(state["style"][key], value.detach(), rtol=0, atol=1e-12)
    assert max((state["style"][key] - initial[key]).abs().max() for key in initial) > 1e-3


PROMPTS = [{"target": "dog", "positive": "ink dog", "negative": "photo dog", "action": "enhance", "eta": 1.0}]
METHODS = {
    "pair": lambda recipe: PairCustomization(recipe, rank=4, content_steps=1),
    "dreambooth": lambda recipe: DreamBooth(recipe, rank=RANK, prior_weight=0),
    "slider": lambda recipe: VisualSlider(recipe, rank=RANK),
    "slider_text": lambda recipe: TextualSlider(recipe, PROMPTS, rollout_steps=3, rank=RANK),
    "styleforge_lora": lambda recipe: StyleForge(recipe, rank=RANK, tune="lora", text_encoder=False),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_pack_trains_what_each_cell_trains_alone(family, folder, name):
    backbone = load(family, folder)
    methods = [METHODS[name](replace(RECIPE, lr=lr)) for lr in (1e-3, 3e-3)]
    together = trained(backbone, methods)
    for cell, method in enumerate(methods):
        bank = Bank(backbone, method.adapters(dataset()), [generator("adapters", cell)])
        start = {key: factors(bank, key) for key in together[cell]}
        job = Job(0, method, Latents(dataset(), backbone, method.recipe), method.recipe, seed=cell)
        assert not [step.error for step in train(bank, [job]) if step.error]
        for key, state in together[cell].items():
            for site, value in factors(bank, key).items():
                torch.testing.assert_close(state[site], value, rtol=0, atol=1e-9)
        assert any((together[cell]["style"][k] != value).any() for k, value in start["style"].items())
        bank.close()
