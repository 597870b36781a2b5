"""An adapter that no step trains ends its cell with a sentence; losses that end high are noted, chance is not."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from test_packs import a_cell
from test_trainer import TwoPhase, jobs_of, trained
from tiny import TinyBackbone, tiny_dataset
from torch.nn.functional import mse_loss

from bench.adapters.bank import Bank
from bench.contracts import Ask, Loss
from bench.run import run
from bench.seeding import generator
from bench.store.record import Store
from bench.training.checks import high_ends
from bench.training.trainer import Training

TOLD = "The method declares the adapter 'style', but none of its 2 steps trained it; raise method.recipe.steps"


@dataclass
class Early(TwoPhase):
    """The style learns in the first two steps, the content afterwards; `factor` is of the last tenth's losses."""

    style_factor: float = 1.0
    end_factor: float = 1.0

    def step(self, data, k, rng):
        (a, _), examples = data.draw(("content", "style"), rng)
        eps, t = data.noise(a, rng)
        on = {"style": 1.0} if k < 2 else {"content": 1.0}
        out = yield Ask(data.noisy(a, eps, t), t, data.text([example.caption for example in examples]), on)
        factor = self.style_factor if k < 2 else self.end_factor if k >= 0.9 * self.recipe.steps else 1.0
        yield Loss(factor * mse_loss(out, eps))


def wild(recipe):
    return Early(recipe, end_factor=100.0)


def test_an_adapter_whose_phase_never_came_fails_the_cell_and_leaves_no_images(tmp_path):
    cell = a_cell(tmp_path, steps=2)  # its second phase begins with step 2
    record = run(cell)
    assert record.status == "failed" and record.reason.startswith(TOLD) and record.scores == []
    assert not (tmp_path / cell.run_id / "images").exists()
    assert [found.reason for found in Store(tmp_path).records()] == [record.reason]
    done = run(a_cell(tmp_path, steps=3))
    assert done.status == "done" and not [note for note in done.notes if note.startswith("training:")]


def test_a_gradient_that_is_always_zero_trains_nothing():
    backbone = TinyBackbone(torch.float64)
    (job,) = jobs_of(backbone, 1, steps=4)
    zero = replace(job, method=Early(job.recipe, style_factor=0.0))
    _, steps = trained(backbone, [zero], [zero])
    assert "the adapter 'style', but none of its 4 steps" in str(steps[-1].error) and steps[-2].error is None


def test_an_adapter_that_learned_before_a_checkpoint_counts(tmp_path):
    backbone = TinyBackbone(torch.float64)
    (job,) = jobs_of(backbone, 1, method=Early, steps=4)
    job = replace(job, checkpoint=tmp_path / "checkpoint.safetensors")
    bank = Bank(backbone, job.method.adapters(tiny_dataset()), [generator("adapters", job.seed)])
    before, after = Training(bank), Training(bank)
    before.add(job)
    for before.stopping in (False, False, True):
        list(before.tick())
    assert before.let_go == {0}
    after.add(job)
    (last,) = after.tick()
    bank.close()
    assert last.k == 4 and last.error is None


# --- losses ------------------------------------------------------------------------------------------------------


def log(folder, *series):
    """A log.csv with one series of losses or several; a shorter one begins later."""
    steps, path = max(map(len, series)), folder / "log.csv"
    rows = [[s[k - steps + len(s)] for s in series if k >= steps - len(s)] for k in range(steps)]
    lines = [f"{k + 1},0.001,{' '.join(f'{loss:.6g}' for loss in row)}" for k, row in enumerate(rows)]
    path.write_text("\n".join(["step,lr,losses", *lines]) + "\n")
    return path


def losses(n, seed, height=1.0, end=0.0):
    """As of a denoiser: three decades from one timestep to another; the last part `end` is `height` times as high."""
    drawn = 10 ** np.random.default_rng(seed).uniform(-3, 0, n)
    drawn[n - round(end * n) :] *= height
    return drawn


@pytest.mark.parametrize("steps", [30, 100, 500, 750])
def test_chance_is_not_noted(tmp_path, steps):
    noted = [high_ends(log(tmp_path, losses(steps, seed))) for seed in range(100)]
    assert sum(map(bool, noted)) == 0


@pytest.mark.parametrize("steps, least", [(100, 40), (500, 50)])
def test_a_training_that_diverges_at_the_end_is_noted(tmp_path, steps, least):
    noted = [high_ends(log(tmp_path, losses(steps, seed, 100.0, 0.2))) for seed in range(50)]
    assert sum(map(bool, noted)) >= least
    assert noted[0][0].startswith("training: loss 1 of 1 ends high, the median of its last tenth is ")


def test_each_loss_of_a_step_is_looked_at(tmp_path):
    (sentence,) = high_ends(log(tmp_path, losses(300, 0), losses(200, 1, 100.0, 0.2)))
    assert "loss 2 of 2 ends high" in sentence


def test_few_steps_or_none_are_no_training_to_judge(tmp_path):
    assert high_ends(log(tmp_path, [1.0, 1.0, 100.0])) == [] == high_ends(tmp_path / "no.csv")
    assert high_ends(log(tmp_path, np.zeros(40))) == []


def test_the_record_has_the_note(tmp_path):
    record = run(a_cell(tmp_path, steps=40, method="test_checks.wild"))
    (note,) = [note for note in record.notes if note.startswith("training: ")]
    assert record.status == "done" and "ends high" in note
