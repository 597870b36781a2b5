"""The trainer: packed equals alone, resumed equals undisturbed, frozen halves stay, the update is AdamW's."""

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from tiny import TinyBackbone, tiny_dataset
from torch.nn.functional import mse_loss

from bench.adapters.bank import Bank
from bench.contracts import AdapterSpec, Ask, Loss, Method, Recipe
from bench.seeding import generator
from bench.training.latents import Latents
from bench.training.trainer import Job, learning_rate, train


@dataclass
class TwoPhase(Method):
    """First one adapter learns, then another on top of it; with a gradient-free look in between."""

    recipe: Recipe
    turn: int = 2
    where: str = "attention"
    strength: float = 1.0
    strength_knob = "scale"

    def adapters(self, dataset):
        return {"content": AdapterSpec(2, self.where, orthonormal_row=0), "style": AdapterSpec(2, self.where)}

    def step(self, data, k, rng):
        (a, b), examples = data.draw(("content", "style"), rng)
        eps, t = data.noise(a, rng)
        text = data.text([example.caption for example in examples])
        out = yield Ask(data.noisy(a, eps, t), t, text, {"content": 1.0})
        yield Loss(mse_loss(out, eps))
        if k >= self.turn:
            look = yield Ask(data.noisy(b, eps, t), t, text, {"style": -1.0}, frozenset({"style"}))
            assert not look.requires_grad
            out = yield Ask(data.noisy(b, eps, t), t, text, {"content": 1.0, "style": 1.0}, frozenset({"content"}))
            yield Loss(mse_loss(out, eps + 0.01 * look))

    def prompts(self, prompt, dataset):
        return {"content": prompt, "negative": ""}

    def guide(self, z, t, texts, cfg, strength):
        return (yield Ask(z, t, texts["content"], {"style": strength}))


RECIPE = Recipe(steps=50, lr=2e-3, batch_size=2, flip=True, clip_norm=0.05, schedule="cosine", warmup_steps=3)


def jobs_of(backbone, count, method=TwoPhase, steps=RECIPE.steps, **changes):
    """Cells with their own seed, dataset, learning rate and length."""
    for i in range(count):
        recipe = replace(RECIPE, lr=RECIPE.lr * (1 + i), steps=steps + i, **changes)
        yield Job(i, method(recipe), Latents(tiny_dataset(i), backbone, recipe), recipe, seed=10 + i)


def trained(backbone, jobs, cells):
    """Weights of each cell after training in one pack."""
    specs = jobs[0].method.adapters(jobs[0].data.dataset)
    bank = Bank(backbone, specs, [generator("adapters", job.seed) for job in cells])
    steps = list(train(bank, jobs))
    bank.close()
    return bank, steps


SLOW = [
    pytest.param(*case, marks=pytest.mark.slow) for case in [(2, "all", 50), (2, "attention", 50), (5, "attention", 50)]
]


@pytest.mark.parametrize("count,where,steps", [(2, "all", 16), *SLOW])
def test_packed_and_alone_give_the_same_weights(count, where, steps):
    backbone = TinyBackbone(torch.float64)

    def method(recipe):
        return TwoPhase(recipe, where=where)

    jobs = list(jobs_of(backbone, count, method, steps))
    packed, _ = trained(backbone, jobs, jobs)
    for job in jobs_of(backbone, count, method, steps):
        alone, _ = trained(backbone, [replace(job, cell=0)], [job])
        for name in ("content", "style"):
            mine, theirs = alone.row(name, 0), packed.row(name, job.cell)
            assert mine.abs().max() > 0.01
            torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-9)


def test_one_step_is_torchs_adamw_on_the_low_rank_factors():
    """A second implementation without bank or trainer: the same draws, merged weights, torch's own AdamW."""
    backbone, recipe = TinyBackbone(torch.float64), replace(RECIPE, steps=4, flip=False)
    job = Job(0, TwoPhase(recipe, turn=9), Latents(tiny_dataset(), backbone, recipe), recipe, seed=3)
    bank, steps = trained(backbone, [job], [job])

    spare = Bank(backbone, job.method.adapters(tiny_dataset()), [generator("adapters", 3)])
    spare.close()
    layers = spare.layers["content"]
    ups = {site: layer.up.detach()[0].clone().requires_grad_() for site, layer in layers.items()}
    optimizer = torch.optim.AdamW(ups.values(), betas=recipe.betas, weight_decay=recipe.weight_decay)
    data = Latents(tiny_dataset(), backbone, recipe)
    for k in range(recipe.steps):
        rng = generator("train", 3, k)
        (a, _), _ = data.draw(("content", "style"), rng)
        eps, t = data.noise(a, rng)
        weights = {f"{site}.weight": layer.module.weight + ups[site] @ layer.down[0] for site, layer in layers.items()}
        text = data.text(["a photo of a dog"] * 2).states
        out = torch.func.functional_call(backbone.network, weights, (data.noisy(a, eps, t), t, text)).sample
        loss = mse_loss(out, eps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(ups.values(), recipe.clip_norm)
        optimizer.param_groups[0]["lr"] = learning_rate(recipe, k)
        optimizer.step()
        assert abs(loss.item() - steps[k].losses[0]) < 1e-9
    for site, layer in bank.layers["content"].items():
        torch.testing.assert_close(layer.up[0].detach(), ups[site].detach(), rtol=0, atol=1e-9)


def test_gradient_checkpointing_changes_nothing():
    backbone = TinyBackbone(torch.float64)
    (job,) = jobs_of(backbone, 1)
    job = replace(job, recipe=replace(job.recipe, steps=6))
    plain, _ = trained(backbone, [job], [job])
    backbone.network.enable_gradient_checkpointing()
    again, _ = trained(backbone, [job], [job])
    for name in ("content", "style"):
        torch.testing.assert_close(again.row(name, 0), plain.row(name, 0), rtol=0, atol=1e-10)


def test_a_loss_moves_only_what_its_ask_trained():
    backbone = TinyBackbone()
    (job,) = jobs_of(backbone, 1)
    bank = Bank(backbone, job.method.adapters(tiny_dataset()), [generator("adapters", 0)])
    before = bank.row("style", 0).clone()
    content = []
    for step in itertools.islice(train(bank, [job]), 4):
        content.append(bank.row("content", 0).clone())
        assert len(step.losses) == (1 if step.k <= 2 else 2)
        assert torch.equal(bank.row("style", 0), before) == (step.k <= 2)
    assert not torch.equal(content[0], content[1])


@pytest.mark.parametrize("killed_after", [7, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 11))])
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, killed_after):
    backbone = TinyBackbone()
    (job,) = jobs_of(backbone, 1, steps=12)
    calm, calm_steps = trained(backbone, [job], [job])

    monkeypatch.setattr("bench.training.trainer.CHECKPOINT_SHARE", 1e9)  # a checkpoint after every step
    job = replace(job, checkpoint=tmp_path / "checkpoint.safetensors")
    bank = Bank(backbone, job.method.adapters(tiny_dataset()), [generator("adapters", job.seed)])
    for step in train(bank, [job]):
        if step.k == killed_after + 1:  # this step is lost
            break
    bank.close()
    resumed, steps = trained(backbone, [job], [job])
    assert steps[0].k == killed_after + 1 and [s.losses for s in steps] == [s.losses for s in calm_steps[killed_after:]]
    for name in ("content", "style"):
        assert torch.equal(resumed.row(name, 0), calm.row(name, 0))


def test_a_loss_that_is_not_finite_ends_its_cell_and_leaves_the_others_unharmed():
    class Poisoned(TwoPhase):
        def step(self, data, k, rng):
            coroutine = super().step(data, k, rng)
            message = next(coroutine)
            while True:
                if isinstance(message, Loss) and k == 5:
                    message = Loss(message.value * float("nan"))
                answer = yield message
                try:
                    message = coroutine.send(answer)
                except StopIteration:
                    return

    backbone = TinyBackbone(torch.float64)
    good, other = jobs_of(backbone, 2, steps=8)
    bad = replace(other, method=Poisoned(other.recipe))
    packed, steps = trained(backbone, [good, bad], [good, bad])
    failures = [step for step in steps if step.error]
    assert [step.cell for step in failures] == [1]
    assert "The loss became nan in step 6 of 9; lower the learning rate" in str(failures[0].error)
    alone, _ = trained(backbone, [good], [good])
    torch.testing.assert_close(packed.row("style", 0), alone.row("style", 0), rtol=0, atol=1e-9)


def test_schedules():
    cosine = replace(RECIPE, steps=10, warmup_steps=2, lr=1.0)
    rates = [learning_rate(cosine, k) for k in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates == rates[:2] + sorted(rates[2:], reverse=True) and rates[-1] < 0.05
    assert {learning_rate(replace(cosine, schedule="constant", warmup_steps=0), k) for k in range(10)} == {1.0}
