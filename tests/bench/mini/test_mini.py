"""The embedded backbone: a deterministic world, files that ordinary libraries open, distances that are distances."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.mini import check, scenes, styles
from bench.mini.perceptual import PerceptualTrunk
from bench.mini.recipe import tokenizer as words
from bench.mini.recipe import unet as denoiser
from bench.mini.recipe import vae as autoencoder
from bench.mini.recipe import world
from bench.mini.recipe.training import rows_at

ALL = {**styles.KNOWN, **styles.HELD_OUT}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bundle():
    if not (check.WEIGHTS / "diffusion" / "model_index.json").is_file():
        pytest.fail(f"No weights under {check.WEIGHTS}: run python -m bench.mini.recipe --out DIR.")
    return check.Bundle(check.WEIGHTS)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(4)
    return [scenes.render(scenes.sample_scene(rng)) for _ in range(4)]


# ------------------------------------------------------------------------------------------------------- world


def test_a_scene_decides_its_pixels():
    one, two = (scenes.sample_scene(np.random.default_rng(3), graded=1.0) for _ in range(2))
    assert one == two
    np.testing.assert_array_equal(scenes.render(one), scenes.render(two))
    assert scenes.render(one).shape == (64, 64, 3) and scenes.render(one).dtype == np.uint8


def test_every_object_and_background_is_drawn_differently():
    base = scenes.sample_scene(np.random.default_rng(0), pairs=0.0)
    thing = base.things[0]
    by_object = {scenes.render(replace(base, things=(replace(thing, object=o),))).tobytes() for o in scenes.OBJECTS}
    by_place = {scenes.render(replace(base, background=b)).tobytes() for b in scenes.BACKGROUNDS}
    assert len(by_object) == len(scenes.OBJECTS) and len(by_place) == len(scenes.BACKGROUNDS)
    assert len(scenes.OBJECTS) >= 12 and len(scenes.COLOURS) == 8 and len(scenes.BACKGROUNDS) >= 6


def test_plain_captions_name_what_is_drawn():
    rng = np.random.default_rng(1)
    kinds = "|".join(scenes.OBJECTS)
    colours = "|".join(scenes.COLOURS)
    places = "|".join(re.escape(p[0]) for p in scenes.PLACES.values())
    form = re.compile(rf"a photo of an? ({colours}) ({kinds})(?: and an? ({colours}) ({kinds}))? ({places})")
    for _ in range(200):
        scene = scenes.sample_scene(rng, pairs=0.5)
        told = form.fullmatch(scenes.plain_caption(scene))
        assert told and told.group(1, 2) == (scene.colour, scene.object)
        assert told.group(5) == scenes.PLACES[scene.background][0]
        assert bool(told.group(3)) == (len(scene.things) == 2)


def test_captions_carry_style_grading_and_rare_token():
    rng = np.random.default_rng(2)
    for _ in range(50):
        scene = scenes.sample_scene(rng, graded=1.0)
        text = scenes.caption(scene, rng, "pencil sketch", rare="sks")
        assert "pencil sketch" in text and "sks" in text
        assert scenes.GRADINGS[scene.grading][0] in text
        assert any(noun in text for noun in scenes.NOUNS[scene.object])


# ------------------------------------------------------------------------------------------------------ styles


def test_held_out_styles_are_unknown_to_pretraining():
    assert not set(styles.KNOWN) & set(styles.HELD_OUT)
    assert len(styles.KNOWN) >= 6 and len(styles.HELD_OUT) >= 8
    assert set(styles.STYLE_WORDS) == set(ALL)
    assert len(set(styles.STYLE_WORDS.values())) == len(ALL)
    assert set(world.STYLE_NAMES) == {"photo", *styles.KNOWN}


@pytest.mark.parametrize("name", ALL)
def test_a_style_is_deterministic_changes_the_picture_and_takes_any_size(name, pictures):
    for side in (64, 96):
        image = np.asarray(Image.fromarray(pictures[0]).resize((side, side)))
        before = image.copy()
        once, again = ALL[name](image), ALL[name](image)
        np.testing.assert_array_equal(once, again)
        np.testing.assert_array_equal(image, before)
        assert once.shape == image.shape and once.dtype == np.uint8
        assert np.abs(once.astype(int) - image).mean() > 5


@pytest.mark.parametrize("name", ALL)
def test_a_style_looks_alike_at_other_sizes(name, pictures):
    """Features scale with the picture: styled at 256 and shrunk is nearer to styled at 64 than the picture is."""
    small = pictures[1]
    large = np.asarray(Image.fromarray(small).resize((256, 256), Image.Resampling.BICUBIC))
    shrunk = np.asarray(Image.fromarray(ALL[name](large)).resize((64, 64), Image.Resampling.BOX)).astype(float)
    truth = ALL[name](small).astype(float)
    assert np.abs(shrunk - truth).mean() < np.abs(small - truth).mean()


def test_the_truth_closes_the_whole_gap_and_the_baseline_none(bundle, pictures):
    baseline = check._chw(pictures)
    truth = check._chw([styles.duotone(x) for x in pictures])
    assert check.style_gap(truth, baseline, "duotone") == pytest.approx({"rgb": 1.0, "perceptual": 1.0})
    assert check.style_gap(baseline, baseline, "duotone") == pytest.approx({"rgb": 0.0, "perceptual": 0.0})


# --------------------------------------------------------------------------------------------------- tokenizer


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    words.build(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(built):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(built)


def test_the_shipped_tokenizers_are_the_ones_that_the_word_list_gives(bundle, built):
    for place in ("clip", "diffusion/tokenizer"):
        for name in ("vocab.json", "merges.txt"):
            assert (check.WEIGHTS / place / name).read_bytes() == (built / name).read_bytes()


def test_listed_and_rare_words_are_one_token(tokenizer):
    pieces = {w: tokenizer.tokenize(w) for w in words.words()}
    assert [w for w, p in pieces.items() if len(p) != 1] == []
    assert {"sks", "sbu", "zwx", "jungle", "cobblestone", "eiffel", "purple"} <= set(pieces)
    assert len(words.RARE_TOKENS) >= 60
    assert len(tokenizer.tokenize("qwertyuiop")) > 1


def test_any_text_encodes_and_comes_back(tokenizer):
    for text in ("ünïcode", "日本 の 城", "🎨 🦆", "a-b_c ... !?", "x" * 300, ""):
        ids = words.encode(tokenizer, [text])
        assert ids.shape == (1, words.LENGTH)
        assert ids[0, 0] == tokenizer.bos_token_id and tokenizer.eos_token_id in ids[0]
    assert tokenizer.decode(tokenizer("ünïcode 日本 🎨").input_ids, skip_special_tokens=True) == "ünïcode 日本 🎨"
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == len(tokenizer) - 1


def test_no_caption_is_longer_than_the_text_encoder(tokenizer):
    rng = np.random.default_rng(0)
    texts = [
        scenes.caption(scenes.sample_scene(rng, pairs=1.0, graded=1.0), rng, "stained glass window", rare="sks")
        for _ in range(300)
    ]
    assert max(len(ids) for ids in tokenizer(texts).input_ids) <= words.LENGTH


# ---------------------------------------------------------------------------------------------------- networks


def test_the_bundle_is_small():
    assert sum(f.stat().st_size for f in check.WEIGHTS.rglob("*") if f.is_file()) <= 32 * 2**20


def test_diffusers_opens_and_samples_and_seeds_do_not_depend_on_the_batch(bundle):
    prompts = ["a photo of a red house on a beach", "a pencil sketch of a blue cat in the snow", ""]
    together = bundle.sample(prompts, steps=2)
    apart = bundle.sample(prompts, steps=2, batch=1)
    assert together.shape == (3, 3, 64, 64) and together.dtype == torch.uint8
    assert (together.float() - apart.float()).abs().mean() < 3  # bf16 rounding only
    assert (together[0].float() - together[1].float()).abs().mean() > 5


def test_attention_is_wide_enough_for_two_orthogonal_adapters(bundle):
    widths = {m.to_q.in_features for m in bundle.pipe.unet.modules() if hasattr(m, "to_q")}
    assert widths and min(widths) >= 128


def test_the_encoder_is_the_principal_components_and_the_decoder_undoes_it(bundle, pictures):
    vae, x = bundle.pipe.vae, autoencoder.to_float(np.stack(pictures))
    basis, mean = torch.linalg.qr(torch.randn(48, 16, generator=torch.Generator().manual_seed(0))).Q.T, torch.zeros(48)
    fresh = autoencoder.build()
    autoencoder.write_encoder(fresh, basis, mean)
    with torch.no_grad():
        written = fresh.encode(x).latent_dist.mean
    expected = autoencoder.latents(np.stack(pictures), basis, mean).float()
    assert (written - expected).abs().max() < 0.02
    assert check._psnr(vae, check._chw(pictures)) > 26


def test_open_clip_opens_its_folder_and_finds_captions(bundle):
    told = check.distinct_scenes(7, 64)
    images = bundle.embed_images(check._chw([scenes.render(s) for s in told]))
    texts = bundle.embed_texts([scenes.plain_caption(s) for s in told])
    assert images.shape == texts.shape == (64, 256)
    assert float(((images @ texts.T).argmax(1) == torch.arange(64)).float().mean()) >= 0.85


def test_the_perceptual_distance_is_a_squared_distance(bundle):
    trunk = PerceptualTrunk.load(check.WEIGHTS / "perceptual")
    rng = torch.Generator().manual_seed(0)
    for side in (64, 96):
        a, b = (torch.rand(3, 3, side, side, generator=rng) * 2 - 1 for _ in range(2))
        torch.testing.assert_close(trunk(a, a), torch.zeros(3))
        torch.testing.assert_close(trunk(a, b), trunk(b, a))
        torch.testing.assert_close(((trunk.embed(a) - trunk.embed(b)) ** 2).sum(1), trunk(a, b), rtol=1e-3, atol=1e-5)
        assert (trunk(a, b) > 0).all()
    assert all((w >= 0).all() for w in trunk.weights)


def test_the_perceptual_distance_grows_with_distortion(bundle, pictures):
    trunk = PerceptualTrunk.load(check.WEIGHTS / "perceptual")
    x = autoencoder.to_float(np.stack(pictures))
    mixed = [float(trunk(x, (1 - s) * x + s * x.roll(1, 0)).mean()) for s in (0.1, 0.3, 0.6, 1.0)]
    assert mixed == sorted(mixed)


# ------------------------------------------------------------------------------------------------------ recipe


def test_batches_are_a_function_of_seed_and_step():
    np.testing.assert_array_equal(rows_at(1, 7, 1000, 16), rows_at(1, 7, 1000, 16))
    assert (rows_at(1, 7, 1000, 16) != rows_at(1, 8, 1000, 16)).any()


def test_a_killed_fit_ends_with_the_same_weights(tmp_path: Path):
    from bench.mini.recipe.training import Fit

    def fit(folder: Path) -> tuple[Fit, torch.nn.Linear]:
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        line = torch.nn.Linear(3, 2)
        return Fit("line", folder, {"line": line}, steps=20, lr=1e-2), line

    def loss_of(line: torch.nn.Linear, stop: int = 99):
        def loss_at(step: int) -> torch.Tensor:
            if step == stop:
                raise KeyboardInterrupt
            return (line(torch.full((4, 3), float(step % 5))) - 1).pow(2).mean()

        return loss_at

    whole, line = fit(tmp_path / "whole")
    whole.run(loss_of(line))
    first, half = fit(tmp_path / "halves")
    with pytest.raises(KeyboardInterrupt):
        first.run(loss_of(half, stop=11))
    first.save()
    second, resumed = fit(tmp_path / "halves")
    assert second.step == 11
    second.run(loss_of(resumed))
    torch.testing.assert_close(resumed.weight, line.weight, rtol=0, atol=0)
    torch.testing.assert_close(second.averages["line"]["weight"], whole.averages["line"]["weight"], rtol=0, atol=0)


# -------------------------------------------------------------------------------------------------- denoiser


def test_the_denoiser_starts_as_the_copy_of_its_input_whatever_its_size():
    """Its last branch taken out, eps is z: to one percent, also for noise a tenth too large."""
    noise = denoiser.Noise()
    torch.manual_seed(0)
    unet = denoiser.build().eval()
    denoiser.start_at_identity(unet, noise.kept)
    last = unet.up_blocks[-1].resnets[-1]
    z, text = torch.randn(2, 16, 16, 16), torch.randn(2, 32, denoiser.TEXT_WIDTH)
    z = torch.cat([z, 1.1 * z])

    def answer(t):
        with torch.no_grad():
            return unet(z, t, text.repeat(2, 1, 1), return_dict=False)[0]

    whole = {t: answer(t) for t in (100, 900)}
    last.conv2.weight.data.zero_()
    alone = {t: answer(t) for t in (100, 900)}
    for t in (100, 900):
        assert float((alone[t] - z).square().mean().sqrt()) < 0.01
    moved = {t: float((whole[t] - alone[t]).square().mean().sqrt()) for t in (100, 900)}
    assert moved[900] < 0.2 * moved[100]


# ---------------------------------------------------------------------------------------------- learnable styles


def test_the_best_strength_is_where_the_smaller_share_is_largest(tmp_path, capsys):
    from bench.store.record import Record, Store

    shares = {
        (0, 1.0): (0.3, 0.6),
        (1, 1.0): (0.5, 0.8),
        (0, 2.0): (0.6, 0.5),
        (1, 2.0): (0.6, 0.7),
        (0, 3.0): (0.9, 0.1),
    }
    for seed in (0, 1):
        config = {
            "method": {"name": "pair"},
            "dataset": {"name": "halftone"},
            "backbone": {"name": "mini"},
            "seed": seed,
        }
        scores = [
            {"strength": strength, "metric": metric, "value": value, "network": None, "higher_is_better": True}
            for (s, strength), pair in shares.items()
            if s == seed
            for metric, value in zip(("gap_closed_rgb", "gap_closed_lpips"), pair, strict=True)
        ]
        store = Store(tmp_path)
        store.work(f"pair-halftone-s{seed}")
        store.publish(Record(f"pair-halftone-s{seed}", "done", config=config, scores=scores))
    ((method, style, rgb, perceptual),) = check.learned(tmp_path)
    assert (method, style) == ("pair", "halftone") and (rgb, perceptual) == pytest.approx((0.6, 0.6))
    check.show_learned(tmp_path)
    assert capsys.readouterr().out.rstrip().endswith("met")
