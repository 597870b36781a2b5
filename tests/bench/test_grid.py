"""The grid shows every image unchanged in its place; labels take the space that they need."""

import numpy as np
from PIL import Image

from bench.grid import GAP, grid


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
