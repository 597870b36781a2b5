"""One short cell of each method family on the tiny random backbone, in float64, against stored numbers.

A change that is meant to leave results alone leaves these numbers alone. Where results are meant to change, write new
numbers with `python tests/test_golden.py` and say in the commit why they changed.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TinyBackbone, picture, tiny_dataset, tiny_image_encoder

from bench.adapters.bank import Bank
from bench.adapters.image_encoder import ImageEncoder
from bench.contracts import Example, Recipe
from bench.sampling.sampler import Request, Sampler, Untouched, sample, shots
from bench.seeding import generator
from bench.training.latents import Latents
from bench.training.trainer import Job, train
from methods.dreambooth import DreamBooth
from methods.ip_adapter import IPAdapter
from methods.pair import PairCustomization
from methods.sliders import TextualSlider, VisualSlider
from methods.styleforge import MultiStyleForge, StyleForge
from methods.taming import TamingStyle

FILE = Path(__file__).parent / "assets" / "golden.json"
SAMPLER = Sampler(steps=4, cfg=3.0)
WORDS = {"target": "a photo of a {noun}", "positive": "a {noun} {style_words}", "negative": "a photo of a {noun}"}


def recipe(**changes):
    return Recipe(**{"steps": 3, "lr": 1e-2, "batch_size": 2, **changes})


def encoder(folder):
    return ImageEncoder(str(tiny_image_encoder(folder / "tower")))


FAMILIES = {
    "zero_shot": lambda folder: Untouched(),
    "pair": lambda folder: PairCustomization(recipe(flip=True, batch_size=1), 4, content_steps=1, strength=3.0),
    "dreambooth": lambda folder: DreamBooth(recipe(clip_norm=1.0), strength=1.2),
    "dreambooth_full": lambda folder: DreamBooth(recipe(lr=1e-4), tune="full", text_encoder=True),
    "slider": lambda folder: VisualSlider(recipe(warmup_steps=2), strength=2.0),
    "slider_text": lambda folder: TextualSlider(recipe(steps=2, batch_size=1), [WORDS], rollout_steps=4),
    "styleforge_lora": lambda folder: StyleForge(recipe(schedule="cosine"), tune="lora", text_encoder=False),
    "multi_styleforge_lora": lambda folder: MultiStyleForge(recipe(), tune="lora", text_encoder=False),
    "ip_adapter_train": lambda folder: IPAdapter(encoder(folder), recipe=recipe(), dropout=(0.2, 0.2, 0.2)),
    "taming": lambda folder: TamingStyle(encoder(folder), recipe(crop=0.8)),
}


class Remembering(TinyBackbone):
    """A backbone that keeps the latents it decoded."""

    def __init__(self):
        super().__init__(torch.float64)
        self.decoded = []

    def decode(self, z):
        self.decoded.append(z.clone())
        return super().decode(z)


def measured(family, folder):
    """Losses of the training, and sums over weights, final latents and images."""
    method, data, backbone = FAMILIES[family](folder), tiny_dataset(), Remembering()
    bank = Bank(backbone, method.adapters(data), [generator("adapters", 0)])
    losses = trained(bank, method, data) if method.recipe else []
    request = Request(0, method, data, shots(data), method.strength)
    images = np.concatenate([chunk[0] for chunk in sample(bank, [request], SAMPLER)])
    weights = {name: sums(bank.row(name, 0)) for name in sorted(bank.specs)}
    latents = sums(torch.cat(backbone.decoded))
    return {"losses": losses, "weights": weights, "latents": latents, "images": sums(torch.as_tensor(images))}


def trained(bank, method, data):
    own = [Example(picture(seed), f"a photo of a {data.noun}", data.noun) for seed in (40, 41)]
    latents = Latents(data, bank.backbone, method.recipe, own)
    return [step.losses for step in train(bank, [Job(0, method, latents, method.recipe, seed=7)])]


def sums(values):
    """The norm and the projection on a fixed direction, both over the root of the number of values."""
    flat = values.detach().double().flatten()
    direction = torch.cos(torch.arange(len(flat), dtype=torch.float64) ** 1.1)
    return [float(flat.norm() / len(flat) ** 0.5), float(flat @ direction / len(flat) ** 0.5)]


def numbers(found):
    """All numbers of a nested mapping or sequence, in order."""
    if isinstance(found, dict):
        return [number for key in sorted(found) for number in numbers(found[key])]
    return [number for item in found for number in numbers(item)] if isinstance(found, (list, tuple)) else [found]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_short_cell_ends_at_the_stored_numbers(family, tmp_path):
    stored, found = json.loads(FILE.read_text())[family], measured(family, tmp_path)
    assert sorted(stored["weights"]) == sorted(found["weights"])
    np.testing.assert_allclose(numbers(found), numbers(stored), rtol=1e-6, atol=1e-7)


def test_the_stored_numbers_tell_the_families_apart():
    stored = json.loads(FILE.read_text())
    assert sorted(stored) == sorted(FAMILIES)
    latents = [tuple(found["latents"]) for found in stored.values()]
    assert len(set(latents)) == len(latents)


if __name__ == "__main__":
    import tempfile

    made = {family: measured(family, Path(tempfile.mkdtemp())) for family in FAMILIES}
    FILE.write_text(json.dumps(made, indent=1) + "\n")
