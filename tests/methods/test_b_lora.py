"""B-LoRA: which layers its blocks have on SDXL's own shape, its update in plain torch, and a copy with other layers."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from random_pipelines import SDXL_UNET
from test_replays_with_diffusers import RECIPE, both, families
from tiny import tiny_dataset
from torch.nn.functional import mse_loss
from worked_method import INHERITED, call, install

from bench.backbones.sites import sites
from methods.b_lora import BLoRA

ROOT = Path(__file__).parents[2]


def test_its_blocks_on_sdxl_are_those_of_the_authors():
    """Their target modules: to_k, to_q, to_v and to_out.0 of all attentions within the two blocks (10 layers deep)."""
    with torch.device("meta"):
        network = UNet2DConditionModel(**SDXL_UNET)
    for name, spec in BLoRA(RECIPE).adapters(tiny_dataset()).items():
        block = {"content": "up_blocks.0.attentions.0", "style": "up_blocks.0.attentions.1"}[name]
        own = [key.rpartition(".")[0] for key in network.attn_processors if key.startswith(f"{block}.")]
        assert len(own) == 20 and spec.rank == 64 and spec.alpha is None
        assert set(sites(network, spec.where)) == {
            f"{a}.{m}" for a in own for m in ("to_k", "to_q", "to_v", "to_out.0")
        }


@families
def test_its_update(family):
    """One loss moves both blocks, under the prompt that holds the token alone."""

    def replay(plain, latents):
        optimizers = [plain.optimizer(name, 0, 1) for name in ("content", "style")]

        def go(k, rng):
            (z,), _ = latents.draw(("style",), rng)
            eps, t = latents.noise(z, rng)
            loss = mse_loss(plain.predict(plain.noisy(z, eps, t), t, "A [v]", content=1, style=1), eps)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            return [loss.item()]

        return go

    both(family, BLoRA(RECIPE, rank=4), replay)


def test_one_block_draws_and_the_prompt_names_it():
    data = tiny_dataset()
    drawn = {
        use: BLoRA(RECIPE, use=use).prompts("a photo of a dog", data)["style"] for use in ("style", "content", "both")
    }
    assert drawn == {
        "style": "a photo of a dog in [v] style",
        "content": "a photo of a [v]",
        "both": "a photo of a [v] in [v] style",
    }


OTHER = {"content": "mid_block, down_blocks.*.attentions.0", "style": "*.attn2.to_k, *.attn2.to_v"}


@pytest.mark.parametrize("test", INHERITED, ids=lambda test: test.__name__)
def test_a_copy_with_other_layers_needs_no_other_file(test, tmp_path, monkeypatch, banks):
    """A method under another name, whose layers no selection of the core has: one module and one yaml."""
    code = (ROOT / "methods" / "b_lora.py").read_text()
    settings = (ROOT / "conf" / "method" / "b_lora.yaml").read_text()
    for name, where in OTHER.items():
        settings = settings.replace(
            f"{name}_where: attention in up_blocks.0.attentions.{int(name == 'style')}", f'{name}_where: "{where}"'
        )
    settings = settings.replace("name: b_lora\n", "name: other_layers\n").replace(
        "methods.b_lora.", "methods.other_layers."
    )
    path = install(code, settings, tmp_path, monkeypatch)
    used = []

    def watched(method, **options):
        used.append(banks(method, **options))
        return used[-1]

    call(test, path.stem, tmp_path, watched)
    for bank in used:
        assert set(bank.layers["style"]) == {
            name for name, _ in bank.backbone.network.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))
        }
        assert {name.partition(".")[0] for name in bank.layers["content"]} == {"mid_block", "down_blocks"}
