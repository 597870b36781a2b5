"""Images drawn during training: where and when, and that nothing which is trained depends on them."""

from dataclasses import replace

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from bench.compose import cell, register_datasets
from bench.contracts import BenchError
from bench.data.image_files import load_image
from bench.paths import CONF
from bench.run import run
from bench.sampling.grid import grid
from bench.training.settings import TrainerSettings

SMALL = ["method=pair", "method.rank=2", "method.recipe.steps=4", "method.content_steps=1", "dataset=blueprint"]
PROMPTS = ["a photo of a red tree on a beach", "a photo of a white cup in the snow"]
SMALL += ["sampler.steps=1", f"dataset.prompts=[{','.join(PROMPTS)}]", "dataset.seeds=[0,1]", "tracker=none"]


def trained(results, *overrides):
    register_datasets()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        made = replace(cell(compose("config", [*SMALL, f"results={results}", *overrides])), metrics={})
    return run(made), results / made.run_id


def test_they_are_drawn_at_their_steps_and_change_nothing(tmp_path):
    plain, without = trained(tmp_path / "plain")
    record, folder = trained(tmp_path / "previews", "+trainer.preview_every=2")
    assert record.status == "done" and record.run_id == plain.run_id
    found = sorted(path.name for path in (folder / "previews").iterdir())
    assert found == ["step=000002.png", "step=000004.png"] and not (without / "previews").exists()
    for path in (without / "adapters").iterdir():
        before, after = load_file(path), load_file(folder / "adapters" / path.name)
        assert before.keys() == after.keys() and all((before[key] == after[key]).all() for key in before)
    final = [load_image(next((folder / "images").glob(f"*/00{i}-s0.png"))) for i in range(2)]
    grid([("step 4", np.stack(final))], PROMPTS, tmp_path / "expected.png")
    last = load_image(folder / "previews" / "step=000004.png")
    assert np.array_equal(last, load_image(tmp_path / "expected.png")), "it shows the images that the cell ends with"


@pytest.mark.parametrize("every", [0, -1])
def test_a_number_of_steps_that_is_none(every):
    with pytest.raises(BenchError, match="trainer.preview_every"):
        TrainerSettings(preview_every=every)
