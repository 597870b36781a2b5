"""Adapters and pictures of others: what is drawn, how pictures are found and resized, and what is refused."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import picture, tiny, tiny_bank, tiny_dataset

from bench.contracts import Ask, BenchError, Impossible
from bench.errors import Unavailable
from bench.sampling.sampler import shots
from methods.external_adapter import ExternalAdapter
from methods.external_images import ExternalImages

DATA = tiny_dataset()
BASELINE = np.stack([picture(10 + i) for i in range(4)])


def write(path, seed, size=(64, 64)):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(picture(seed).transpose(1, 2, 0)).resize(size, Image.Resampling.NEAREST).save(path)


def by_number(folder):
    for i, shot in enumerate(shots(DATA)):
        write(folder / f"{shot.index:03d}-s{shot.seed}.png", i)
    return folder


def made(method):
    return method.from_baseline(BASELINE, DATA)


EXPECTED = np.stack([picture(i) for i in range(4)])


def test_pictures_are_found_by_number(tmp_path):
    assert np.array_equal(made(ExternalImages(str(by_number(tmp_path)))), EXPECTED)


@pytest.mark.parametrize("name", ["{prompt}-s{seed}", "{capitals}-s{seed}", "{dashes}-s{seed}", "{index}-s{seed}"])
def test_pictures_are_found_by_the_words_of_their_prompts(name, tmp_path):
    for i, shot in enumerate(shots(DATA)):
        words = dict(prompt=shot.prompt, capitals=shot.prompt.upper(), dashes=shot.prompt.replace(" ", "_"))
        write(tmp_path / f"{name.format(**words, seed=shot.seed, index=shot.index)}.png", i)
    assert np.array_equal(made(ExternalImages(str(tmp_path))), EXPECTED)


def table(folder, rows):
    (folder / "map.csv").write_text("file,prompt,seed\n" + "".join(f"{row}\n" for row in rows))
    return str(folder / "map.csv")


def test_a_table_maps_pictures_of_any_name(tmp_path):
    folder, rows = tmp_path / "pictures", []
    for i, shot in enumerate(shots(DATA)):
        write(folder / f"{'dbca'[i]}.png", i)
        rows.append(f"{'dbca'[i]}.png,{shot.prompt if i % 2 else shot.index},{shot.seed}")
    assert np.array_equal(made(ExternalImages(str(folder), table(tmp_path, rows[::-1]))), EXPECTED)


def test_larger_pictures_are_cut_to_the_centre_and_resized(tmp_path):
    """A picture three times as large with grey bands at its sides, which show in the filter's width alone."""
    by_number(tmp_path)
    wide = np.full((192, 256, 3), 128, np.uint8)
    wide[:, 32:224] = [200, 10, 90]
    Image.fromarray(wide).save(tmp_path / "000-s0.png")
    image = made(ExternalImages(str(tmp_path)))[0]
    assert (image[:, :, 3:-3] == np.array([200, 10, 90])[:, None, None]).all()
    assert (abs(image.astype(int) - np.array([200, 10, 90])[:, None, None]) < 10).all()


def refused(method):
    with pytest.raises(Unavailable) as caught:
        method.lacks(DATA)
    return str(caught.value)


def test_all_missing_doubled_and_spare_pictures_stand_in_one_error(tmp_path):
    by_number(tmp_path)
    (tmp_path / "000-s0.png").unlink()
    (tmp_path / "001-s1.png").unlink()
    write(tmp_path / "a photo of a cat-s1.png", 0)
    write(tmp_path / "grid.png", 0)
    said = refused(ExternalImages(str(tmp_path)))
    assert "2 of 4 pictures are missing: 000-s0.png (a photo of a cat), 001-s1.png (a photo of a car)" in said
    assert "1 are there more than once: 000-s1.png" in said and "grid.png" in said


@pytest.mark.parametrize(
    ("row", "said"),
    [("000-s0.png,0,first", "has the seed 'first'"), ("none.png,0,0", "1 files of the table do not exist: none.png")],
)
def test_a_table_that_names_what_is_not_there(row, said, tmp_path):
    folder = by_number(tmp_path / "pictures")
    rows = [f"{shot.index:03d}-s{shot.seed}.png,{shot.index},{shot.seed}" for shot in shots(DATA)]
    assert said in refused(ExternalImages(str(folder), table(tmp_path, [row, *rows[1:]])))


def test_what_is_not_given_skips_and_what_is_not_there_is_named(tmp_path):
    for method in (ExternalImages(), ExternalAdapter()):
        with pytest.raises(Impossible, match=r"type method\.(path|file)="):
            method.lacks(DATA)
    assert "no such folder" in ExternalImages(str(tmp_path / "none")).missing()
    assert "no such file" in ExternalAdapter(str(tmp_path / "none")).missing()


# --- adapters


def test_an_adapter_of_others_draws_as_its_merged_weights(tmp_path):
    site = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    draw = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 16, generator=draw), torch.randn(16, 2, generator=draw)
    save_file({f"unet.{site}.lora_A.weight": down, f"unet.{site}.lora_B.weight": up}, tmp_path / "x.safetensors")
    method = ExternalAdapter(str(tmp_path / "x.safetensors"))
    z, t = torch.randn(2, 4, 8, 8, generator=draw), torch.tensor([500, 20])
    text = tiny().embed(["a photo of a cat"] * 2)
    bank = tiny_bank(method)
    ours = bank.answer([(0, Ask(z, t, text, {"style": 0.7}, frozenset({"style"})))])[0]
    bank.close()
    merged = copy.deepcopy(tiny().network)
    with torch.no_grad():
        merged.get_submodule(site).weight += 0.7 * up @ down
        assert (ours - merged(z, t, text.states).sample).abs().max() < 1e-5
        assert (ours - tiny().network(z, t, text.states).sample).abs().max() > 1e-3


def test_the_template_fills_the_drawn_prompt_alone():
    texts = ExternalAdapter("x", "xyz, {prompt} {style_words}", "blurry").prompts("a photo of a cat", DATA)
    assert texts["style"] == "xyz, a photo of a cat in inverted style"
    assert texts["content"] == "a photo of a cat" and texts["negative"] == "blurry"


@pytest.mark.parametrize("template", ["always this", "{subject}", "{prompt", "{0}"])
def test_a_template_without_the_prompt_is_refused(template):
    with pytest.raises(BenchError, match=r"method.prompt="):
        ExternalAdapter("x", template)
