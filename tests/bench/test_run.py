"""A whole cell on the embedded backbone, small: done, shown again, extended, skipped, failed, killed and resumed."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from safetensors import safe_open

from bench.analysis import frames, plain_text
from bench.compose import cell, register_datasets
from bench.contracts import BenchError, Recipe
from bench.data.images import stored
from bench.errors import Unavailable
from bench.paths import CONF
from bench.run import run
from bench.settings import build
from bench.steps.work import Work
from bench.store.record import Store, dumps

ROOT = Path(__file__).parents[2]
SMALL = [
    "sampler.steps=3",
    "dataset.prompts=[a photo of a red tree on a beach,a photo of a white cup in the snow]",
    "trainer.prior_images=2",
    "tracker=none",
    "~metrics.fid",
    "~metrics.kid",
    "~metrics.cmmd",
    "~metrics.prdc",
]
RECIPE_KEYS = [entry.name for entry in fields(Recipe)]
PAIR = ["method=pair", "method.recipe.steps=6", "method.content_steps=2", "dataset=blueprint"]


def composed(results, *overrides):
    register_datasets()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return cell(compose("config", [*SMALL, f"results={results}", *overrides]))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def done(results):
    return run(composed(results, *PAIR))


def forbidden(*args, **kwargs):
    raise AssertionError("this was done already")


def values(record, strength=3.0):
    return {entry["metric"]: entry["value"] for entry in record.scores if entry["strength"] == strength}


def test_a_cell_leaves_all_that_it_should(done, results):
    folder = results / done.run_id
    assert done.status == "done" and done.reason is None and done.run_id.startswith("pair-blueprint-mini-s0-")
    assert {"adapters", "config.yaml", "grid.png", "images", "log.csv", "per_image.csv", "record.json"} == {
        path.name for path in folder.iterdir()
    }
    names = ["000-s0", "000-s1", "001-s0", "001-s1"]
    assert stored(folder / "images" / "strength=3", names).shape == (4, 3, 64, 64)
    log = (folder / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["step", "1", "2", "3", "4", "5", "6"]
    assert [len(line.split(",")[2].split()) for line in log[1:]] == [1, 1, 2, 2, 2, 2]
    assert {"clip_t", "lpips_leak", "gap_closed_rgb"} <= set(values(done))
    assert done.cost["trainable_parameters"] > 0 and done.cost["adapter_bytes"] > 0 and done.cost["train_s"] > 0
    assert any("times 30" in note for note in done.notes)
    assert done.provenance["weights_hash"] == done.config["backbone"]["weights"]


def test_adapters_go_to_the_layers_that_stand_for_the_named_ones(done, results):
    assert "adapters for attention go to attention_conv on this backbone" in done.notes
    with safe_open(results / done.run_id / "adapters" / "style.safetensors", "np") as file:
        names = set(file.keys())
    assert "unet.up_blocks.1.resnets.1.conv2.lora_A.weight" in names
    assert not [name for name in names if "conv_shortcut" in name or ".ff." in name]
    own = Work(composed(results, *PAIR, "~trainer.where.attention"), results / "unused")
    assert {spec.where for spec in own.specs().values()} == {"attention"} and not own.notes


def test_a_finished_cell_is_shown_not_done_again(done, results, monkeypatch):
    monkeypatch.setattr("bench.run.run_together", forbidden)
    monkeypatch.setattr("bench.steps.identify.extend", forbidden)
    again = run(composed(results, *PAIR))
    assert dumps(again) == dumps(done)


def test_another_strength_is_sampled_from_the_stored_adapter(done, results, monkeypatch):
    monkeypatch.setattr("bench.steps.slots.training_job", forbidden)
    more = run(composed(results, *PAIR, "strength=[3,0]"))
    folder, names = results / done.run_id / "images", ["000-s0", "000-s1", "001-s0", "001-s1"]
    assert str(values(more)) == str(values(done)) and set(values(more, 0.0)) == set(values(done))
    assert values(more, 0.0)["lpips_content"] == 0  # style guidance 0 is the backbone
    assert not np.array_equal(stored(folder / "strength=3", names), stored(folder / "strength=0", names))
    rows = frames.wide(frames.frame([more]))
    assert sorted(rows.strength) == [0.0, 3.0]


def test_another_metric_scores_stored_images_without_decoding_known_files(done, results, monkeypatch):
    before = Store(results).read(done.run_id)
    for work in ("bench.steps.sample.drawn", "bench.data.images.load_image", "metrics.networks.OpenClip.forward"):
        monkeypatch.setattr(work, forbidden)
    more = run(composed(results, *PAIR, "+metrics.again=${metrics.clip_score}"))
    assert str([entry for entry in more.scores if entry["group"] != "again"]) == str(before.scores)

    def of(group):
        return [e["value"] for e in more.scores if (e["group"], e["strength"]) == (group, 3.0)]

    assert of("again") == of("clip_score") and len(of("again")) >= 2


@pytest.mark.parametrize("method", ["dreambooth", "zero_shot"])
def test_the_other_methods_run_on_a_style(results, method):
    steps = ["method.recipe.steps=3"] if method == "dreambooth" else []
    record = run(composed(results, f"method={method}", "dataset=blueprint", *steps))
    assert record.status == "done", record.reason
    assert ("train_s" in record.cost) == (method == "dreambooth")


@pytest.mark.skipif("BENCH_MIRROR" not in os.environ, reason="the photographs lie in no offline mirror (BENCH_MIRROR)")
def test_real_photographs(results):
    subject = "dataset=dreambooth/duck_toy"
    prompts = ["dataset.prompts=[a toy on the beach]", "dataset.seeds=[0]"]
    dreambooth = run(composed(results, "method=dreambooth", subject, "method.recipe.steps=3", *prompts))
    assert dreambooth.status == "done", dreambooth.reason
    poster = run(composed(results, *PAIR[:3], "dataset=poster_duck", *prompts))
    assert poster.status == "done", poster.reason
    pair = run(composed(results, "method=pair", subject, *prompts))
    assert pair.status == "skipped" and pair.reason.startswith("Method pair needs pairs; dataset dreambooth/duck_toy")
    assert "pair" in plain_text.render(frames.wide(frames.frame([pair]))) and "needs pairs" in plain_text.render(
        frames.wide(frames.frame([pair]))
    )


def test_a_loss_that_is_not_finite_fails_its_cell_with_the_step(results):
    record = run(composed(results, *PAIR, "method.recipe.lr=1e30"))
    assert record.status == "failed" and "in step 2 of 6; lower the learning rate" in record.reason
    assert run(composed(results, *PAIR, "method.recipe.lr=1e30")).reason == record.reason


@pytest.mark.parametrize(
    "words, said",
    [
        ("method.recipe.batch_size=0", "A recipe of 6 steps of 0 examples was requested; type at least 1 of each."),
        ("sampler.steps=0", "A sampler of 0 steps and 16 images at once was requested; type at least 1."),
        ("+method.recipe.rate=2", f"method.recipe.rate was requested; method.recipe knows {', '.join(RECIPE_KEYS)}."),
    ],
)
def test_a_setting_that_cannot_be_meant_stops_the_cell_before_it_trains(results, monkeypatch, words, said):
    monkeypatch.setattr(Work, "backbone", property(forbidden))
    record = run(composed(results, *PAIR, words))
    assert (record.status, record.reason) == ("failed", said)


@pytest.mark.parametrize(
    "words, said",
    [
        ("method.recipe.steps=1e3", "method.recipe.steps=1000.0 was requested; it takes a whole number."),
        ("sampler.start_t=late", "sampler.start_t=late was requested; it takes a number or null."),
        ("trainer.lr_scale=high", "trainer.lr_scale=high was requested; it takes a number."),
        ("trainer.prior_images=2.5", "trainer.prior_images=2.5 was requested; it takes a whole number or null."),
        ("sampler.cfg=true", "sampler.cfg=True was requested; it takes a number."),
    ],
)
def test_a_setting_of_a_wrong_type_leaves_no_record(tmp_path, words, said):
    with pytest.raises(BenchError, match=f"^{re.escape(said)}$"):
        composed(tmp_path, *PAIR, words)
    assert not list(tmp_path.iterdir())


def test_a_key_that_a_plain_class_does_not_know_is_named():
    with pytest.raises(BenchError, match=r"^metrics\.vendi\.spread was requested; metrics\.vendi knows network\.$"):
        build({"_target_": "metrics.vendi.Vendi", "network": None, "spread": 2}, "metrics.vendi")


def test_a_seed_and_a_strength_are_numbers(results):
    with pytest.raises(BenchError, match="seed=a was requested; type a whole number, with -m several: seed=0,1,2"):
        composed(results, "seed=a")
    with pytest.raises(BenchError, match=r"strength=high was requested; type a number, strength=\[1,2\] or sweep"):
        composed(results, "strength=high")


def test_weights_of_a_metric_that_are_missing_stop_the_cell_before_it_trains(results, monkeypatch):
    monkeypatch.setattr("bench.steps.slots.training_job", forbidden)
    asked = composed(results, *PAIR, "metrics=sd", "seed=5")
    with pytest.raises(Unavailable, match="missing_metrics=skip"):
        run(asked)
    assert Store(results).read(asked.run_id) is None


def test_weights_of_a_metric_that_are_missing_can_be_passed_over(results):
    record = run(composed(results, "method=zero_shot", "dataset=ink", "metrics=sd", "missing_metrics=skip"))
    assert record.status == "done", record.reason
    assert record.notes and all("left out" in note for note in record.notes)


def test_a_prompt_longer_than_the_text_encoder_is_reported(results):
    long = " ".join(["a photo of a red tree on a beach"] * 8)
    record = run(composed(results, "method=zero_shot", "dataset=ink", f"dataset.prompts=[{long}]"))
    assert record.status == "done" and any(note.startswith("prompt cut by") for note in record.notes)


def test_a_killed_cell_goes_on_and_ends_at_the_same_bits(results, tmp_path):
    """SIGKILL in the middle of training; the calm cell is trained in another folder."""
    overrides = [*PAIR, "method.recipe.steps=16", "seed=3"]
    program = "import bench.training.trainer as trainer, runpy, sys; trainer.CHECKPOINT_SHARE = 1e9; "
    program += "sys.argv[0] = 'bench'; "
    program += "runpy.run_module('bench', run_name='__main__')"
    arguments = [*SMALL, f"results={tmp_path}", *overrides]
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, *arguments], cwd=ROOT, stderr=-3, stdout=-3
    )
    (log,) = wait_for(lambda: [path for path in tmp_path.glob(".work/*/log.csv") if path.read_text().count("\n") > 6])
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert list(Store(tmp_path).records()) == [] and (log.parent / "checkpoint.safetensors").is_file()
    killed_at = log.read_text().count("\n") - 1
    assert killed_at < 16, "the child finished before it was killed"
    resumed, calm = run(composed(tmp_path, *overrides)), run(composed(results, *overrides))
    assert resumed.status == calm.status == "done" and resumed.cost["steps"] < 16
    for file in (
        "adapters/style.safetensors",
        "adapters/content.safetensors",
        "images/strength=3/001-s1.png",
        "log.csv",
    ):
        assert (tmp_path / resumed.run_id / file).read_bytes() == (results / calm.run_id / file).read_bytes(), file


def wait_for(found, seconds=120):
    for _ in range(seconds * 20):
        if result := found():
            return result
        time.sleep(0.05)
    raise AssertionError("nothing came")


def command(*arguments):
    done = subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_what_cannot_be_meant_is_said_on_the_command_line():
    code, said = command("method=nope")
    assert code != 0 and "nope" in said and "zero_shot" in said
    code, said = command("method.rnk=3")
    assert code != 0 and "rnk" in said and "Traceback" not in said


def test_two_processes_cannot_work_on_one_cell(results):
    waiting = composed(results, *PAIR, "seed=9")
    store = Store(results)
    store.work(waiting.run_id)
    with pytest.raises(BenchError, match="is being worked on by process"):
        run(waiting)
    store.release(waiting.run_id)
