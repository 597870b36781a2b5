"""Packs through the whole pipe: each cell as if alone, whoever sits beside it, fails, leaves early or interrupts."""

import math
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_run import wait_for
from test_trainer import TwoPhase
from tiny import TinyBackbone

from bench.adapters.bank import Bank
from bench.cell import Cell
from bench.contracts import BenchError, Metric, Score
from bench.data import schema
from bench.data.images import stored
from bench.run import run
from bench.seeding import generator
from bench.steps import probe, sample, slots
from bench.steps.job import training_job
from bench.steps.work import Work
from bench.store.record import Store
from bench.sweeps.packs import packs, run_pack
from bench.track import Silent

ROOT = Path(__file__).parents[3]
STEPS = 5


class Backbone(TinyBackbone):
    """Counts its passes."""

    passes = 0

    def __init__(self, name, path, resolution, dtype):
        super().__init__(getattr(torch, dtype))

    def predict(self, z, t, text):
        Backbone.passes += 1
        return super().predict(z, t, text)


@dataclass
class Breaks(TwoPhase):
    """Data that cannot be read, in step 4."""

    def step(self, data, k, rng):
        if k == 3:
            raise ValueError("this image is no image")
        yield from super().step(data, k, rng)


class Slow(TwoPhase):
    """All its steps have two phases."""

    def __init__(self, recipe):
        super().__init__(recipe, turn=0)


class Mean(Metric):
    higher_is_better = {"mean": True}

    def missing(self):
        return None

    def score(self, evaluation):
        return Score({"mean": float(np.asarray(evaluation.images).mean())})


class Diary(Silent):
    """What trackers were told, by run id."""

    told: dict = {}

    def start(self, run_id, config, group="", tags=(), job=""):
        self.lines = Diary.told.setdefault(run_id, [])

    def log(self, step, values):
        self.lines.append(step)

    def finish(self, status):
        self.lines.append(status)


def a_cell(results, seed=0, steps=STEPS, lr=2e-3, method="test_trainer.TwoPhase", dataset="blueprint", **changes):
    recipe = {"_target_": "bench.contracts.Recipe", "steps": steps, "lr": lr, "batch_size": 2, "clip_norm": 0.05}
    few = {"prompts": ["a photo of a cat"], "seeds": [0, 1]}
    own = {"_target_": "test_packs.Backbone", "path": "conf/backbone"}  # any folder has an identity
    values = dict(
        method={"_target_": method, "name": "two", "recipe": recipe},
        dataset=schema.describe(dataset) | few,
        backbone=own | {"name": "tiny", "resolution": 64, "dtype": "float64"},
        trainer={"lr_scale": 1.0, "resample": True, "prior_images": None},
        sampler={"scheduler": "ddim", "steps": 2, "cfg": 3.0, "batch": 8},
        metrics={"mean": {"_target_": "test_packs.Mean"}},
        tracker={"_target_": "test_packs.Diary"},
        seed=seed, strengths=(1.0,), results=Path(results),
    )  # fmt: skip
    return Cell(**values | changes)


def adapters(cell, root=None):
    files = sorted(((root or cell.results) / cell.run_id / "adapters").iterdir())
    return {file.name: load_file(file) for file in files}


def images(cell):
    return stored(cell.results / cell.run_id / "images" / "strength=1", ["000-s0", "000-s1"])[:].astype(int)


def in_float32(cell):
    return replace(cell, backbone=cell.backbone | {"dtype": "float32"})


def test_each_cell_of_a_pack_leaves_what_it_leaves_alone(tmp_path):
    """Four slots for six cells: two full-length ones, a NaN, a broken one, a short one, and two that wait for slots."""
    changes = [{"seed": 1}, {"seed": 2, "dataset": "duotone"}, {"lr": 1e30}, {"method": "test_packs.Breaks"},
               {"seed": 3, "steps": 3}, {"seed": 4}]  # fmt: skip
    together = [a_cell(tmp_path / "pack", **change) for change in changes]
    alone = [a_cell(tmp_path / "alone", **change) for change in changes]
    Diary.told, Backbone.passes = {}, 0
    records = {record.run_id: record for record in run_pack(together, 4)}
    shared, told = Backbone.passes, Diary.told
    Diary.told, Backbone.passes = {}, 0
    for cell, one in zip(together, alone, strict=True):
        packed, single = records[cell.run_id], run(one)
        assert (packed.run_id, packed.status, packed.reason) == (single.run_id, single.status, single.reason)
        assert packed.scores == single.scores and packed.notes == single.notes and packed.config == single.config
        assert told[cell.run_id] == Diary.told[one.run_id]
        folders = [sorted(p.name for p in (c.results / c.run_id).iterdir()) for c in (cell, one)]
        assert folders[0] == folders[1]
        if single.status == "done":
            assert packed.cost["steps"] == single.cost["steps"] and packed.cost["pack"] > 1 == single.cost["pack"]
            assert (images(cell) == images(one)).all()
            for name, state in adapters(one).items():
                for key, value in state.items():
                    torch.testing.assert_close(adapters(cell)[name][key], value, rtol=0, atol=1e-7)  # saved as float32
    assert [records[cell.run_id].status for cell in together] == ["done", "done", "failed", "failed", "done", "done"]
    assert "The loss became nan in step" in records[together[2].run_id].reason
    assert records[together[3].run_id].reason == "ValueError: this image is no image"
    assert "this image is no image" in (together[3].results / together[3].run_id / "error.txt").read_text()
    assert shared < 0.6 * Backbone.passes


@pytest.mark.slow
def test_after_a_full_training_in_float32_images_differ_by_two_grey_levels_at_most(tmp_path):
    together = [in_float32(a_cell(tmp_path / "pack", seed=i, steps=250)) for i in range(3)]
    run_pack(together, 3)
    for cell, other in zip(together, together[1:], strict=False):
        one = replace(cell, results=tmp_path / "alone")
        run(one)
        assert np.abs(images(cell) - images(one)).max() <= 2 < np.abs(images(cell) - images(other)).max()


def test_cells_let_go_in_the_middle_end_at_the_same_bits(tmp_path):
    calm, stopped = (
        [a_cell(tmp_path / folder, seed=i, steps=7 + i) for i in range(2)] for folder in ("calm", "stopped")
    )
    run_pack(calm, 2)
    polls = iter(range(100))
    assert run_pack(stopped, 2, stop=lambda: next(polls) > 8) == []
    work_folders = [tmp_path / "stopped" / ".work" / cell.run_id for cell in stopped]
    assert all((folder / "checkpoint.safetensors").is_file() for folder in work_folders)
    lines = [len((folder / "log.csv").read_text().splitlines()) for folder in work_folders]
    assert all(1 < count < 8 for count in lines)
    again = run_pack(stopped, 2)
    assert [record.status for record in again] == ["done", "done"] and again[0].cost["steps"] == 8 - lines[0]
    for cell, other in zip(calm, stopped, strict=True):
        same_files(cell, other)


def test_progress_counts_the_steps_of_the_cell_that_ends_first(tmp_path, monkeypatch):
    """Its steps take several ticks, and in each of them another cell ends a step."""
    told = []

    def noted(items, label, unit, total):
        told.append([total, 0])
        for item in items:
            told[-1][1] += 1
            yield item

    monkeypatch.setattr(slots, "progress", noted)
    run_pack([a_cell(tmp_path, steps=30), a_cell(tmp_path, seed=1, steps=3, method="test_packs.Slow")], 2)
    assert len(told) == 2 and told[0] == [3, 3] and told[1][0] == told[1][1]


def same_files(cell, other):
    for file in ("adapters/style.safetensors", "images/strength=1/000-s1.png", "log.csv"):
        assert (cell.results / cell.run_id / file).read_bytes() == (other.results / other.run_id / file).read_bytes()


def killable(results):
    """Run in a process of its own, with a checkpoint after every step."""
    from bench.training import trainer

    trainer.CHECKPOINT_SHARE = 1e9
    run_pack([a_cell(results, seed=i, steps=40) for i in range(3)], 3)


@pytest.mark.slow
def test_a_pack_that_is_killed_goes_on_and_ends_at_the_same_bits(tmp_path):
    program = "import sys; sys.path[:0] = ['tests', *('tests/bench' + room for room in ('', '/sweeps', '/training'))]; "
    program += f"import test_packs; test_packs.killable({str(tmp_path)!r})"
    child = subprocess.Popen([sys.executable, "-W", "ignore", "-c", program], cwd=ROOT)
    wait_for(lambda: len([p for p in tmp_path.glob(".work/*/log.csv") if p.read_text().count("\n") > 6]) == 3)
    child.kill()
    child.wait()
    assert list(Store(tmp_path).records()) == []
    cells = [a_cell(tmp_path, seed=i, steps=40) for i in range(3)]
    assert all(0 < record.cost["steps"] < 40 for record in run_pack(cells, 3))
    calm = [replace(cell, results=tmp_path / "calm") for cell in cells]
    run_pack(calm, 3)
    for cell, other in zip(cells, calm, strict=True):
        same_files(cell, other)


def test_full_fine_tuning_is_a_pack_of_one(tmp_path):
    def full(folder, seed):
        made = a_cell(tmp_path / folder, seed, steps=2, method="methods.dreambooth.DreamBooth")
        return in_float32(replace(made, method=made.method | {"tune": "full", "prior_weight": 0.0}))

    records = run_pack([full("pack", 0), full("pack", 1)], 4)
    assert [record.cost["pack"] for record in records] == [1, 1]
    assert run(full("alone", 1)).status == "done"
    folder = f"{full('', 1).run_id}/adapters/style/unet"
    mine, theirs = (load_file(next((tmp_path / name / folder).iterdir())) for name in ("pack", "alone"))
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_finished_cells_are_told_and_one_in_other_hands_harms_nobody(tmp_path):
    cells = [a_cell(tmp_path, seed=i, steps=1) for i in range(3)]
    run(cells[0])
    elsewhere = Store(tmp_path)
    elsewhere.work(cells[1].run_id)
    told = []
    with pytest.raises(BenchError, match="is being worked on by process"):
        run_pack(iter(cells), 2, told.append)
    elsewhere.release(cells[1].run_id)
    assert [record.run_id for record in told] == [cells[0].run_id, cells[2].run_id]


def test_one_cell_asked_for_at_two_strengths_is_trained_once(tmp_path):
    cells = [a_cell(tmp_path, steps=2), a_cell(tmp_path, steps=2, strengths=(0.5,)), a_cell(tmp_path, seed=1, steps=2)]
    Diary.told = {}
    records = {record.run_id: record for record in run_pack(cells, 2)}
    assert Diary.told[cells[0].run_id] == [1, 2, "done"] and len(records) == 2
    assert [score["strength"] for score in records[cells[0].run_id].scores] == [1.0, 0.5]


def test_what_cannot_be_drawn_together_is_drawn_alone(tmp_path, monkeypatch):
    cells = [a_cell(tmp_path, seed=i, steps=1) for i in range(2)]
    drawn = sample.drawn

    def no_more_than_one(bank, requests, *args):
        if len(requests) > 1:
            raise RuntimeError("out of memory")
        return drawn(bank, requests, *args)

    monkeypatch.setattr(sample, "drawn", no_more_than_one)
    assert [record.status for record in run_pack(cells, 2)] == ["done", "done"]


def test_cells_that_cannot_go_on_together_go_on_by_halves(tmp_path, monkeypatch, caplog):
    """Five slots fail in the fourth backward pass, two never do."""
    cells, backward, passes = [a_cell(tmp_path, seed=i) for i in range(5)], Bank.backward, []

    def no_more_than_two(bank, loss):
        passes.append(bank.cells)
        if bank.cells > 2 and len(passes) > 3:
            raise torch.OutOfMemoryError("too much")
        backward(bank, loss)

    monkeypatch.setattr(Bank, "backward", no_more_than_two)
    records = run_pack(cells, 5)
    assert "5 cells could not go on together (too much); from here 2 at a time" in caplog.text
    assert set(passes) == {5, 2} and [record.status for record in records] == ["done"] * 5
    for cell in cells:
        log = (tmp_path / cell.run_id / "log.csv").read_text().splitlines()
        assert [line.split(",")[0] for line in log[1:]] == [str(k + 1) for k in range(STEPS)]
    one = replace(cells[4], results=tmp_path / "alone")
    run(one)
    torch.testing.assert_close(adapters(cells[4]), adapters(one), rtol=0, atol=1e-7)


def test_a_failure_of_one_alone_is_its_own(tmp_path, monkeypatch):
    def too_much(bank, loss):
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(Bank, "backward", too_much)
    assert [record.reason for record in run_pack([a_cell(tmp_path)], 2)] == ["OutOfMemoryError: too much"]


def test_cells_are_grouped_by_what_adapters_look_like(tmp_path):
    cells = [
        a_cell(tmp_path, seed, lr=lr, dataset=name)
        for name in ("blueprint", "duotone")
        for seed, lr in ((0, 1), (1, 2))
    ]
    wide = replace(cells[0], method=cells[0].method | {"where": "all"})
    other = in_float32(cells[0])
    assert packs([*cells, wide, other]) == [cells, [wide], [other]]
    assert packs([wide, *cells], 3) == [[wide], cells[:3], cells[3:]]


@pytest.mark.parametrize("requested", ["many", 0, -1])
def test_a_size_that_means_nothing_is_told(tmp_path, requested):
    with pytest.raises(BenchError, match=f"pack={requested} was requested; type pack=auto or a number"):
        run_pack([], requested)


@pytest.mark.parametrize(
    "rates, most, best",
    [
        ({1: 10, 2: 15, 4: 15.2}, 16, 2),
        ({1: 10, 2: 10}, 16, 1),
        ({1: 1, 2: 2, 4: 4}, 7, 4),
        ({1: 1, 2: math.inf}, 2, 2),
    ],
)
def test_the_probe_doubles_while_it_pays(tmp_path, monkeypatch, rates, most, best):
    probe._known.clear()
    monkeypatch.setattr(probe, "_rate", lambda work, job, size: (rates[size], True))
    made = Work(a_cell(tmp_path, steps=1000), tmp_path)
    assert probe.best_size(made, most) == best
    monkeypatch.setattr(probe, "_rate", None)
    assert probe.best_size(made, most) == best  # once per kind of cell


def test_the_probe_measures_a_step_of_all_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "SECONDS", 0)
    made = Work(a_cell(tmp_path, steps=100), tmp_path)
    Backbone.passes = 0
    rate, fits = probe._rate(made, replace(training_job(made), checkpoint=None), 3)
    assert 0 < rate < math.inf and fits
    assert Backbone.passes == 3 * (1 + probe.TICKS)  # two asks with gradients and one without in each step
    assert list(tmp_path.iterdir()) == [] and not any(m._forward_hooks for m in made.backbone.network.modules())


def test_a_seat_that_is_taken_again_starts_anew():
    """A bank whose slot was used, against a new one."""
    backbone, specs = TinyBackbone(), TwoPhase(None, where="all").adapters(None)
    used, new = Bank(backbone, specs, [generator(1), generator(2)]), Bank(backbone, specs, [generator(3)])
    for theta in used.theta.values():
        theta.fill_(math.nan)
    used.start(1, generator(3))
    for name in specs:
        assert torch.equal(used.row(name, 1), new.row(name, 0)) and used.row(name, 0).isnan().all()
    used.close(), new.close()
