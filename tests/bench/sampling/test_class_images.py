"""A subject's cell draws images of its bare class for the metric that asks for them, and what was said is said once."""

import numpy as np
import pytest
from PIL import Image
from test_run import composed, values

from bench.data.images import stored
from bench.run import run
from bench.steps.sample import CLASS_IMAGES
from bench.store.record import Store
from metrics.networks import OpenClip, unit

SUBJECT = ["dataset=folder", "dataset.noun=toy", "sampler.steps=1"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for k in range(2):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    return folder


def subject(results, photographs, *overrides):
    cell = composed(results, f"dataset.references={photographs}", *SUBJECT, *overrides)
    return type(cell)(**{**vars(cell), "metrics": {"pres": cell.metrics["pres"], "clip_i": cell.metrics["clip_i"]}})


@pytest.mark.slow
def test_pres_is_measured_on_stored_images_of_the_class(tmp_path, photographs):
    cell = subject(tmp_path, photographs, "method=zero_shot", "strength=1")
    record = run(cell)
    assert record.status == "done", record.reason
    names = [f"002-s{seed}" for seed in range(CLASS_IMAGES)]  # behind the two prompts' places
    members = stored(Store(tmp_path).folder(record.run_id) / "class_images" / "strength=1", names)[:]
    shown = np.stack([np.asarray(Image.open(path)).transpose(2, 0, 1) for path in sorted(photographs.iterdir())])
    clip = OpenClip(name="mini-clip", model="bench/mini/weights/clip")
    expected = (unit(clip(members)) @ unit(clip(shown)).T).mean()
    assert values(record, 1.0)["pres"] == pytest.approx(expected, abs=1e-6)
    assert len({image.tobytes() for image in members}) == CLASS_IMAGES


def test_a_method_that_draws_nothing_has_no_pres_and_says_so_once(tmp_path, photographs):
    record = run(subject(tmp_path, photographs, "method=copy", "strength=[1,2]"))
    assert record.status == "done", record.reason
    assert "pres" not in values(record, 1.0) and "clip_i" in values(record, 2.0)
    assert record.notes.count("metric pres left out: The method copy draws no images of its own.") == 1
