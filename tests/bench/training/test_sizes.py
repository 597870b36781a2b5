"""Training at one resolution and drawing at another, and SDXL's description of the training images."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from random_pipelines import sdxl, stable_diffusion
from test_previews import trained
from tiny import TinyBackbone, tiny_dataset
from torch.nn.functional import mse_loss

from bench.adapters.bank import Bank
from bench.backbones.sdxl import StableDiffusionXL
from bench.backbones.stable_diffusion import StableDiffusion
from bench.contracts import Ask, BenchError, Example, Impossible, Recipe
from bench.data.decoding import resized
from bench.seeding import generator
from bench.steps.job import training_job
from bench.steps.work import Work
from bench.training.settings import TrainerSettings
from bench.training.trainer import train
from methods.dreambooth import DreamBooth

RECIPE = Recipe(steps=2, lr=1e-2)
PRIOR = [Example(tiny_dataset(40).pairs[0].content.image, "a photo of a dog", "dog")]


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def backbone(request, tmp_path_factory):
    build, kind = {"sd": (stable_diffusion, StableDiffusion), "sdxl": (sdxl, StableDiffusionXL)}[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    build().save_pretrained(folder)
    return kind(str(folder), 64, dtype="float64", device="cpu", name=request.param)


def dataset_at(resolution):
    data = tiny_dataset()
    pairs = tuple(
        replace(pair, content=at(pair.content, resolution), style=at(pair.style, resolution)) for pair in data.pairs
    )
    return replace(data, pairs=pairs)


def at(example, resolution):
    return replace(example, image=resized(example.image, resolution))


def work_of(backbone, monkeypatch, folder, **options):
    """A cell whose parts are given instead of loaded."""
    cell = SimpleNamespace(seed=7, identity={}, backbone={"resolution": 64})
    work = Work(cell, folder, slot=0)
    settings = TrainerSettings(**options)
    vars(work).update(
        backbone=backbone, trainer=settings, method=DreamBooth(RECIPE, prior_weight=0.5), dataset=dataset_at(64)
    )
    monkeypatch.setattr(Work, "_dataset_at", lambda self, resolution: dataset_at(resolution))
    monkeypatch.setattr("bench.steps.job.prior", lambda work: PRIOR)
    return work


@pytest.mark.parametrize("time_ids", [None, (90, 120, 3, 0)])
def test_the_update_at_another_resolution_is_torchs(backbone, time_ids, monkeypatch, tmp_path):
    """Images of half the size through the autoencoder, SDXL's sizes of training, class images made smaller."""
    if time_ids is not None and not backbone.sizes:
        with pytest.raises(Impossible, match="which sd does not have"):
            backbone.in_training(32, time_ids)
        return
    work = work_of(backbone, monkeypatch, tmp_path, resolution=32, time_ids=time_ids)
    job = replace(training_job(work), checkpoint=None)
    assert "trained at 32 pixels, drawn at 64" in work.notes
    bank = Bank(backbone, work.method.adapters(work.dataset), [generator("adapters", 7)])
    start = {s: [half[0].detach().clone() for half in (x.down, x.up)] for s, x in bank.layers["style"].items()}
    steps = list(train(bank, [job]))
    bank.close()
    factors = {site: [half.requires_grad_() for half in halves] for site, halves in start.items()}
    optimizer = torch.optim.AdamW([half for halves in factors.values() for half in halves], lr=1e-2, weight_decay=1e-2)
    for k in range(RECIPE.steps):
        rng = generator("train", 7, k)
        loss, rows = 0, []
        for image, prompt, weight in (
            (dataset_at(32).pairs[0].style.image, "a photo of a dog in sks style", 1),
            (resized(PRIOR[0].image, 32), "a photo of a dog", 0.5),
        ):
            torch.randint(1, (1,), generator=rng)
            z = latent(backbone, image, rng)
            eps = torch.randn(z.shape, generator=rng).double()
            rows.append((z, eps, torch.randint(1000, (1,), generator=rng), prompt, weight))
        for z, eps, t, prompt, weight in rows:
            out = predicted(backbone, factors, backbone.noisy(z, eps, t), t, prompt, time_ids or (32, 32, 0, 0))
            loss = loss + weight * mse_loss(out, eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert steps[k].losses[0] == pytest.approx(loss.item(), abs=1e-9)
    for site, layer in bank.layers["style"].items():
        torch.testing.assert_close(layer.up[0].detach(), factors[site][1].detach(), rtol=0, atol=1e-8)


def latent(backbone, image, rng):
    """A draw of the autoencoder's posterior for an image of any size, by diffusers' autoencoder."""
    pixels = torch.from_numpy(image)[None].double() / 127.5 - 1
    with torch.no_grad():
        posterior = backbone.vae.network.encode(pixels.to(backbone.vae.network.dtype)).latent_dist
    scale = backbone.vae.network.config.scaling_factor
    mean, std = (x.double() * scale for x in (posterior.mean, posterior.std))
    return mean + std * torch.randn(mean.shape, generator=rng)


def predicted(backbone, factors, z, t, prompt, described):
    merged = {f"{site}.weight": up @ down for site, (down, up) in factors.items()}
    weights = {n: w + merged[n] if n in merged else w for n, w in backbone.network.named_parameters()}
    text = backbone.embed([prompt])
    added = {**text.extras, "time_ids": torch.tensor([[*described, 32, 32]]).double()} if text.extras else None
    kwargs = {"encoder_hidden_states": text.states, "added_cond_kwargs": added}
    return torch.func.functional_call(backbone.network, weights, (z, t), kwargs).sample


@pytest.mark.parametrize("full", [True, False])
def test_trained_text_encoders_keep_the_sizes_of_training(backbone, full):
    """Their prompts are read again in every pass; the sizes are those of the text that was given."""
    if not backbone.sizes:
        pytest.skip("it reads no sizes")
    from bench.contracts import AdapterSpec, FullSpec

    spec = FullSpec(text_encoder=True) if full else AdapterSpec(2, text_encoder=True)
    small = backbone.in_training(32, (90, 120, 3, 0))
    bank = Bank(backbone, {"style": spec}, [generator("x")])
    seen = {}
    forward = backbone.predict
    backbone.predict = lambda z, t, text: seen.update(text.extras) or forward(z, t, text)
    try:
        z = torch.randn(1, 4, 8, 8, generator=generator("z")).double()
        for trained_ in ({}, {"frozen": frozenset({"style"})}):
            bank.answer([(0, Ask(z, torch.tensor([500]), small.embed(["a dog"]), {"style": 1.0}, **trained_))])
            assert seen["time_ids"].tolist() == [[90, 120, 3, 0, 32, 32]]
    finally:
        del backbone.predict
        bank.close()


def test_a_cell_trains_small_and_draws_large(tmp_path):
    record, folder = trained(tmp_path, "trainer.resolution=32")
    assert record.status == "done" and "trained at 32 pixels, drawn at 64" in record.notes
    from bench.data.image_files import load_image

    assert load_image(next((folder / "images").rglob("*.png"))).shape == (3, 64, 64)
    plain, other = trained(tmp_path)
    assert plain.run_id != record.run_id and "resolution" not in plain.config["trainer"]
    losses = [(place / "log.csv").read_text() for place in (folder, other)]
    assert losses[0] != losses[1]


def test_the_record_says_how_sdxl_is_told_the_sizes(backbone):
    if backbone.sizes:
        (note,) = backbone.in_training(None, (90, 120, 3, 0)).training_notes
        assert "originals of 90 x 120 pixels, crop 3, 0, size 64" in note
        assert backbone.in_training(None, None) is backbone


@pytest.mark.parametrize("resolution", [35, 2])
def test_a_resolution_that_the_autoencoder_cannot_have_is_refused(backbone, resolution):
    with pytest.raises(BenchError, match=f"The resolution {resolution} was requested"):
        backbone.in_training(resolution, None)


def test_backbones_of_one_size_refuse():
    with pytest.raises(Impossible, match="tiny does not have"):
        TinyBackbone().in_training(32, None)


@pytest.mark.parametrize("wrong", [{"resolution": 4}, {"time_ids": [1, 2, 3]}, {"time_ids": [1, 2, 3, -4]}])
def test_values_beyond_their_range(wrong):
    (name,) = wrong
    with pytest.raises(BenchError, match=f"trainer.{name}="):
        TrainerSettings(**wrong)


def test_resized_images_are_pillows():
    from PIL import Image

    image = tiny_dataset().pairs[0].style.image
    theirs = Image.fromarray(image.transpose(1, 2, 0)).resize((32, 32), Image.Resampling.LANCZOS)
    assert np.array_equal(resized(image, 32), np.asarray(theirs).transpose(2, 0, 1))
    assert resized(image, 64) is image
