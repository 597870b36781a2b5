"""NaN and infinity are refused where they enter (settings, files) and where they arise (sampling, decoding)."""

import importlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from adapter_kinds import KINDS
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file, save_file
from tiny import TinyBackbone, tiny_dataset

from bench.adapters.bank import Bank
from bench.backbones.autoencoder import Autoencoder
from bench.cell import PARTS
from bench.compose import cell, register_datasets
from bench.contracts import AdapterSpec, Ask, BenchError, Method
from bench.paths import CONF, ROOT
from bench.sampling.inversion import there_and_back
from bench.sampling.sampler import Request, Sampler, Untouched, sample, shots
from bench.seeding import generator
from bench.settings import construct

NUMBERS = [math.nan, math.inf, -math.inf]


def composed(*overrides):
    register_datasets()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return cell(compose("config", ["method=pair", "dataset=blueprint", "tracker=none", *overrides]))


def numbers(value, at):
    """Dotted keys of all numbers in plain settings."""
    if isinstance(value, dict):
        return [key for name, item in value.items() for key in numbers(item, f"{at}.{name}")]
    return [at] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def placed(settings, key, value):
    """A copy of nested settings with another value at a dotted key."""
    name, _, rest = key.partition(".")
    return settings | {name: placed(settings[name], rest, value) if rest else value}


@pytest.mark.parametrize("value", NUMBERS)
def test_every_number_of_the_settings_is_finite(value):
    plain = composed()
    keys = [key for part in (*PARTS, "metrics") for key in numbers(getattr(plain, part), part)]
    assert {"sampler.cfg", "method.recipe.lr", "trainer.lr_scale", "method.strength"} <= set(keys)
    for key in keys:
        part, _, rest = key.partition(".")
        with pytest.raises(BenchError, match=rf"^{key}={value} was requested; type a finite number\.$"):
            replace(plain, **{part: placed(getattr(plain, part), rest, value)})


def test_numbers_of_overrides_are_finite():
    for words in ("sampler.cfg=nan", "+method.blend=[{file:a,style_words:b,strength:nan}]", "+trainer.where.x=-inf"):
        with pytest.raises(BenchError, match="was requested; type a finite number"):
            composed(words)


@pytest.mark.parametrize("words", ["nan", "[1,inf]", "-.inf", "1e999", "1" + "0" * 400])
def test_every_strength_is_finite(words):
    with pytest.raises(BenchError, match="strength=.* was requested; type a (finite )?number"):
        composed(f"strength={words}")


def test_settings_of_a_class_are_finite():
    for value in (math.nan, math.inf):
        with pytest.raises(BenchError, match="sampler.cfg=(nan|inf) was requested; type a finite number"):
            construct(Sampler, {"cfg": value}, "sampler")


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize(
    "module, words",
    [
        ("bench.stylize", ["--record=a", "--image=b", "--out=c", "--strength"]),
        ("bench.stylize", ["--record=a", "--image=b", "--out=c", "--start-t"]),
        ("bench.stylize", ["--record=a", "--image=b", "--out=c", "--cfg"]),
        ("bench.report.__main__", ["--max-mb"]),
    ],
)
def test_numbers_of_the_command_line_are_finite(module, words, bad, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(module).parser().parse_args([*words[:-1], f"{words[-1]}={bad}"])
    assert f"argument {words[-1]}: invalid finite value: '{bad}'" in capsys.readouterr().err


# --- sampling --------------------------------------------------------------------------------------------------------


class Styled(Method):
    strength_knob = "scale"

    def prompts(self, prompt, dataset):
        return {"content": prompt, "negative": "", "style": dataset.styled(prompt)}

    def guide(self, z, t, texts, cfg, strength):
        first = yield Ask(z, t, texts["style"], {"style": strength})
        second = yield Ask(z, t, texts["negative"])
        return second + cfg * (first - second)


def bank_of(cells=1, fill=0.2):
    bank = Bank(TinyBackbone(), {"style": AdapterSpec(2)}, [generator(i) for i in range(cells)])
    bank.theta["style"].data.normal_(generator=generator("theta")).mul_(fill)
    return bank


SAMPLER = Sampler(steps=3, cfg=3.0)


def images(bank, cells=(0,), strength=1.0, sampler=SAMPLER):
    data = tiny_dataset()
    requests = [Request(i, Styled(), data, shots(data), strength) for i in cells]
    return [np.concatenate(column) for column in zip(*sample(bank, requests, sampler), strict=True)]


@pytest.mark.parametrize("scheduler_steps", [1, 3])
@pytest.mark.parametrize("strength, cfg", [(1e30, 3.0), (-1e35, 3.0), (1.0, 1e38), (1.0, -1e30)])
def test_latents_that_overflow_end_the_sampling(strength, cfg, scheduler_steps):
    with pytest.raises(
        BenchError, match=r"latents became NaN or larger than 1e.06 in step \d of \d of sampling; lower"
    ):
        images(bank_of(fill=2.0), strength=strength, sampler=Sampler(steps=scheduler_steps, cfg=cfg))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_an_adapter_that_is_not_finite_ends_its_own_sampling_alone(value):
    bank = bank_of(cells=2)
    (before,) = images(bank)
    bank.theta["style"].data[1] = value
    with pytest.raises(BenchError, match="4 of 8 latents became NaN or larger than 1e.06 in step 1 of 3"):
        images(bank, (0, 1))
    with pytest.raises(BenchError, match="4 of 4 latents"):
        images(bank, (1,))
    assert np.array_equal(images(bank)[0], before)


def test_prompts_and_images_that_are_not_finite_end_the_sampling(monkeypatch):
    bank, data = bank_of(), tiny_dataset()
    request = Request(0, Untouched(), data, shots(data)[:1], 0.0)
    with pytest.raises(BenchError, match="1 of 1 latents became NaN or larger than 1e.06 in inversion step 1 of"):
        there_and_back(bank, request, torch.full((1, 4, 8, 8), math.nan), Sampler(steps=3))
    words = bank.backbone.words
    monkeypatch.setattr(bank.backbone, "words", lambda prompts: words(prompts) * math.nan)
    with pytest.raises(BenchError, match="4 of 4 latents"):
        images(bank)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_autoencoder_that_overflows_makes_no_image(value):
    vae = Autoencoder(ROOT / "bench/mini/weights/diffusion/vae", torch.float32, torch.device("cpu"))
    z = torch.randn(2, vae.channels, 8, 8, generator=generator("z"))
    assert len(vae.decode(z).unique()) > 10
    with pytest.raises(BenchError, match="The autoencoder gave NaN or infinity in torch.float32"):
        vae.decode(torch.cat([z[:1], z[1:] * value]))
    vae.network.decoder.conv_out.bias.data[0] = value
    for read in (vae.decode, vae.pixels):
        with pytest.raises(BenchError, match="The autoencoder gave NaN or infinity"):
            read(z)


# --- adapters on disk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_that_are_not_finite_are_neither_written_nor_read(kind, value, tmp_path):
    bank = Bank(TinyBackbone(), {"style": KINDS[kind]}, [generator(0)])
    bank.save("style", 0, tmp_path / "good")
    before = bank.row("style", 0).clone()
    bank.row("style", 0)[7] = value
    with pytest.raises(BenchError, match="1 tensors with NaN or infinity, first .*; lower the learning rate"):
        bank.save("style", 0, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    bank.read("style", 0, tmp_path / "good")
    assert torch.equal(bank.row("style", 0), before)
    for path in bank.files("style"):
        state = load_file(tmp_path / "good" / path)
        name = sorted(state)[-1]
        save_file(state | {name: torch.full_like(state[name], value)}, tmp_path / "good" / path)
        with pytest.raises(BenchError, match=f"1 tensors with NaN or infinity, first .*{name}"):
            bank.read("style", 0, tmp_path / "good")
        save_file(state, tmp_path / "good" / path)
