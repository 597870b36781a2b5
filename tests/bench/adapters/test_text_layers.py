"""Low-rank adapters of text encoders on tiny SD and SDXL: updates in plain torch, images of diffusers, packs."""

import functools
import tempfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from random_pipelines import sdxl, stable_diffusion
from tiny import TinyBackbone, tiny_dataset
from torch.nn.functional import mse_loss

from bench.adapters import lora_export
from bench.adapters.bank import Bank
from bench.backbones.sdxl import StableDiffusionXL
from bench.backbones.stable_diffusion import StableDiffusion
from bench.contracts import AdapterSpec, Ask, BenchError, Impossible, Recipe
from bench.sampling.sampler import Request, Sampler, sample, shots
from bench.seeding import generator
from bench.training.latents import Latents
from bench.training.settings import TrainerSettings
from bench.training.trainer import Job, train
from methods.dreambooth import DreamBooth
from methods.external_adapter import ExternalAdapter
from methods.pair import PairCustomization

torch.set_num_threads(1)
FAMILIES = {"sd": (stable_diffusion, StableDiffusion), "sdxl": (sdxl, StableDiffusionXL)}
families = pytest.mark.parametrize("family", FAMILIES)
RECIPE = Recipe(steps=3, lr=1e-2, batch_size=2)
OPTIONS = TrainerSettings(text_encoder_lr=2e-3, lr_scale=2.0)
DATA = tiny_dataset()
SAMPLER = Sampler(steps=2, cfg=3.0)


@functools.cache
def made(family):
    build, kind = FAMILIES[family]
    with tempfile.TemporaryDirectory() as folder:
        build().save_pretrained(folder)
        return kind(folder, 64, dtype="float64", device="cpu", name=family)


def with_text(spec, **changes):
    return replace(spec, text_encoder=True, **changes)


class Both(DreamBooth):
    """DreamBooth as `Work.specs` changes its adapters; `spec` are further changes."""

    spec: dict = {}

    def adapters(self, dataset):
        return {name: with_text(spec, **self.spec) for name, spec in super().adapters(dataset).items()}


class PairOfBoth(PairCustomization):
    def adapters(self, dataset):
        return {name: with_text(spec) for name, spec in super().adapters(dataset).items()}


def job(backbone, cell=0, recipe=RECIPE, method=Both, options=OPTIONS, **settings):
    settings = settings or (
        {"prior_weight": 0.0} if issubclass(method, DreamBooth) else {"rank": 4, "content_steps": 1}
    )
    data = Latents(tiny_dataset(cell), backbone, recipe)
    return Job(cell, method(recipe, **settings), data, recipe, seed=3 + cell, options=options)


def trained(backbone, jobs, cells=None):
    bank = Bank(backbone, jobs[0].method.adapters(DATA), [generator("adapters", job.seed) for job in cells or jobs])
    steps = list(train(bank, jobs))
    assert not [step.error for step in steps if step.error]
    return bank, steps


# --- the update


@families
def test_the_update_is_torchs_with_two_learning_rates(family):
    backbone = made(family)
    one = job(backbone)
    bank, steps = trained(backbone, [one])
    bank.close()
    start = Bank(backbone, one.method.adapters(DATA), [generator("adapters", one.seed)])
    start.close()
    factors = {
        site: [half[0].detach().clone().requires_grad_() for half in (layer.down, layer.up)]
        for site, layer in start.layers["style"].items()
    }
    of_text = [half for site, halves in factors.items() if site.startswith("text") for half in halves]
    others = [half for site, halves in factors.items() if not site.startswith("text") for half in halves]
    groups = [{"params": others, "lr": 1e-2}, {"params": of_text, "lr": 2e-3 * 2}]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-2)
    for k in range(RECIPE.steps):
        rng = generator("train", one.seed, k)
        (z,), _ = one.data.draw(("style",), rng)
        eps, t = one.data.noise(z, rng)
        loss = mse_loss(predicted(backbone, factors, one.data.noisy(z, eps, t), t), eps)
        optimizer.zero_grad()
        loss.backward()
        for half in [*of_text, *others]:  # SDXL does not read the last layer of its first text encoder
            half.grad = torch.zeros_like(half) if half.grad is None else half.grad
        optimizer.step()
        assert steps[k].losses[0] == pytest.approx(loss.item(), abs=1e-9)
    for site, layer in bank.layers["style"].items():
        for mine, theirs in zip((layer.down[0], layer.up[0]), factors[site], strict=True):
            torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=0, atol=1e-8)
    assert max(half.abs().max() for half in of_text[1::2]) > 1e-3
    assert any(site.startswith("text_encoder_2.") for site in factors) == (family == "sdxl")


def predicted(backbone, factors, z, t):
    """All networks with merged weights, the text encoders' own outputs put together as diffusers' pipelines do."""
    parts, moved = dict(backbone.parts()), {name: {} for name in backbone.parts()}
    for site, (down, up) in factors.items():
        part, _, own = site.partition(".") if site.startswith("text") else ("unet", ".", site)
        own = own if dict(parts[part].named_modules()).get(own) is not None else own.removeprefix("text_model.")
        weight = parts[part].get_submodule(own).weight
        delta = torch.einsum("or,r...->o...", up, down)
        moved[part][f"{own}.weight"] = weight + delta
    prompts, outs = ["a photo of a dog in sks style"] * len(z), []
    for name, encoder in zip([name for name in parts if name.startswith("text")], backbone.text_encoders, strict=True):
        arguments = (encoder.tokens(prompts),), {"output_hidden_states": True}
        outs.append(torch.func.functional_call(parts[name], moved[name], *arguments))
    if len(outs) == 1:
        states, added = outs[0].last_hidden_state, None
    else:
        states = torch.cat([out.hidden_states[-2] for out in outs], -1)
        added = {
            "text_embeds": outs[1].text_embeds,
            "time_ids": torch.tensor([[64, 64, 0, 0, 64, 64]] * len(z)).double(),
        }
    kwargs = {"encoder_hidden_states": states, "added_cond_kwargs": added}
    return torch.func.functional_call(backbone.network, moved["unet"], (z, t), kwargs).sample


# --- packs, resuming


@families
@pytest.mark.parametrize("method", [Both, PairOfBoth])
def test_packed_and_alone_give_the_same_weights(family, method):
    backbone = made(family)
    jobs = [job(backbone, i, replace(RECIPE, steps=2 + i), method) for i in range(2)]
    packed, _ = trained(backbone, jobs)
    packed.close()
    for i in range(2):
        one = replace(job(backbone, i, replace(RECIPE, steps=2 + i), method), cell=0)
        alone, _ = trained(backbone, [one])
        alone.close()
        for name in alone.specs:
            torch.testing.assert_close(packed.row(name, i), alone.row(name, 0), rtol=0, atol=1e-9)


def test_packs_are_alike_with_dropout_and_beside_a_dora():
    backbone = made("sd")

    class Dropped(Both):
        spec = {"dropout": 0.3, "dora": True}

    jobs = [job(backbone, i, method=Dropped) for i in range(2)]
    packed, _ = trained(backbone, jobs)
    packed.close()
    one = replace(job(backbone, 1, method=Dropped), cell=0)
    alone, _ = trained(backbone, [one])
    alone.close()
    torch.testing.assert_close(packed.row("style", 1), alone.row("style", 0), rtol=0, atol=1e-9)
    plain, _ = trained(backbone, [replace(job(backbone, 1), cell=0)])
    plain.close()
    part = plain.parts("style")["style:text_encoder"]
    assert not torch.equal(
        plain.row("style", 0)[part], alone.row("style", 0)[alone.parts("style")["style:text_encoder"]]
    )


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    backbone = made("sd")
    calm, _ = trained(backbone, [job(backbone)])
    calm.close()
    monkeypatch.setattr("bench.training.trainer.CHECKPOINT_SHARE", 1e9)  # a checkpoint after every step
    one = replace(job(backbone), checkpoint=tmp_path / "checkpoint.safetensors")
    bank = Bank(backbone, one.method.adapters(DATA), [generator("adapters", one.seed)])
    for step in train(bank, [one]):
        if step.k == 2:
            break
    bank.close()
    resumed, steps = trained(backbone, [one])
    resumed.close()
    assert len(steps) == 2 and torch.equal(resumed.row("style", 0), calm.row("style", 0))


# --- drawing


def random_bank(backbone, seed=0, cells=1, **options):
    spec = AdapterSpec(3, "attention", text_encoder=True, **options)
    bank = Bank(backbone, {"style": spec}, [generator("adapters", i) for i in range(cells)])
    noise = torch.randn(bank.theta["style"].shape, generator=generator("fill", seed), dtype=torch.float64)
    bank.theta["style"].add_(0.3 * (noise.abs() if options.get("dora") else noise))
    return bank


def drawn(bank, strength=1.0, cell=0):
    method = DreamBooth(RECIPE)
    (chunk,) = sample(bank, [Request(cell, method, DATA, shots(DATA), strength)], SAMPLER)
    return chunk[0]


def of_pipeline(backbone, folder, name="pytorch_lora_weights.safetensors"):
    pipe = backbone.pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = backbone.scheduler("ddim", SAMPLER.steps)
    pipe.load_lora_weights(folder, weight_name=name)
    try:
        images = pipe(
            [f"{shot.prompt} in sks style" for shot in shots(DATA)], num_inference_steps=SAMPLER.steps,
            latents=torch.stack([shot.noise(backbone.latent_shape) for shot in shots(DATA)]).double(),
            guidance_scale=SAMPLER.cfg, output_type="np", height=64, width=64,
        ).images  # fmt: skip
    finally:
        pipe.unload_lora_weights()
    return (images * 255).round().astype(np.uint8).transpose(0, 3, 1, 2)


@families
@pytest.mark.parametrize("dora", [False, True])
def test_diffusers_draws_our_images(family, dora, tmp_path):
    backbone = made(family)
    bank = random_bank(backbone, dora=dora)
    mine, state = drawn(bank), bank.state("style", 0)
    bank.close()
    assert {key.split(".")[0] for key in state} == {"unet", *(part for part in backbone.parts() if part != "unet")}
    lora_export.diffusers(state, tmp_path)
    assert np.abs(mine.astype(int) - of_pipeline(backbone, tmp_path)).max() == 0
    without = {key: 0 * x if key.startswith("text") and "lora_B" in key else x for key, x in state.items()}
    bank = random_bank(backbone, dora=dora)
    bank.load("style", 0, without)
    assert dora or np.abs(mine.astype(int) - drawn(bank)).max() > 3
    bank.close()


@families
@pytest.mark.parametrize("kind", ["diffusers", "kohya", "alphas"])
def test_a_file_from_elsewhere_draws_the_same_here_and_in_diffusers(family, kind, tmp_path):
    """In the table as `method=external_adapter`; also with an alpha of each part in diffusers' metadata."""
    from peft import LoraConfig

    backbone = made(family)
    bank = random_bank(backbone)
    state = bank.state("style", 0)
    bank.close()
    if kind == "alphas":
        parts = {part: {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}
                 for part in backbone.parts()}  # fmt: skip
        options = {f"{part}_lora_layers": own for part, own in parts.items()}
        for alpha, (part, own) in enumerate(parts.items(), start=1):
            sites = sorted({key.partition(".lora_")[0].removeprefix("text_model.") for key in own})
            config = LoraConfig(r=3, lora_alpha=alpha, target_modules=sites).to_dict()
            options[f"{part}_lora_adapter_metadata"] = config
        type(backbone.pipeline()).save_lora_weights(tmp_path, **options)
    else:
        lora_export.FORMATS[kind](state, tmp_path)
    (file,) = tmp_path.iterdir()
    method = ExternalAdapter(str(file), prompt="{prompt} in sks style")
    bank = Bank(backbone, method.adapters(DATA), [generator("x")])
    (chunk,) = sample(bank, [Request(0, method, DATA, shots(DATA), 1.0)], SAMPLER)
    bank.close()
    assert any(site.startswith("text_encoder.") for site in bank.layers["style"])
    assert np.abs(chunk[0].astype(int) - of_pipeline(backbone, tmp_path, file.name)).max() == 0


@families
def test_strength_zero_is_the_backbone_and_cells_draw_with_their_own_texts(family):
    backbone = made(family)
    bank = random_bank(backbone, cells=2)
    own = [drawn(bank, cell=i) for i in range(2)]
    (chunk,) = sample(bank, [Request(i, DreamBooth(RECIPE), DATA, shots(DATA), 1.0) for i in range(2)], SAMPLER)
    assert np.abs(own[0].astype(int) - own[1]).max() > 3
    assert all(np.abs(chunk[i].astype(int) - own[i]).max() <= 1 for i in range(2))
    off = drawn(bank, strength=0.0)
    bank.close()
    plain = Bank(backbone, {"style": AdapterSpec(1)}, [generator("x")])
    assert np.array_equal(off, drawn(plain))
    plain.close()


def test_texts_are_read_again_when_the_adapter_moves():
    bank = random_bank(made("sd"))
    before = drawn(bank)
    bank.row("style", 0).mul_(0)
    assert not np.array_equal(drawn(bank), before)
    bank.close()


def test_a_saved_adapter_is_read_back(tmp_path):
    bank = random_bank(made("sdxl"))
    bank.save("style", 0, tmp_path)
    kept = bank.row("style", 0).float().clone()
    bank.row("style", 0).mul_(0)
    bank.read("style", 0, tmp_path)
    assert torch.equal(bank.row("style", 0).float(), kept)
    bank.close()


def test_peft_alone_refuses_weights_of_text_encoders(tmp_path):
    bank = random_bank(made("sd"))
    with pytest.raises(BenchError, match="adapts text encoders, which a PEFT folder of one network cannot hold"):
        lora_export.peft(bank.state("style", 0), tmp_path)
    bank.close()


def test_a_backbone_without_a_clip_text_encoder_is_refused():
    with pytest.raises(Impossible, match="tiny has no CLIP text encoder to adapt"):
        Bank(TinyBackbone(), {"style": AdapterSpec(2, text_encoder=True)}, [generator("x")])


def test_a_text_without_its_prompt_is_refused():
    backbone = made("sd")
    bank = random_bank(backbone)
    text = replace(backbone.embed(["a dog"]), prompts=())
    z = torch.zeros(1, *backbone.latent_shape).double()
    with pytest.raises(BenchError, match="needs the prompts of every text"):
        bank.answer([(0, Ask(z, torch.tensor([500]), text, {"style": 1.0}))])
    bank.close()
