"""Small things that users meet: output that is cut or cannot be written, settings that count nothing, schedulers with
too few steps, a stopped cell, variables of a job around ours, checkpoints in one file.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from finished_cells import finished
from random_pipelines import NOISE
from test_run import PAIR, composed

from bench import backbones
from bench.backbones.noise_schedule import SCHEDULERS, NoiseSchedule
from bench.contracts import BenchError, Recipe
from bench.environment import INTERRUPTED, one_sentence
from bench.files import check_place
from bench.store.record import Store
from bench.track import Wandb
from methods.dreambooth import DreamBooth
from methods.pair import PairCustomization
from methods.sliders import TextualSlider, VisualSlider
from methods.taming import TamingStyle

ROOT = Path(__file__).parents[2]
RECIPE = Recipe(steps=1, lr=1e-3)


def command(*words, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", *words], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )  # fmt: skip


# --- output


def test_a_reader_that_has_read_enough_ends_the_table_quietly(tmp_path):
    for i in range(3):
        finished(tmp_path, f"seed={i}")
    line = f"{sys.executable} -m bench.table --results {tmp_path} --by runs --metrics all | head -c 1"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, text=True, capture_output=True)
    assert (len(done.stdout), done.stderr) == (1, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_that_does_not_know_a_letter_gets_its_number(encoding, capsys):
    process = subprocess.run(
        [sys.executable, "-c", "from bench.environment import one_sentence\nwith one_sentence('x'): print('a → b ☃')"],
        cwd=ROOT, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert (process.returncode, process.stdout.strip()) == (0, rb"a \u2192 b \u2603")


@pytest.mark.parametrize("kind", ["csv", "parquet", "markdown", "latex", "html"])
def test_a_table_into_no_folder_is_refused_before_the_work(tmp_path, kind, monkeypatch):
    from bench import table

    monkeypatch.setattr(table, "load", lambda results: pytest.fail("records were read"))
    with pytest.raises(BenchError, match=f"--{kind} .*does not exist; give a file in a folder that exists"):
        table.main(["--results", str(tmp_path), f"--{kind}", str(tmp_path / "no" / "table")])
    with pytest.raises(BenchError, match="is a folder"):
        check_place("--csv", tmp_path)


# --- settings


@pytest.mark.parametrize(
    "made",
    [
        lambda: DreamBooth(RECIPE, class_images=0),
        lambda: TamingStyle(None, RECIPE, class_images=0),
        lambda: TamingStyle(None, RECIPE, tokens=0),
        lambda: TextualSlider(RECIPE, rollout_steps=1),
        lambda: VisualSlider(RECIPE, stride=0),
        lambda: Recipe(steps=0, lr=1e-3),
    ],
    ids=["class_images", "taming", "tokens", "rollout_steps", "stride", "steps"],
)
def test_a_count_of_nothing_is_refused(made):
    with pytest.raises(BenchError, match="at least [12]"):
        made()


def test_without_prior_preservation_no_class_images_are_needed():
    assert DreamBooth(RECIPE, class_images=0, prior_weight=0).prior(None) is None


@pytest.mark.parametrize("kind", [VisualSlider, TextualSlider])
@pytest.mark.parametrize(
    ("entry", "words"),
    [({"file": "x"}, "lacks scale"), ({"file": "x", "scale": 1, "rank": 4}, "has rank, which has no")],
)
def test_sliders_to_compose_say_file_and_scale(kind, entry, words):
    with pytest.raises(BenchError, match=rf"method.compose\[0\] {words}.*give file, scale and nothing else"):
        kind(RECIPE, compose=[entry])


def test_styles_to_blend_say_file_words_and_strength():
    with pytest.raises(BenchError, match=r"method.blend\[0\] lacks strength"):
        PairCustomization(RECIPE, blend=[{"file": "x", "style_words": "in ink"}])


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("config", [{**NOISE, "skip_prk_steps": True}, NOISE], ids=["sd", "plain"])
def test_every_scheduler_draws_in_few_steps_or_says_that_it_cannot(name, config):
    schedule = NoiseSchedule({**config, "_class_name": "DDIMScheduler"})
    drew = 0
    for steps in (*range(1, 11), 25):
        try:
            scheduler = schedule.scheduler(name, steps)
        except BenchError as error:
            assert f"{steps} sampling steps" in str(error) and name == "pndm" and steps < 4
            continue
        z = torch.ones(1, 4, 2, 2) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            z = scheduler.step(torch.ones_like(z) * 0.1, t, scheduler.scale_model_input(z, t)).prev_sample
        assert z.isfinite().all()
        drew += 1
    assert drew >= 8


# --- a cell that is stopped


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_cell_says_one_line_and_goes_on(tmp_path, number):
    words = ["bench", "method=dreambooth", "dataset=blueprint", "tracker=none", f"results={tmp_path}"]
    words += ["dataset.prompts=[a photo of a red tree]", "dataset.seeds=[0]", "method.recipe.steps=60"]
    words += ["method.class_images=2"]
    process = command(*words)
    until = time.monotonic() + 120
    while time.monotonic() < until and not list(tmp_path.glob(".work/*/log.csv")):
        time.sleep(0.2)
    process.send_signal(number)
    out, said = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED and "Traceback" not in said + out
    assert "Stopped; what was begun is kept" in said
    (work,) = [path for path in tmp_path.glob(".work/*") if path.is_dir()]
    assert (work / "checkpoint.safetensors").is_file() and Store(tmp_path).read(work.name) is None
    again = command(*words)
    out, said = again.communicate(timeout=300)
    assert again.returncode == 0 and Store(tmp_path).read(work.name).status == "done", said


def test_a_command_that_ctrl_c_ends_says_so(capsys):
    with pytest.raises(SystemExit) as ended, one_sentence("bench.table"):
        raise KeyboardInterrupt
    assert ended.value.code == INTERRUPTED and capsys.readouterr().err == "bench.table: stopped.\n"


# --- variables of a job around ours


def test_each_cell_is_its_own_run_whatever_the_environment_says(tmp_path, monkeypatch):
    for name in ("WANDB_RUN_ID", "WANDB_NAME"):
        monkeypatch.setenv(name, "outerjob1")
    monkeypatch.setenv("WANDB_MODE", "")
    ids = []
    for cell in ("a", "b"):
        tracker = Wandb(mode="offline", folder=str(tmp_path))
        tracker.start(cell, {})
        assert not tracker.broken and tracker.run.name == cell
        ids.append(tracker.run.id)
        tracker.finish("done")
    assert len(set(ids)) == 2 and "outerjob1" not in ids


# --- weights


def folder_of(tmp_path, *names):
    part = tmp_path / "model" / "unet"
    part.mkdir(parents=True)
    (part / "config.json").write_text("{}")
    for name in names:
        (part / name).write_bytes(name.encode())
    return tmp_path / "model"


def test_the_identity_of_weights_is_that_of_the_files_that_are_read(tmp_path):
    plain, half = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"
    model = folder_of(tmp_path, plain)
    before = backbones.identity({"path": str(model)})
    (model / "unet" / half).write_bytes(b"half")
    (model / "README.md").write_text("words")
    (model / "unet" / "notes.txt.bak").write_text("words")
    assert backbones.identity({"path": str(model)}) == before
    other = backbones.identity({"path": str(model), "variant": "fp16"})
    (model / "unet" / plain).write_bytes(b"changed")
    assert backbones.identity({"path": str(model)}) != before
    assert backbones.identity({"path": str(model), "variant": "fp16"}) == other


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_a_single_file_checkpoint_is_named_with_the_way_to_convert_it(tmp_path, name):
    (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(BenchError, match="single-file checkpoint.*from_single_file.*backbone.path=<folder>"):
        backbones.resolve(str(tmp_path / name))


def test_a_run_of_one_cell_hears_a_wish_to_stop(tmp_path):
    from bench.errors import Stopped
    from bench.run import run

    with pytest.raises(Stopped):
        run(composed(tmp_path, *PAIR, "dataset.prompts=[a red tree]", "dataset.seeds=[0]"), lambda: True)


# --- texts that a spreadsheet would run


ODD = [
    "=HYPERLINK(1)",
    "+1",
    "-2",
    "@x",
    "\tx",
    "\rx",
    "'=1",
    "''=1",
    "'quoted",
    "plain",
    "",
    "NA",
    "null",
    'a, "b"\nc',
]


@pytest.mark.parametrize("text", ODD)
def test_a_text_is_read_back_as_it_was_and_is_no_formula(text):
    from bench import reading

    written = reading.escaped(text)
    assert reading.unescaped(written) == text
    assert not written.startswith(reading.FORMULAS)


def test_prompts_of_per_image_values_come_back_through_both_readers(tmp_path):
    import pandas as pd

    from bench import reading
    from bench.analysis import frames
    from bench.steps.score import _csv

    folder = finished(tmp_path)
    prompts = [text for text in ODD if text]
    lines = pd.DataFrame({"strength": 1.0, "prompt": prompts, "seed": range(len(prompts)), "m": -0.5})
    (folder / "per_image.csv").write_bytes(_csv(lines.set_index(reading.INDEX)))
    assert list(reading.per_image(folder / "per_image.csv").prompt) == prompts
    assert list(frames.images(tmp_path).sort_values("image_seed").prompt) == prompts
    raw = (folder / "per_image.csv").read_text()
    assert "'=HYPERLINK(1)" in raw and "-0.5" in raw and "'-0.5" not in raw


def test_tables_that_are_written_hold_no_formula(tmp_path):
    import pandas as pd

    from bench.table import write

    write(pd.DataFrame({"method": ["=1+1", "pair"], "-value": [-1.0, 2.0]}), tmp_path / "t.csv", None)
    assert (tmp_path / "t.csv").read_text().splitlines() == ["method,'-value", "'=1+1,-1.0", "pair,2.0"]


@pytest.mark.parametrize("size", [100, None])
def test_a_download_that_is_larger_than_expected_is_thrown_away(tmp_path, monkeypatch, size):
    from bench.data import download

    monkeypatch.setattr(download, "MOST", 1000)
    (tmp_path / "source").write_bytes(b"x" * 5000)
    part = tmp_path / "file.part"
    with pytest.raises(BenchError, match="at most .* are expected; what came was thrown away"):
        download.download((tmp_path / "source").as_uri(), part, "file", 0, size)
    assert not part.exists()
    (tmp_path / "source").write_bytes(b"x" * (size or 1000))
    download.download((tmp_path / "source").as_uri(), part, "file", 0, size)
    assert part.stat().st_size == (size or 1000)
