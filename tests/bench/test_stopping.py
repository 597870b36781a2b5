"""A signal to leave is heard between two batches and two metrics, and the same command goes on to the same images."""

import itertools

import pytest
from test_run import PAIR, composed

from bench.data.images import stored
from bench.run import run, run_together
from bench.steps.identify import begin
from bench.store.record import Store

SHORT = ["method.recipe.steps=2", "method.content_steps=1", "dataset.prompts=[a photo of a red tree]"]
SHORT += ["dataset.seeds=[0,1,2]", "sampler.batch=1", "dataset.controls=[]"]
NAMES = [f"000-s{seed}" for seed in range(3)]


def cell_in(results):
    return composed(results, *PAIR, *SHORT)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """Images of a cell that nothing disturbed."""
    results = tmp_path_factory.mktemp("calm")
    return stored(results / run(cell_in(results)).run_id / "images" / "strength=3", NAMES)[:]


@pytest.mark.parametrize(
    "place, after",
    [("bench.sampling.sampler._chunk", 1), ("bench.sampling.sampler._chunk", 2), ("bench.steps.score._measured", 1)],
)
def test_a_signal_is_heard_between_batches_and_metrics(tmp_path, monkeypatch, calm, place, after):
    asked, count = cell_in(tmp_path), itertools.count(1)
    module, _, name = place.rpartition(".")
    real, seen = getattr(__import__(module, fromlist=[name]), name), []

    def counted(*words):
        seen.append(next(count))
        return real(*words)

    with monkeypatch.context() as patch:
        patch.setattr(place, counted)
        assert list(run_together([begin(asked)], stop=lambda: len(seen) >= after)) == []
    assert len(seen) == after and Store(tmp_path).read(asked.run_id) is None
    work = tmp_path / ".work" / asked.run_id
    assert (work / "checkpoint.safetensors").is_file() and not list(tmp_path.glob(".work/.*.lease"))
    monkeypatch.setattr("bench.training.trainer._descend", None)  # no step is trained again
    assert run(asked).status == "done"
    assert (stored(tmp_path / asked.run_id / "images" / "strength=3", NAMES)[:] == calm).all()
