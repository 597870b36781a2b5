"""Inherited tests on `mini` and on a tiny SDXL: methods that name blocks, words or attention of a real network."""

import functools
import tempfile

import pytest
import test_contract
import torch
from random_pipelines import sdxl
from tiny import tiny_bank

from bench.paths import located

METHODS = ("b_lora", "textual_inversion", "style_aligned", "t_lora")
PIXELS = 64
RUN = (
    test_contract.test_it_names_its_knob_and_draws_images,
    test_contract.test_its_steps_train_every_adapter_that_it_declares_and_no_other,
    test_contract.test_its_images_depend_on_no_global_random_state_and_on_no_earlier_image,
    test_contract.test_strength_turns_what_was_learned,
)


@functools.cache
def backbone(family):
    from bench.backbones.sdxl import StableDiffusionXL
    from bench.backbones.stable_diffusion import StableDiffusion

    if family == "mini":
        return StableDiffusion(str(located("bench/mini/weights/diffusion")), PIXELS, device="cpu", name="mini")
    with tempfile.TemporaryDirectory() as folder:
        sdxl().save_pretrained(folder)
        return StableDiffusionXL(folder, PIXELS, device="cpu", name="sdxl")


@pytest.mark.parametrize("family", ["mini", "sdxl"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("test", RUN, ids=lambda test: test.__name__)
def test_inherited(test, name, family, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    made = []

    def banks(method, filled=None):
        made.append(tiny_bank(method, filled=filled, backbone=backbone(family)))
        return made[-1]

    real = test_contract.method

    def fitted(called, folder):
        """A word that is one piece of the tiny SDXL's tokenizer, whose pieces are letters, and texts of 20 at most."""
        method = real(called, folder)
        if family == "sdxl" and hasattr(method, "vectors"):
            method.token = "z"
            method.style_templates = ("a {}",)
            texts = method.prompts
            method.prompts = lambda prompt, dataset: {**texts(prompt, dataset), "style": "a cat in z"}
        return method

    monkeypatch.setattr(test_contract, "tiny", lambda: backbone(family))
    monkeypatch.setattr(test_contract, "method", fitted)
    try:
        test(name, tmp_path, banks)
    finally:
        for bank in made:
            bank.close()
