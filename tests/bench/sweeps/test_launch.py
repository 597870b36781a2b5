"""From a command line to statuses: composed once, launched by any launcher, ended with all failures and code 1."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from light import events, light_cell, submitted

from bench.analysis import frames, settings_in_words
from bench.compose import cell, cells, register_datasets
from bench.contracts import BenchError
from bench.paths import CONF
from bench.store.record import Record
from bench.sweeps import launch, local, pool
from bench.sweeps.settings import settings
from bench.sweeps.sweep import Sweep, sweeps

ROOT = Path(__file__).parents[3]
LIGHT = ["sweep.runner=light.run_light", "sweep.poll_s=0.05", "tracker=none", "metrics=mini"]


def command(results, *words, common=LIGHT, **options):
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    line = [sys.executable, "-m", "bench", "-m", f"results={results}", *common, *words]
    return subprocess.Popen(
        line, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def said(results, *words):
    process = command(results, *words)
    text = process.communicate(timeout=120)[0]
    return process.returncode, text


# --- composing


@pytest.fixture
def composer():
    register_datasets()
    calls = []

    def composed(words):
        calls.append(words)
        return compose("config", words)

    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield composed, calls


def test_cells_composed_once_are_those_composed_each(composer):
    composed, calls = composer
    words = [[f"method={m}", f"seed={seed}", "strength=2"] for m in ("zero_shot", "oracle") for seed in range(2)]
    made = cells(words, composed)
    assert len(calls) == 2
    alone = [cell(composed(list(one))) for one in words]
    assert made == alone and [one.run_id for one in made] == [one.run_id for one in alone]


def test_settings_that_depend_on_the_seed_are_composed_each(composer):
    composed, calls = composer
    words = [["method=zero_shot", f"seed={seed}", "group=s${seed}"] for seed in range(2)]
    assert [one.group for one in cells(words, composed)] == ["s0", "s1"] and len(calls) == 2


def test_no_setting_of_a_sweep_is_in_a_run_id(composer):
    composed, _ = composer
    words = ["pack=3", "workers=7", "plan=true", "wait=false", "mix_code=true", "sweep.attempts=9"]
    plain, set_ = composed(["method=zero_shot"]), composed(["method=zero_shot", *words])
    assert replace(cell(set_), pack=cell(plain).pack) == cell(plain) and cell(plain).run_id == cell(set_).run_id
    found = settings(set_)
    assert (found.pack, found.workers, found.plan, found.wait, found.attempts) == (3, 7, True, False, 9)


def test_a_number_is_the_same_setting_however_it_is_written(composer):
    composed, _ = composer
    written = ("seed=0", "method.prior_weight=1", "trainer.lr_scale=30")
    plain, *others = [cell(composed(["method=dreambooth", word])) for word in written]
    assert {other.run_id for other in others} == {plain.run_id}
    assert cell(composed(["method=dreambooth", "method.prior_weight=2"])).run_id != plain.run_id
    records = [Record(one.run_id, "done", config=one.identity) for one in (plain, *others)]
    assert frames.frame(records).settings.nunique() == 1
    assert not any(settings_in_words._differences([one.identity for one in (plain, *others)]))


# --- launching


def test_a_sweep_in_this_process(tmp_path):
    code, text = said(tmp_path, "method=zero_shot", "dataset=ink", "seed=0,1")
    assert code == 0 and "2 to run" in text and "2 done" in text, text
    assert len(events(tmp_path, "ended")) == 2


def test_finished_cells_are_judged_by_the_rules_that_a_later_sweep_asks_for(tmp_path, composer, capsys):
    composed, _ = composer
    for rules in ("open", "mini"):
        words = ["method=zero_shot", "dataset=ink", "seed=0", "sampler.cfg=2.0", f"fairness={rules}"]
        config = composed([f"results={tmp_path}", *LIGHT, *words])
        launch.launch([cell(config)], settings(config), "packed", {})
    (path,) = tmp_path.glob("zero_shot-*/record.json")
    assert "1 finished" in capsys.readouterr().out
    assert "fairness: sampler.cfg is 2.0 instead of 4.0" in path.read_text()


@pytest.mark.slow
def test_what_one_launcher_has_done_another_does_not_do_again(tmp_path):
    said(tmp_path, "method=zero_shot", "dataset=ink", "seed=0,1")
    code, text = said(tmp_path, "method=zero_shot", "dataset=ink", "seed=0,1", "hydra/launcher=local")
    assert code == 0 and "0 to run, 2 finished" in text and len(events(tmp_path, "began")) == 2, text


def test_worker_processes_share_a_sweep_and_failures_end_with_code_1(tmp_path):
    code, text = said(tmp_path, "method=zero_shot", "dataset=ink", "seed=0,1,2,3", "+method.does=exit,''",
                      "+method.pause_s=0.05", "hydra/launcher=local", "workers=2")  # fmt: skip
    assert code == 1, text
    assert text.count("failed: zero_shot") == 4 and "SystemExit: bye" in text and "4 done, 4 failed" in text
    made = Sweep(next(sweeps(tmp_path)))
    assert len(made.workers()) >= 2 and not any(one["alive"] for one in made.workers())
    assert len(set(events(tmp_path, "ended"))) == len(events(tmp_path, "ended")) == 4


@pytest.mark.slow
def test_workers_go_on_when_their_submitter_is_killed_and_the_next_one_starts_no_more(tmp_path):
    words = ["method=zero_shot", "dataset=ink", "seed=0,1,2,3", "+method.pause_s=0.1", "+method.recipe.steps=15",
             "hydra/launcher=local", "workers=1"]  # fmt: skip
    first = command(tmp_path, *words)
    deadline = time.monotonic() + 60
    while not events(tmp_path, "began") and time.monotonic() < deadline:
        time.sleep(0.05)
    first.kill()
    first.communicate()
    code, text = said(tmp_path, *words)
    assert code == 0 and "4 done" in text, text
    assert len(Sweep(next(sweeps(tmp_path))).workers()) == 1 and len(events(tmp_path, "began")) == 4


TRAINED = ["method=dreambooth", "method.prior_weight=0", "method.recipe.steps=30", "dataset=ink", "seed=0,1,2,3"]
TRAINED += ["dataset.prompts=[a photo of a red tree on a beach]", "sampler.steps=4", "pack=1", "tracker=none"]
TRAINED += ["metrics=mini_truth", "hydra/launcher=local", "workers=1", "sweep.attempts=9", "sweep.poll_s=0.1"]


@pytest.mark.slow
def test_trained_cells_whose_workers_are_killed_are_those_of_a_calm_sweep(tmp_path):
    """Real training of `mini` in worker processes: adapters, images and scores agree bit for bit."""
    rng, killed = random.Random(0), set()
    calm, wild = (command(tmp_path / name, common=TRAINED) for name in ("calm", "wild"))
    with calm, wild:
        while wild.poll() is None:
            time.sleep(0.1)
            for one in (w for made in sweeps(tmp_path / "wild") for w in Sweep(made).workers() if w["alive"]):
                begun = [cell for cell in one["cells"] if any((tmp_path / "wild" / ".work" / cell).glob("*"))]
                if begun and len(killed) < 2 and not killed.issuperset(begun):
                    time.sleep(rng.uniform(0, 8))
                    with suppress(ProcessLookupError):  # it may be through
                        os.kill(one["pid"], signal.SIGKILL)
                    killed |= set(begun)
        assert (calm.wait(300), wild.returncode, len(killed)) == (0, 0, 2), wild.stdout.read()
    for folder in sorted((tmp_path / "calm").glob("dreambooth-*")):
        other = tmp_path / "wild" / folder.name
        for name in ("adapters/style.safetensors", *(f.relative_to(folder) for f in folder.rglob("*.png"))):
            assert (folder / name).read_bytes() == (other / name).read_bytes(), name
        one, two = (json.loads((f / "record.json").read_text())["scores"] for f in (folder, other))
        assert one == two and len(one) > 0


@pytest.mark.slow
def test_wait_false_leaves_and_tells_how_to_look_and_to_end(tmp_path):
    code, text = said(tmp_path, "method=zero_shot", "dataset=ink", "seed=0,1", "+method.recipe.steps=3",
                      "+method.pause_s=0", "hydra/launcher=local", "workers=1", "wait=false")  # fmt: skip
    assert code == 0 and "1 workers started" in text and "python -m bench.status" in text and "kill " in text
    deadline = time.monotonic() + 60
    while len(events(tmp_path, "ended")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_what_cannot_be_composed_is_said_before_anything_runs(tmp_path):
    code, text = said(tmp_path, "method=zero_shot,nope", "dataset=ink")
    assert code == 1 and "nope" in text and not (tmp_path / ".sweeps").exists()


def test_workers_that_only_come_and_go_are_no_endless_loop(tmp_path):
    made = submitted([light_cell(tmp_path)], poll_s=0.0)

    class Dying(pool.Pool):
        started = 0

        def alive(self):
            return 0

        def start(self, count):
            self.started += count
            (made.folder / "log" / "x.log").write_text("ImportError: no module\n")
            return count

        def to_cancel(self):
            return ""

        def dismiss(self):
            raise AssertionError("nothing was done")

    dying = Dying()
    with pytest.raises(BenchError, match="come and go|without finishing a cell. The last one said, in .*x.log: Import"):
        pool.watch(made, dying, 2)
    assert dying.started == pool.BARREN * 2


def test_gpus_are_those_this_process_may_use(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert local.gpus() == ["3", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.gpus() == []
