"""Settings with a fixed set of values are checked where they enter, before anything is loaded."""

import ast
import copy
import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from bench import choices
from bench.cell import contents
from bench.choices import check_value
from bench.class_source import arguments
from bench.compose import CLASSES, cell, register_datasets
from bench.contracts import BenchError
from bench.fairness import contract
from bench.paths import CONF, ROOT
from bench.settings import _parameters as parameters
from bench.settings import build, check_declared, class_of
from bench.steps.work import LABELS
from bench.store.stored_classes import registered
from bench.sweeps.settings import settings


@functools.cache
def composed(*groups):
    register_datasets()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(groups) or ["tracker=none"])


def config(*overrides):
    """Hydra composes once for each choice of groups; values are laid over that, which is quicker."""
    groups = [override for override in overrides if override.split("=")[0] in ("method", "tracker")]
    with open_dict(copy.deepcopy(composed(*groups))) as made:
        return OmegaConf.merge(made, OmegaConf.from_dotlist([o for o in overrides if o not in groups]))


WRONG = [
    ("mode=anything", "mode=anything was requested; type cached, retry or force."),
    ("mode=Force", "mode=Force was requested"),
    ("mode=true", "mode=True was requested"),
    ("mode=null", "mode=None was requested"),
    ("missing_metrics=none", "missing_metrics=none was requested; type fail or skip."),
    ("pack=many", "pack=many was requested; type auto or a whole number."),
    ("pack=0", "pack=0 was requested; type at least 1."),
    ("pack=true", "pack=True was requested"),
    ("workers=two", "workers=two was requested; it takes a whole number or null."),
    ("workers=-1", "workers=-1 was requested; type at least 1."),
    ("plan=maybe", "plan=maybe was requested; type false, true or probe."),
    ("plan=1", "plan=1 was requested"),
    ("wait=no_thanks", "wait=no_thanks was requested; it takes true or false."),
    ("mix_code=1", "mix_code=1 was requested; it takes true or false."),
    ("backbone.dtype=float", "backbone.dtype=float was requested; type float16, bfloat16, float32 or float64."),
    ("backbone.device=gpu", "backbone.device=gpu was requested; type backbone.device=auto, cpu, mps or cuda"),
    ("backbone.device=meta", "backbone.device=meta was requested"),
    ("backbone.device=null", "backbone.device=None was requested"),
    ("sampler.scheduler=heun", "sampler.scheduler=heun was requested; type ddim, euler, dpm++ or pndm."),
    ("sampler.scheduler=DDIM", "sampler.scheduler=DDIM was requested"),
    ("trainer.compile=sometimes", "trainer.compile=sometimes was requested; type auto, true, false or graphs."),
    ("trainer.compile=1", "trainer.compile=1 was requested"),
]


@pytest.mark.parametrize("override, words", WRONG)
def test_a_value_outside_the_set_is_refused_when_a_cell_is_composed(override, words):
    with pytest.raises(BenchError, match="^" + re.escape(words)):
        cell(config(override))


@pytest.mark.parametrize(
    "override",
    ["mode=retry", "mode=force", "missing_metrics=skip", "pack=3", "workers=2", "plan=probe", "plan=true", "wait=false"]
    + [f"backbone.dtype={name}" for name in get_args(choices.DType)]
    + [f"backbone.device={name}" for name in ("cpu", "cuda", "cuda:1", "auto")]
    + [f"sampler.scheduler={name}" for name in get_args(choices.Scheduler)]
    + [f"trainer.compile={name}" for name in ("auto", "true", "false", "graphs")],
)
def test_every_value_of_the_set_is_taken(override):
    cell(config(override))


def test_a_mode_of_the_tracker_is_checked_and_a_class_of_the_user_s_is_left_to_itself():
    with pytest.raises(BenchError, match="tracker.mode=live was requested; type online, offline or disabled"):
        cell(config("tracker=wandb_offline", "tracker.mode=live"))
    cell(config("tracker=wandb_offline", "tracker.mode=live", "tracker._target_=mine.Tracker"))
    cell(config("backbone.dtype=int4", "backbone._target_=mine.Backbone"))


@pytest.mark.parametrize("override", ["sweep.attempts=some", "sweep.lease_s=long", "sweep.poll_s=true"])
def test_settings_of_a_sweep_are_checked_by_their_types(override):
    key, value = override.split("=")
    with pytest.raises(BenchError, match=f"^{key}=.* was requested; it takes a"):
        settings(config(override))


@pytest.mark.parametrize(
    "override, words",
    [
        ("method.tune=lroa", "method.tune=lroa was requested; type lora or full."),
        ("method.images=pairs", "method.images=pairs was requested; type style, references or null."),
        ("method.recipe.schedule=linear", "method.recipe.schedule=linear was requested; type constant or cosine."),
        ("method=styleforge method.tune=Full", "method.tune=Full was requested; type lora or full."),
        ("method=slider_text method.preserve=all", "method.preserve=all was requested; type sum or random."),
        ("method=ip_adapter method.images=all", "method.images=all was requested; type style, references or null."),
        ("method=ip_adapter method.encoder.features=cls", "method.encoder.features=cls was requested; type pooled or"),
    ],
)
def test_settings_of_methods_are_checked_when_a_cell_is_composed_and_when_the_method_is_built(override, words):
    overrides = config("method=dreambooth", *override.split())
    with pytest.raises(BenchError, match=re.escape(words)):
        cell(overrides)
    method = OmegaConf.to_container(overrides.method)
    with pytest.raises(BenchError, match=re.escape(words)):
        build({key: value for key, value in method.items() if key not in LABELS}, "method")


@pytest.mark.parametrize(
    "rules, words",
    [
        ({"strict": "no"}, "fairness.strict=no was requested; it takes true or false."),
        ({"published_dataset": 1}, "fairness.published_dataset=1 was requested"),
        ({"start_t": "late"}, "fairness.start_t=late was requested"),
        ({"budget": {"steps": "few"}}, "fairness.budget.steps=few was requested"),
        ({"budget": {"step": 3}}, "fairness.budget.step was requested"),
        ({"stric": True}, "fairness.stric was requested"),
        ({"same": {"sampeler": {}}}, "fixes settings of sampeler"),
    ],
)
def test_a_contract_s_values_are_checked(rules, words):
    from dataclasses import replace

    with pytest.raises(BenchError, match=re.escape(words)):
        contract(replace(cell(config()), fairness=rules))


@pytest.mark.parametrize("where", [{"atention": "all"}, {"attention": "conv"}])
def test_a_place_of_adapters_that_matches_nothing_is_refused(where):
    from bench.training.settings import TrainerSettings

    with pytest.raises(BenchError, match="by trainer.where.*; known places are attention, "):
        TrainerSettings(where=where)


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:x", ""])
def test_a_device_of_a_network_is_checked(device):
    from metrics.networks import best_device

    with pytest.raises(BenchError, match=f"device={device} was requested; type device=auto"):
        best_device(device)
    assert str(best_device("auto")) == str(best_device(None))


def test_the_sets_are_those_of_the_code_that_reads_them():
    from bench.backbones.noise_schedule import SCHEDULERS
    from bench.training.compiling import REQUESTED

    assert set(get_args(choices.Scheduler)) == set(SCHEDULERS)
    assert {(type(v), v) for v in get_args(choices.Compile)} == {(type(v), v) for v in REQUESTED}


def test_every_annotation_of_single_values_in_the_sources_is_understood():
    found = 0
    for path in [path for folder in ("bench", "methods", "metrics") for path in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            text = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
            if text.startswith("Literal["):
                with pytest.raises(BenchError):
                    check_value("x", object(), text)
                found += 1
    assert found >= 4


def test_no_comment_of_a_yaml_lists_values_that_are_not_checked():
    """A comment `a | b` behind a setting is a promise: the settings that have one are all refused outside it."""
    promised = set()
    for path in CONF.rglob("*.yaml"):
        for line in path.read_text().splitlines():
            entry = re.match(r"( *)(\w+):\s*\S+\s*#.*\b\w+ \| \w+", line)
            if entry:
                promised.add(entry[2])
    assert promised <= {
        "mode",
        "missing_metrics",
        "dtype",
        "device",
        "scheduler",
        "tune",
        "preserve",
        "where",
        "images",
        "quantize",
        "time_sampling",
        "optimizer",
        "use",
    }
    assert {"mode", "dtype", "scheduler", "tune"} <= promised


def test_annotations_of_other_kinds_allow_everything():
    for annotation in (
        "Mapping[str, Any]",
        "Recipe | None",
        "float | Mapping[str, Any]",
        "'quoted'",
        "tuple[int, ...]",
    ):
        check_value("x", object(), annotation)


def test_the_check_needs_no_torch():
    code = """
import sys
from bench.compose import from_overrides
from bench.errors import BenchError
try:
    from_overrides("method=slider_text", "method.preserve=all")
except BenchError:
    assert not {"torch", "pandas", "numpy", "methods.sliders"} & set(sys.modules)
else:
    raise AssertionError("method.preserve=all was taken")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", [*sorted(registered()), *CLASSES.values()])
def test_what_a_class_takes_as_its_source_says_is_what_python_says(name):
    kind = class_of(name)
    known = {key: one.annotation for key, one in parameters(kind).items() if one.annotation is not one.empty}
    plain = {key: text.replace('"', "'") for key, text in known.items() if isinstance(text, str)}
    found = dict(arguments(name))
    assert {key: found.get(key) for key in plain} == plain and set(found) >= set(plain)


def test_a_class_of_the_user_s_own_is_read_and_not_imported(tmp_path, monkeypatch):
    (tmp_path / "methods").mkdir()
    source = """
from bench.backbones.flux1 import Flux1 as Base
raise SystemExit("it ran")
class Mine(Base):
    def __init__(self, kind: Literal["a", "b"], **options): ...
class Round(Round): ...
"""
    (tmp_path / "methods" / "mine.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    assert arguments("methods.mine.Mine")["kind"] == "Literal['a', 'b']"
    with pytest.raises(BenchError, match="method.kind=c was requested; type a or b"):
        check_declared({"_target_": "methods.mine.Mine", "kind": "c"}, "method")
    with pytest.raises(BenchError, match=r"method.inner.guidance=much was requested; it takes a number"):
        check_declared({"inner": {"_target_": "methods.mine.Mine", "guidance": "much"}}, "method")


SOURCELESS = ["methods.mine.Round", "x", "", "..", "methods.gone.X", "methods", "/dev/zero.x", "a\0.b"]


@pytest.mark.parametrize("name", SOURCELESS)
def test_a_name_without_a_source_allows_everything(tmp_path, monkeypatch, name):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "mine.py").write_text("class Round(Round): ...")
    monkeypatch.chdir(tmp_path)
    assert arguments(name) == {}
    check_declared({"_target_": name, "rank": "x"}, "method")


def test_a_sweep_with_a_wrong_setting_begins_no_cell_and_a_plan_says_it(tmp_path):
    words = ["method=slider_text,dreambooth", "dataset=blueprint", f"results={tmp_path}", "tracker=none"]
    for more in (["-m"], ["-m", "plan=true"]):
        command = [sys.executable, "-m", "bench", *more, *words, "method.rank=x"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "method.rank=x was requested; it takes a whole number" in done.stderr
        assert not list(tmp_path.rglob("record.json")) and not list(tmp_path.glob(".work/*"))


# --- which settings are files ------------------------------------------------------------------------------------


def test_only_settings_that_are_declared_as_files_are_hashed(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"one")
    file, folder = str(tmp_path / "a.bin"), str(tmp_path)
    text = {"token": folder, "note": file, "images": folder, "entries": [{"target": folder}], "profile": file}
    assert contents(text) == {}
    for settings_ in (
        {"file": file},
        {"encoder": {"path": folder}},
        {"compose": [{"file": file, "scale": 1}]},
        {"encoder": {"tokenizer": folder, "text_encoder": None}},
        {"style_file": file},
        {"lora_path": folder},
        {"files": [file]},
    ):
        first = contents({**settings_, **text})
        assert len(first) == 1
        (tmp_path / "a.bin").write_bytes(b"two")
        assert contents(settings_) != first
        (tmp_path / "a.bin").write_bytes(b"one")
    assert contents({"text_encoder": True, "file": None, "path": "", "file_": file}) == {}


def test_every_path_in_our_yamls_stands_under_a_declared_key():
    def paths(value, key=""):
        if isinstance(value, dict):
            return [found for name, item in value.items() for found in paths(item, name)]
        if isinstance(value, list):
            return [found for item in value for found in paths(item, key)]
        return [(key, value)] if isinstance(value, str) and "/" in value and " " not in value else []

    found = [pair for path in (CONF / "method").glob("*.yaml") for pair in paths(yaml.safe_load(path.read_text()))]
    assert {key for key, _ in found} == {"file", "path", "text_encoder", "tokenizer"}
    existing = [(key, value) for key, value in found if Path(ROOT / value).exists()]
    assert existing and all(contents({key: value}) for key, value in existing)
