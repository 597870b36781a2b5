"""Everything that a run lacks is listed at once, with one command that stages it; a plan says the same."""

import shlex

import pytest
from test_run import composed

from bench import fetch
from bench.data.weights import weights
from bench.errors import Unavailable
from bench.run import run
from bench.settings import build
from bench.steps.missing import message, staging_command, without_remedy
from bench.store.record import Store
from bench.sweeps import obstacles, plan
from bench.sweeps.sweep import judge

LACKING = ["method=ip_adapter_sdxl", "dataset=parkhouse", "backbone=sdxl", "metrics=sd_style"]


@pytest.fixture(autouse=True)
def empty_machine(tmp_path, monkeypatch):
    for name in ("BENCH_CACHE", "HF_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("BENCH_MIRROR", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def wanted(cell):
    """Ids of the registry that the cell's metrics name as missing, found metric by metric."""
    metrics = [build(spec, name) for name, spec in cell.metrics.items()]
    said = " ".join(sentence for metric in metrics if (sentence := metric.missing()))
    return {id for id in weights() if f"fetch weights {id}," in said}


def test_one_error_lists_all_that_a_run_lacks_with_one_command(tmp_path):
    cell = composed(tmp_path, *LACKING)
    with pytest.raises(Unavailable) as told:
        run(cell)
    text = str(told.value)
    ids = wanted(cell)
    assert len(ids) >= 6 and "dataset parkhouse needs" in text and "h94/IP-Adapter/sdxl_models" in text
    assert all(f"the weights {id} (" in text for id in ids)
    assert "stabilityai/stable-diffusion-xl-base-1.0" in text and "missing_metrics=skip" in text
    assert text.count("To stage them all, type python -m bench.fetch parkhouse weights ") == 1
    assert Store(tmp_path).read(cell.run_id) is None


def test_the_command_asks_for_exactly_what_is_missing(tmp_path):
    cell = composed(tmp_path, *LACKING)
    with pytest.raises(Unavailable) as told:
        run(cell)
    line = str(told.value).partition("To stage them all, type ")[2].splitlines()[0]
    first, *others = line.split(" && ")
    words = shlex.split(first)
    assert words[:3] == ["python", "-m", "bench.fetch"]
    tasks = {(task.__name__, name) for task, name in fetch._tasks(words[3:])}
    assert tasks == {("fetch_dataset", "parkhouse"), *(("fetch_weights", id) for id in wanted(cell))}
    assert {shlex.split(other)[0] for other in others} == {"hf", "uv"}


def test_without_metrics_only_the_rest_is_listed(tmp_path):
    cell = composed(tmp_path, *LACKING, "missing_metrics=skip")
    with pytest.raises(Unavailable) as told:
        run(cell)
    assert "clip_vit" not in str(told.value) and str(told.value).startswith("3 things are missing")


def test_a_plan_says_each_thing_once_with_the_number_of_cells(tmp_path):
    cells = [composed(tmp_path, *LACKING, f"seed={seed}") for seed in range(2)]
    cells += [composed(tmp_path, "method=pair", "dataset=dreambooth/dog", "backbone=sdxl", "metrics=sd_style")]
    statuses = judge(cells)
    found = obstacles.obstacles(statuses.todo)
    text = plan.text(cells, statuses, found, plan.Forecast(), None, 1)
    assert "0 to run, 3 stopped by what is missing" in text
    assert "missing: 2 cells: dataset parkhouse needs" in text and "missing: 1 cells: dataset dreambooth/dog" in text
    lines = [line for line in text.splitlines() if "the weights clip_vit_b32_openai" in line]
    assert len(lines) == 1 and "missing: 3 cells" in lines[0]
    assert "to stage everything: python -m bench.fetch parkhouse dreambooth/dog weights " in text


def test_a_single_thing_keeps_its_own_sentence(tmp_path):
    cell = composed(tmp_path, "method=zero_shot", "dataset=parkhouse")
    with pytest.raises(Unavailable, match="dataset parkhouse needs 10 files.*; type python -m bench.fetch parkhouse"):
        run(cell)
    assert message(["one; type this."]) == "one; type this."


def test_sentences_lose_their_remedies_alone():
    assert without_remedy("the weights x are not here; type python -m bench.fetch weights x, or y.") == (
        "the weights x are not here"
    )
    assert staging_command(["a; type python -m bench.fetch dreambooth/dog where", "b; uv pip install dreamsim."]) == (
        "python -m bench.fetch dreambooth/dog && uv pip install dreamsim"
    )
