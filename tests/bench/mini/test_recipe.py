"""The recipe of `mini`: the denoiser's target and timesteps, a training that stops in time and goes on elsewhere."""

import time

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from bench.mini.readers import Readers
from bench.mini.recipe import readers, state, unet, vae
from bench.mini.recipe.training import Fit, OutOfTime


def test_the_target_is_what_the_sampler_reads():
    """One step from t to 0 with the true v gives the latents back."""
    noise, scheduler = unet.Noise(), DDIMScheduler(**unet.SCHEDULE, clip_sample=False)
    z, eps = torch.randn(2, 20, 4, 4), torch.randn(2, 20, 4, 4)
    for t in (30, 500, 950):
        z_t, v = noise.mix(z, eps, torch.tensor([t, t]))
        scheduler.set_timesteps(1000)
        found = scheduler.step(v, t, z_t).pred_original_sample
        torch.testing.assert_close(found, z, rtol=1e-4, atol=2e-3)


def test_timesteps_cover_the_schedule_and_repeat_with_their_generator():
    draws = [unet.timesteps(32, torch.Generator().manual_seed(k)) for k in range(200)]
    t = torch.cat(draws)
    assert t.min() >= 0 and t.max() <= 999 and t.dtype == torch.int64
    assert 450 < float(t.float().mean()) < 600
    assert (t < 100).float().mean() > 0.02 and (t > 900).float().mean() > 0.04
    assert torch.equal(draws[3], unet.timesteps(32, torch.Generator().manual_seed(3)))


def _fit(folder, until=float("inf"), start=None):
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    line = torch.nn.Linear(3, 2)
    return Fit("unet", folder, {"line": line}, steps=20, lr=1e-2, until=until, state=start), line


def _loss_of(line):
    return lambda step: (line(torch.full((4, 3), float(step % 5))) - 1).pow(2).mean()


def test_a_training_out_of_time_keeps_its_steps_and_ends_at_the_same_weights(tmp_path):
    whole, line = _fit(tmp_path / "whole")
    whole.run(_loss_of(line))
    for _ in range(25):
        part, other = _fit(tmp_path / "parts", until=time.time() - 1)
        try:
            part.run(_loss_of(other))
            break
        except OutOfTime as stopped:
            assert f"step {part.step} of 20" in str(stopped)
    torch.testing.assert_close(other.weight, line.weight, rtol=0, atol=0)


def test_a_kept_state_goes_on_in_another_folder(tmp_path):
    first, line = _fit(tmp_path / "first", until=time.time() - 1)
    with pytest.raises(OutOfTime):
        first.run(_loss_of(line))
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "basis.safetensors").write_bytes(b"basis")
    state.keep(first.file, tmp_path / "basis.safetensors", tmp_path / "tokenizer", tmp_path / "kept")
    second, other = _fit(tmp_path / "second", start=tmp_path / "kept" / "unet.safetensors")
    assert second.step == first.step == 1
    torch.testing.assert_close(other.weight, line.weight, rtol=1e-2, atol=1e-2)  # bfloat16
    moment = second.optimizer.state[other.weight]["exp_avg"]
    torch.testing.assert_close(moment, first.optimizer.state[line.weight]["exp_avg"], rtol=1e-2, atol=1e-4)


def test_the_basis_is_decorrelated_and_its_encoder_is_exact():
    rng = np.random.default_rng(0)
    images = np.repeat(np.repeat(rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8), 4, 1), 4, 2)
    images = np.clip(images + rng.integers(-30, 30, images.shape), 0, 255).astype(np.uint8)
    basis, mean = vae.principal(images)
    z = vae.latents(images, basis, mean).float()
    covariance = torch.cov(z.transpose(0, 1).flatten(1))
    assert (covariance - covariance.diag().diag()).abs().max() < 0.02 * covariance.diag().max()
    model = vae.build()
    vae.write_encoder(model, basis, mean)
    with torch.no_grad():
        written = model.encode(vae.to_float(images[:4])).latent_dist.mean
    assert (written - z[:4]).abs().max() < 0.03


def test_readers_come_back_from_their_file(tmp_path):
    model = Readers({"thing": ["dog", "cat"], "artist": ["noto", "blob", "flat"]}).eval()
    model.save(tmp_path)
    images = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    found = Readers.load(tmp_path)
    assert found.read(images) == model.read(images)
    assert all(set(found.read(images)[k]) <= set(names) for k, names in found.classes.items())


def test_targets_count_the_things_of_the_world_alone():
    from bench.mini.recipe.world import ARTISTS, THINGS

    names = readers.classes()["thing"]
    labels = {"thing": np.array([THINGS.index(names[5])]), "style": np.array([3]), "background": np.array([7])}
    found = readers.targets(labels)
    assert names[int(found["thing"])] == names[5] and ARTISTS[int(found["artist"])] == ARTISTS[3]


def test_readers_learn_the_artist_from_things_outside_the_world_which_are_no_answer_to_thing():
    from bench.mini import drawings
    from bench.mini.recipe import world

    rng = np.random.default_rng(0)
    drawn = [world.sample_readers(rng) for _ in range(400)]
    known = np.array([drawings.things()[picture.thing].world for picture in drawn])
    assert 0.4 < known.mean() < 0.6
    labels = np.array([world.labels(picture) for picture in drawn]).T
    found = readers.targets(dict(zip(("thing", "style", "background"), labels, strict=False)))
    assert ((found["thing"] == readers.UNASKED).numpy() == ~known).all()
    held = {(p.thing, p.artist) for p in (world.sample_readers(rng, tested=True) for _ in range(200))}
    assert not held & {(p.thing, p.artist) for p in drawn} and all(drawings.things()[t].world for t, _ in held)


def test_readers_accuracy_counts_right_answers():
    """A model that always reads the same answers is right as often as these are drawn."""
    from bench.mini.recipe import world

    model = Readers(readers.classes())
    for head in model.heads.values():
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    first = {k: names[0] for k, names in model.classes.items()}
    rng = np.random.default_rng(7)
    drawn = [world.sample_readers(rng, tested=True) for _ in range(60)]
    expected = {"thing": [p.thing for p in drawn], "artist": [p.artist for p in drawn],
                "background": [p.background.label for p in drawn]}  # fmt: skip
    found = readers.accuracy(model, 60, 7)
    assert found == {k: pytest.approx(np.mean([x == first[k] for x in v])) for k, v in expected.items()}
