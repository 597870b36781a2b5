"""Real images: DDIM inversion against its formula and its own way back, and what the command says when it cannot."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from finished_cells import finished
from PIL import Image
from tiny import TinyBackbone, picture, tiny_dataset

from bench import stylize
from bench.adapters.bank import Bank
from bench.contracts import BenchError, Recipe
from bench.sampling.inversion import invert, stylise, there_and_back
from bench.sampling.sampler import Request, Sampler, Shot
from bench.seeding import generator
from bench.store.record import Record, Store
from methods.pair import PairCustomization

SAMPLER = Sampler(steps=10, cfg=1.0, start_t=600)
PAIR = PairCustomization(Recipe(1, 1.0), rank=4)
PROMPTS = ["a photo of a dog", "a photo of a cup"]


def backbone_of(prediction="epsilon", dtype=torch.float64):
    """The tiny backbone as one that predicts eps or v."""
    backbone = TinyBackbone(dtype)
    backbone.ddim.register_to_config(prediction_type=prediction)
    return backbone


def bank_of(backbone):
    bank = Bank(backbone, PAIR.adapters(tiny_dataset()), [generator("adapters", 0)])
    for theta in bank.theta.values():
        theta.normal_(generator=generator("fill")).mul_(0.3)
    return bank


def request(strength, method=PAIR):
    return Request(0, method, tiny_dataset(), [Shot(i, prompt, 0) for i, prompt in enumerate(PROMPTS)], strength)


def latents(dtype=torch.float64):
    return torch.randn(2, 4, 8, 8, generator=generator("z"), dtype=torch.float64).to(dtype)


def lost(backbone, refine):
    z = latents()
    return float((there_and_back(bank_of(backbone), request(0.0), z, SAMPLER, refine) - z).abs().max())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_strength_zero_gives_the_latents_back(prediction):
    assert lost(backbone_of(prediction), 16) < 1e-9


def test_refinement_brings_the_way_back_closer():
    errors = [lost(backbone_of(), refine) for refine in (0, 1, 3, 6)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 10


def test_inversion_is_the_formula_of_ddim_backwards():
    """z_t = sqrt(a_t) (z_s - sqrt(1 - a_s) e) / sqrt(a_s) + sqrt(1 - a_t) e, s the step below t; each image alone."""
    backbone, z = backbone_of(), latents()
    bank, scheduler = bank_of(backbone), backbone.scheduler("ddim", 10)
    steps = scheduler.timesteps[scheduler.timesteps <= 600]
    found = invert(bank, z, backbone.embed(PROMPTS), scheduler, steps, refine=2)
    kept = backbone.ddim.alphas_cumprod.double()
    for one, prompt, inverted in zip(z, PROMPTS, found, strict=True):
        below = one[None]
        for t in sorted(steps.tolist()):
            a_t, a_s = kept[t], kept[t - 100] if t >= 100 else kept[0]
            guess = below
            for _ in range(3):
                with torch.no_grad():
                    e = backbone.predict(guess, torch.tensor([t]), backbone.embed([prompt]))
                guess = a_t.sqrt() * (below - (1 - a_s).sqrt() * e) / a_s.sqrt() + (1 - a_t).sqrt() * e
            below = guess
        torch.testing.assert_close(below[0], inverted, rtol=0, atol=1e-6)


def test_no_step_above_the_start_is_taken_and_the_method_guides_from_there():
    backbone = backbone_of()
    bank, seen, predict = bank_of(backbone), [], backbone.predict
    backbone.predict = lambda z, t, text: seen.append((len(z), int(t[0]))) or predict(z, t, text)
    late = replace(PAIR, start_t=-1)  # the method's own late start would never guide
    there_and_back(bank, request(2.0, late), latents(), replace(SAMPLER, start_t=300), refine=0)
    up, down = [(2, t) for t in (0, 100, 200, 300)], [(6, t) for t in (300, 200, 100, 0)]
    assert seen == up + down


def test_strength_moves_the_image_and_the_start_limits_how_far():
    bank, z = bank_of(backbone_of()), latents()

    def moved(strength, start):
        made = there_and_back(bank, request(strength), z, replace(SAMPLER, start_t=start), refine=1)
        return float((made - z).abs().mean())

    assert moved(0.0, 600) < moved(1.0, 600) < moved(3.0, 600)
    assert moved(3.0, 200) < moved(3.0, 600)


def test_an_image_comes_back_as_the_autoencoder_gives_it():
    backbone, image = backbone_of(dtype=torch.float32), picture(3)
    one = replace(request(0.0), shots=request(0.0).shots[:1])
    made = stylise(bank_of(backbone), one, image, SAMPLER, refine=6)
    z, _ = backbone.encode(torch.from_numpy(image)[None])
    assert np.abs(made.astype(int) - backbone.decode(z)[0].numpy().astype(int)).max() <= 1


@pytest.mark.parametrize("start, refine", [(-1, 1), (600, -1)])
def test_a_start_or_refinement_that_means_nothing_is_told(start, refine):
    with pytest.raises(BenchError, match="give e.g. --start-t 600 --refine 1"):
        there_and_back(bank_of(backbone_of()), request(0.0), latents(), replace(SAMPLER, start_t=start), refine)


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(picture(5).transpose(1, 2, 0)).resize((90, 90)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def said(record, image, out, *more):
    with pytest.raises(BenchError) as error:
        stylize.main(["--record", str(record), "--image", str(image), "--out", str(out), *more])
    return str(error.value)


def test_what_cannot_be_done_is_one_sentence(tmp_path, photo):
    out = tmp_path / "out.png"
    assert "holds no finished cell" in said(tmp_path / "nothing", photo, out)
    failed = Store(tmp_path).publish(Record("cell-a", "failed", "the loss was NaN"))
    assert "is failed (the loss was NaN)" in said(failed, photo, out)
    done = Store(tmp_path).publish(Record("cell-b", "done", None, {"seed": 0}))
    assert "of an older version" in said(done, photo, out)
    (tmp_path / "text.png").write_text("no image")
    assert "cannot be read as an image" in said(done, tmp_path / "text.png", out)
    assert "does not exist" in said(done, tmp_path / "gone.png", out)
    Image.new("RGB", (64, 48)).save(tmp_path / "wide.png")
    assert "has 64 x 48 pixels" in said(done, tmp_path / "wide.png", out)
    assert "give a file in a folder that exists" in said(done, photo, tmp_path / "no" / "out.png")
    assert "ends in .png" in said(done, photo, tmp_path / "out.jpg")
    (done / "record.json").write_text("{")
    assert "cannot be read" in said(done, photo, out) and not out.exists()


def test_a_cell_made_from_other_weights_is_told(tmp_path, photo):
    folder = finished(tmp_path, "method=zero_shot", backbone={"name": "mini", "weights": "of last week"})
    assert "was made with another backbone than is here now" in said(folder, photo, tmp_path / "out.png")


def test_a_finished_cell_stylises_an_image(tmp_path, photo, capsys):
    out = tmp_path / "out.png"

    def made(folder, *more):
        stylize.main(["--record", str(folder), "--image", str(photo), "--out", str(out), *more])
        return np.asarray(Image.open(out)).transpose(2, 0, 1)

    shown = np.asarray(Image.open(photo).resize((64, 64), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    oracle = finished(tmp_path, "method=oracle")
    from bench.data.loading import load
    from bench.data.schema import describe

    assert np.array_equal(made(oracle), load(describe("blueprint"), 64).oracle(shown))
    words = finished(tmp_path, "method=zero_shot")
    assert made(words, "--steps", "4", "--start-t", "900").shape == (3, 64, 64)
    assert "prompt 'a photo of a" in capsys.readouterr().out
