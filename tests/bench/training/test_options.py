"""The options of training: each against a restatement in plain torch or the library's own function, also in packs."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from test_trainer import RECIPE, TwoPhase, trained
from tiny import TinyBackbone, tiny_dataset
from torch.nn.functional import mse_loss

from bench.adapters.bank import Bank
from bench.backbones.noise_schedule import NoiseSchedule
from bench.contracts import AdapterSpec, Ask, BenchError, Loss, Recipe
from bench.seeding import generator
from bench.training import optimizers
from bench.training.latents import Latents
from bench.training.settings import OPTIONS as OPTIONAL
from bench.training.settings import TrainerSettings, switched_on
from bench.training.trainer import Job, train

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
PLAIN = Recipe(steps=4, lr=2e-3, batch_size=2)


class Weighted(TinyBackbone):
    """With the weights of a real schedule."""

    def min_snr_weights(self, t, gamma):
        return NoiseSchedule({"_class_name": "DDPMScheduler", **BETAS}).min_snr_weights(t, gamma)


class Plain(TwoPhase):
    """One adapter, one loss."""

    dora: bool = False
    dropout: float = 0.0

    def adapters(self, dataset):
        return {"style": AdapterSpec(2, self.where, dora=self.dora, dropout=self.dropout)}

    def step(self, data, k, rng):
        (z,), examples = data.draw(("style",), rng)
        eps, t = data.noise(z, rng)
        text = data.text([example.caption for example in examples])
        out = yield Ask(data.noisy(z, eps, t), t, text, {"style": 1.0})
        yield Loss(data.loss(out, eps, t))


def job(backbone, recipe=PLAIN, method=Plain, cell=0, **options):
    chosen = TrainerSettings(**options)
    data = Latents(tiny_dataset(cell), backbone, recipe, (), True, chosen.noise_offset, chosen.min_snr)
    made = method(recipe)
    made.dora, made.dropout = chosen.dora, chosen.lora_dropout  # as `Work.specs` sets them
    return Job(cell, made, data, recipe, seed=3 + cell, options=chosen)


class Replay:
    """The same cell in plain torch: merged weights, draws in their order, an optimizer of the factors."""

    def __init__(self, backbone, of):
        self.backbone, self.job = backbone, of
        self.data = Latents(tiny_dataset(of.cell), backbone, of.recipe)
        spare = Bank(backbone, of.method.adapters(tiny_dataset()), [generator("adapters", of.seed)])
        spare.close()
        halves = {s: (layer.down[0], layer.up[0], layer.module) for s, layer in spare.layers["style"].items()}
        self.factors = {
            s: (d.detach().clone().requires_grad_(), u.detach().clone().requires_grad_(), module)
            for s, (d, u, module) in halves.items()
        }
        self.flat = [half for down, up, _ in self.factors.values() for half in (down, up)]

    def loss(self, draw, weigh=lambda errors, t: errors.mean(), change=lambda eps, rng: eps):
        rng = generator("train", self.job.seed, draw)
        (z,), _ = self.data.draw(("style",), rng)
        eps = change(torch.randn(z.shape, generator=rng).to(z), rng)
        t = torch.randint(1000, (len(z),), generator=rng)
        weights = {f"{site}.weight": module.weight + up @ down for site, (down, up, module) in self.factors.items()}
        text = self.backbone.words(["a photo of a dog"] * len(z))
        out = torch.func.functional_call(self.backbone.network, weights, (self.backbone.noisy(z, eps, t), t, text))
        return weigh((out.sample - eps).square().flatten(1).mean(1), t)

    def adamw(self):
        return torch.optim.AdamW(self.flat, lr=self.job.recipe.lr, weight_decay=self.job.recipe.weight_decay)

    def train(self, losses, optimizer=None, after=lambda: None):
        """`losses(k)` are the losses of a step; their mean is one update. Returns the mean of each step."""
        optimizer, found = optimizer or self.adamw(), []
        for k in range(self.job.recipe.steps):
            loss = torch.stack(losses(k)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            after()
            found.append(loss.item())
        return found

    def agrees(self, bank):
        for site, layer in bank.layers["style"].items():
            down, up, _ = self.factors[site]
            assert up.abs().max() > 0
            torch.testing.assert_close(layer.down[0].detach(), down.detach(), rtol=0, atol=1e-7)
            torch.testing.assert_close(layer.up[0].detach(), up.detach(), rtol=0, atol=1e-7)


def both(losses, backbone=None, **options):
    """Trained here and in plain torch, where `losses(replay, k)` are those of a step."""
    backbone = backbone or TinyBackbone(torch.float64)
    one = job(backbone, **options)
    bank, steps = trained(backbone, [one], [one])
    replay = Replay(backbone, one)
    theirs = replay.train(lambda k: losses(replay, k))
    assert [step.losses[0] for step in steps] == pytest.approx(theirs, abs=1e-7)
    return bank, replay


# --- the update


def test_accumulation_updates_with_the_mean_gradient_of_its_draws():
    bank, replay = both(lambda replay, k: [replay.loss(3 * k + draw) for draw in range(3)], accumulate=3)
    replay.agrees(bank)


def test_accumulated_draws_of_one_are_a_batch():
    """Without bank or trainer on the other side: a batch of the same examples, noise and timesteps."""

    class Fixed(Plain):
        def step(self, data, k, rng):
            draws = data.batch_size if data.batch_size > 1 else None
            rows = range(draws) if draws else [self.seen % 4]
            self.seen += 1
            z, eps = (torch.stack([torch.randn(4, 8, 8, generator=generator(w, i)) for i in rows]) for w in "ze")
            z, eps, t = z.double(), eps.double(), torch.tensor([100 + 200 * i for i in rows])
            out = yield Ask(data.noisy(z, eps, t), t, data.text(["a"] * len(z)), {"style": 1.0})
            yield Loss(mse_loss(out, eps))

    found = []
    for batch, draws in ((4, 1), (1, 4)):
        backbone = TinyBackbone(torch.float64)
        one = job(backbone, replace(PLAIN, batch_size=batch), Fixed, accumulate=draws)
        one.method.seen = 0
        found.append(trained(backbone, [one], [one])[0].row("style", 0).clone())
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-10)


def test_each_loss_of_a_draw_accumulates_by_itself():
    """The losses of two adapters: the first update of a step is that of the first losses of all draws."""
    backbone = TinyBackbone(torch.float64)
    one = job(backbone, replace(PLAIN, steps=4), TwoPhase, accumulate=2)
    _, steps = trained(backbone, [one], [one])
    assert [len(step.losses) for step in steps] == [1, 1, 2, 2]


def test_the_average_of_the_updates_is_that_of_diffusers():
    from diffusers.training_utils import EMAModel

    bank, replay = None, None
    backbone = TinyBackbone(torch.float64)
    one = job(backbone, replace(PLAIN, steps=6), ema=0.2)
    bank, _ = trained(backbone, [one], [one])
    replay = Replay(backbone, one)
    average = EMAModel(replay.flat, decay=0.2)
    replay.train(lambda k: [replay.loss(k)], after=lambda: average.step(replay.flat))
    average.copy_to(replay.flat)
    replay.agrees(bank)


@pytest.mark.parametrize("kind", ["adamw8bit", "prodigy"])
def test_other_optimizers_are_those_of_their_packages(kind):
    if sentence := optimizers.missing(kind):
        pytest.skip(sentence)
    backbone = TinyBackbone(torch.float32 if kind == "adamw8bit" else torch.float64)
    one = job(backbone, replace(PLAIN, steps=6, lr=1.0 if kind == "prodigy" else 2e-3), optimizer=kind)
    bank, steps = trained(backbone, [one], [one])
    replay = Replay(backbone, one)
    row = torch.cat([half.detach().flatten() for half in replay.flat]).requires_grad_()
    optimizer = optimizers.made(kind, [{"params": [row]}], one.recipe)
    for k in range(6):
        parts = iter(row.split([half.numel() for half in replay.flat]))
        replay.factors = {
            site: (next(parts).view(down.shape), next(parts).view(up.shape), module)
            for site, (down, up, module) in replay.factors.items()
        }
        loss = replay.loss(k)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert steps[k].losses[0] == pytest.approx(loss.item(), abs=1e-5)
    assert (bank.row("style", 0) - row.detach()).abs().max() < 1e-4 * row.detach().abs().max()


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match="prodigy needs prodigyopt, which is not installed; type uv pip install"):
        optimizers.made("prodigy", [], PLAIN)
    assert "needs bitsandbytes" in optimizers.missing("adamw8bit")
    assert optimizers.missing("adamw") is None


# --- the loss and the noise


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_those_of_diffusers_scripts(prediction, gamma):
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    scheduler = DDPMScheduler(prediction_type=prediction, **BETAS)
    t = torch.tensor([0, 10, 300, 700, 999])
    snr = compute_snr(scheduler, t)
    clipped = torch.stack([snr, gamma * torch.ones_like(snr)], 1).min(1).values
    wanted = clipped / (snr if prediction == "epsilon" else snr + 1)
    ours = NoiseSchedule(scheduler.config).min_snr_weights(t, gamma)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=0)
    assert ours.min() < 0.5


def test_min_snr_weights_the_rows_of_the_loss():
    backbone = Weighted(torch.float64)

    def weigh(errors, t):
        snr = backbone.ddim.alphas_cumprod[t] / (1 - backbone.ddim.alphas_cumprod[t])
        return (errors * snr.clamp(max=5) / snr).mean()

    bank, replay = both(lambda replay, k: [replay.loss(k, weigh)], backbone, min_snr=5.0)
    replay.agrees(bank)


def test_noise_offset_adds_a_number_to_each_channel():
    def change(eps, rng):
        return eps + 0.3 * torch.randn(len(eps), 4, 1, 1, generator=rng).to(eps)

    bank, replay = both(lambda replay, k: [replay.loss(k, change=change)], noise_offset=0.3)
    replay.agrees(bank)


def test_an_option_that_a_method_cannot_have_ends_its_cell():
    class Own(Plain):
        def step(self, data, k, rng):
            z = data.start_noise(rng)
            t = torch.full((len(z),), 500)
            out = yield Ask(z, t, data.text(["a"] * len(z)), {"style": 1.0})
            yield Loss(out.square().mean())

    for option, call in (({"min_snr": 5.0}, "data.loss"), ({"noise_offset": 0.1}, "data.noise")):
        backbone = Weighted(torch.float64)
        one = job(backbone, method=Own, **option)
        _, (step,) = trained(backbone, [one], [one])
        assert step.k == 1 and f"never call {call}" in str(step.error)


def test_min_snr_is_refused_where_it_is_not_defined():
    backbone = TinyBackbone(torch.float64)
    one = job(backbone, min_snr=5.0)
    _, (step,) = trained(backbone, [one], [one])
    assert "defined for noise and v prediction, not for tiny" in str(step.error)


# --- all of them


OPTIONS = [
    {"accumulate": 2},
    {"ema": 0.5},
    {"min_snr": 5.0},
    {"noise_offset": 0.2},
    {"optimizer": "prodigy"},
    {"lora_dropout": 0.3},
    {"dora": True},
    {"accumulate": 2, "ema": 0.5, "min_snr": 5.0, "noise_offset": 0.2, "lora_dropout": 0.3, "dora": True},
]
options = pytest.mark.parametrize("chosen", OPTIONS, ids=lambda chosen: ",".join(chosen))


def skip_missing(chosen):
    if sentence := optimizers.missing(chosen.get("optimizer", "adamw")):
        pytest.skip(sentence)


@options
def test_packed_and_alone_give_the_same_weights(chosen):
    skip_missing(chosen)
    backbone = Weighted(torch.float64)
    jobs = [job(backbone, replace(PLAIN, steps=3 + i), cell=i, **chosen) for i in range(2)]
    packed, _ = trained(backbone, jobs, jobs)
    for i in range(2):
        one = replace(job(backbone, replace(PLAIN, steps=3 + i), cell=i, **chosen), cell=0)
        alone, _ = trained(backbone, [one], [one])
        torch.testing.assert_close(packed.row("style", i), alone.row("style", 0), rtol=0, atol=1e-9)


@options
def test_a_killed_training_goes_on_to_the_same_bits(chosen, tmp_path, monkeypatch):
    skip_missing(chosen)
    backbone = Weighted()
    recipe = replace(RECIPE, steps=5, lr=1.0 if "optimizer" in chosen else 2e-3)
    one = job(backbone, recipe, **chosen)
    calm, _ = trained(backbone, [one], [one])
    monkeypatch.setattr("bench.training.trainer.CHECKPOINT_SHARE", 1e9)  # a checkpoint after every step
    one = replace(one, checkpoint=tmp_path / "checkpoint.safetensors")
    bank = Bank(backbone, one.method.adapters(tiny_dataset()), [generator("adapters", one.seed)])
    for step in train(bank, [one]):
        if step.k == 4:
            break
    bank.close()
    for left in (2, 0):  # the second time nothing is left to do
        resumed, steps = trained(backbone, [one], [one])
        assert len(steps) == left and torch.equal(resumed.row("style", 0), calm.row("style", 0))


@pytest.mark.parametrize(
    "wrong",
    [{"accumulate": 0}, {"accumulate": 1.5}, {"min_snr": 0}, {"min_snr": -1.0}, {"noise_offset": -0.1}, {"ema": 1.0},
     {"noise_offset": 2.0}, {"ema": 0.0}, {"optimizer": "sgd"},
     {"lora_dropout": 1.0}, {"dora": 1}],
)  # fmt: skip
def test_a_value_beyond_its_range_is_refused_when_the_run_is_composed(wrong):
    from bench.compose import from_overrides

    (name, value), *_ = wrong.items()
    with pytest.raises(BenchError, match=f"trainer.{name}="):
        from_overrides(f"trainer.{name}={value}", "tracker=none")


def test_what_is_off_is_no_part_of_a_cell():
    from bench.compose import from_overrides

    plain = from_overrides("tracker=none")
    assert plain.run_id == from_overrides("trainer.accumulate=1", "trainer.ema=null", "tracker=none").run_id
    assert not set(OPTIONAL) & set(plain.trainer)
    on = from_overrides("trainer.ema=0.99", "tracker=none")
    assert on.trainer == {**plain.trainer, "ema": 0.99} and on.run_id != plain.run_id
    assert switched_on({"lr_scale": 2.0, "ema": None, "accumulate": 4}) == {"lr_scale": 2.0, "accumulate": 4}


def test_the_adapters_of_a_cell_have_the_options(tmp_path):
    from bench.compose import from_overrides
    from bench.steps.work import Work

    cell = from_overrides("method=pair", "trainer.dora=true", "trainer.lora_dropout=0.1", "tracker=none")
    specs = Work(cell, tmp_path).specs()
    assert [(spec.dora, spec.dropout) for spec in specs.values()] == [(True, 0.1)] * 2
    for method in ("ip_adapter_train", "dreambooth_full"):
        cell = from_overrides(f"method={method}", "trainer.dora=true", "tracker=none")
        with pytest.raises(BenchError, match=f"and {method} trains none; leave it out"):
            Work(cell, tmp_path).specs()


def test_a_cell_with_all_options_is_drawn_again_from_its_files(tmp_path):
    """The stored adapter has the weights of the text encoder and the lengths of DoRA, and draws the stored images."""
    from safetensors import safe_open
    from test_previews import trained as run_cell

    from bench.data.image_files import load_image
    from bench.steps.reopen import reopen
    from bench.steps.sample import draw

    chosen = ["accumulate=2", "ema=0.5", "min_snr=5", "noise_offset=0.1", "lora_dropout=0.1", "dora=true"]
    chosen = [f"trainer.{option}" for option in [*chosen, "text_encoder_lr=1e-4"]]
    record, folder = run_cell(tmp_path, *chosen, "method.recipe.steps=2", "method.recipe.lr=1e-3")
    assert record.status == "done", record.reason
    with safe_open(folder / "adapters" / "style.safetensors", "pt") as file:
        kinds = {(key.split(".")[0], key.rpartition("lora_")[2]) for key in file.keys()}  # noqa: SIM118
    assert kinds == {("unet", "A.weight"), ("unet", "B.weight"), ("unet", "magnitude_vector"),
                     ("text_encoder", "A.weight"), ("text_encoder", "B.weight")}  # fmt: skip
    work = reopen(folder)
    (images,) = draw([work], 3.0)
    work.close()
    stored = [load_image(path) for path in sorted((folder / "images" / "strength=3").iterdir())]
    assert len(stored) == len(images) == 4
    assert all((image == again).all() for image, again in zip(stored, images, strict=True))
