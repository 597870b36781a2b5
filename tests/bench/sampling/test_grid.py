"""The grid shows every image unchanged in its place; labels take the space that they need; records share columns."""

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from bench.compose import cell, register_datasets
from bench.contracts import BenchError
from bench.data.image_files import save_images
from bench.grid import collect, main
from bench.paths import CONF
from bench.sampling.grid import GAP, grid
from bench.steps.work import Work
from bench.store.record import Record, Store


def test_every_image_lies_in_its_cell_unchanged(tmp_path, rng=np.random.default_rng(0)):  # noqa: B008
    images = {label: rng.integers(0, 256, (3, 3, 64, 64), dtype=np.uint8) for label in ("a", "a longer label")}
    grid(list(images.items()), ["a cat", "a dog on a brick wall in the rain under a lamp", ""], tmp_path / "g.png")
    sheet = np.asarray(Image.open(tmp_path / "g.png")).transpose(2, 0, 1)
    enlarged = np.concatenate([i.repeat(3, 1).repeat(3, 2) for label in images for i in images[label]], axis=2)
    side, rows, columns = 192, 2, 3
    left, top = sheet.shape[2] - columns * (side + GAP) - GAP, sheet.shape[1] - rows * (side + GAP)
    for k in range(rows * columns):
        y, x = top + (k // columns) * (side + GAP), left + (k % columns) * (side + GAP)
        assert (sheet[:, y : y + side, x : x + side] == enlarged[:, :, k * side : (k + 1) * side]).all()


def test_large_images_are_shown_smaller_and_missing_ones_left_white(tmp_path):
    grid([("x", np.zeros((1, 3, 512, 512), np.uint8))], ["a", "b"], tmp_path / "g.png")
    sheet = np.asarray(Image.open(tmp_path / "g.png"))
    black = (sheet[-256 - GAP : -GAP] == 0).all(axis=(0, 2))
    assert black.sum() == 256 and (sheet[-256 - GAP : -GAP, -256 - GAP :] == 255).all()


def test_long_texts_are_cut_not_spilled(tmp_path):
    word = "extraordinarily " * 30
    grid([(word, np.zeros((1, 3, 64, 64), np.uint8))], [word], tmp_path / "g.png")
    sheet = np.asarray(Image.open(tmp_path / "g.png"))
    assert sheet.shape[0] < 320 and (sheet[:, -GAP:] == 255).all()


# --- many records


def images(seed):
    return np.random.default_rng(seed).integers(0, 256, (4, 3, 64, 64), dtype=np.uint8)


def recorded(root, strengths, *overrides):
    """A finished cell with random images, the seed of which is its strength; two prompts, two evaluation seeds."""
    prompts = "dataset.prompts=[a photo of a red cup,a photo of a blue tree]"
    register_datasets()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        made = cell(compose("config", ["tracker=none", f"results={root}", "dataset=blueprint", prompts, *overrides]))
    store = Store(root)
    folder = store.work(made.run_id)
    for strength in strengths:
        names = ["000-s0", "000-s1", "001-s0", "001-s1"]
        save_images(folder / "images" / f"strength={strength:g}", images(int(strength)), names)
    scores = [{"strength": s, "metric": "m", "value": 0.0, "network": None} for s in strengths]
    store.publish(Record(made.run_id, "done", None, Work(made, folder).config(), scores=scores))


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.steps.baseline.baseline", lambda work: images(99))
    recorded(tmp_path, [1.0, 3.0], "method=pair", "seed=0")
    recorded(tmp_path, [4.0], "method=dreambooth", "seed=0")
    recorded(tmp_path, [5.0], "method=pair", "seed=1")
    Store(tmp_path).publish(Record("odd", "skipped", "it needs pairs"))
    return tmp_path


def test_each_method_and_strength_is_a_row_between_the_backbone_and_the_style(results):
    rows, prompts = collect(results, ["dataset=blueprint,seed=0"], 8)
    assert prompts == ["a photo of a red cup", "a photo of a blue tree"]
    assert [label for label, _ in rows] == ["backbone", "dreambooth 4", "pair 1", "pair 3", "style itself"]
    for (_, shown), seed in zip(rows[:-1], (99, 4, 1, 3), strict=True):
        assert np.array_equal(shown, images(seed)[[0, 2]])  # the first evaluation seed of both prompts
    from bench.data.rendering import stylise

    assert np.array_equal(rows[-1][1], np.stack([stylise("blueprint", image) for image in images(99)[[0, 2]]]))


def test_training_seeds_are_told_apart_and_columns_can_be_fewer(results):
    rows, prompts = collect(results, ["method=pair"], 1)
    assert [label for label, _ in rows[1:-1]] == ["pair 1 seed 0", "pair 3 seed 0", "pair 5 seed 1"]
    assert len(prompts) == 1 and all(len(shown) == 1 for _, shown in rows)


def test_records_that_cannot_share_columns_and_empty_choices_are_told(results):
    with pytest.raises(BenchError, match="No finished cell below .* meets --where method=none"):
        collect(results, ["method=none"], 8)
    recorded(results, [1.0], "method=pair", "sampler.steps=7")
    with pytest.raises(BenchError, match="differ in their sampler"):
        collect(results, ["dataset=blueprint"], 8)
    with pytest.raises(BenchError, match="which does not exist; give a file"):
        main(["--results", str(results), "--out", str(results / "no" / "grid.png")])


def test_the_command_writes_the_picture(results, capsys):
    out = results / "many.png"
    main(["--results", str(results), "--where", "method=pair", "seed=0", "--out", str(out)])
    assert capsys.readouterr().out == f"{out}\n"
    assert np.asarray(Image.open(out)).shape[0] > 4 * 192
