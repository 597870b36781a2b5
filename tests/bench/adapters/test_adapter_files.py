"""Our adapter files in diffusers and PEFT, and theirs here: the same images."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_dataset

from bench.adapters.bank import Bank
from bench.adapters.lora_files import read_lora
from bench.contracts import AdapterSpec, BenchError, Recipe
from bench.sampling.sampler import Request, Sampler, sample, shots
from bench.seeding import generator
from bench.steps.work import loaded_backbone
from methods.dreambooth import DreamBooth

MINI = '{"_target_": "bench.backbones.stable_diffusion.StableDiffusion", "name": "mini", "resolution": 64, '
MINI += '"path": "bench/mini/weights/diffusion", "device": "cpu"}'
SAMPLER = Sampler(steps=4, cfg=3.0)
METHOD = DreamBooth(Recipe(steps=1, lr=1.0))


@pytest.fixture(scope="module")
def backbone():
    return loaded_backbone(MINI)


def ours(bank, scale):
    """Our sampler on the prompts that DreamBooth makes, uint8 (4, 3, 64, 64)."""
    data = tiny_dataset()
    (chunk,) = sample(bank, [Request(0, METHOD, data, shots(data), scale)], SAMPLER)
    return chunk[0]


def theirs(backbone, pipe, scale):
    """diffusers' pipeline with the LoRA it has loaded, the same noise and prompts."""
    data = tiny_dataset()
    chosen = shots(data)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = backbone.scheduler("ddim", SAMPLER.steps)
    images = pipe(
        [METHOD.prompts(shot.prompt, data)["style"] for shot in chosen],
        latents=torch.stack([shot.noise(backbone.latent_shape) for shot in chosen]),
        num_inference_steps=SAMPLER.steps,
        guidance_scale=SAMPLER.cfg,
        cross_attention_kwargs={"scale": scale},
        output_type="np",
    ).images
    return (images * 255).round().astype(np.uint8).transpose(0, 3, 1, 2)


def filled(backbone, where, rank=4):
    bank = Bank(backbone, {"style": AdapterSpec(rank, where, alpha=2.0)}, [generator("adapters", 0)])
    bank.theta["style"].add_(torch.randn(bank.theta["style"].shape, generator=generator("fill")) * 0.1)
    return bank


@pytest.mark.parametrize("where", ["attention", "all", "noxattn"])
def test_our_file_gives_the_same_images_in_diffusers(backbone, tmp_path, where):
    bank = filled(backbone, where)
    save_file(bank.state("style", 0), tmp_path / "style.safetensors")
    mine, plain = ours(bank, 0.8), ours(bank, 0.0)
    bank.close()
    pipe = backbone.pipeline()
    pipe.load_lora_weights(tmp_path, weight_name="style.safetensors")
    try:
        other = theirs(backbone, pipe, 0.8)
    finally:
        pipe.unload_lora_weights()
    assert np.abs(mine.astype(int) - other).max() <= 1
    assert np.abs(mine.astype(int) - plain).max() > 20


def test_their_file_gives_the_same_images_here(backbone, tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = backbone.pipeline()
    pipe.unet.add_adapter(LoraConfig(r=3, lora_alpha=3, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), "theirs")
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator(name)) * 0.2
    state = get_peft_model_state_dict(pipe.unet, adapter_name="theirs")
    pipe.save_lora_weights(tmp_path, unet_lora_layers=state)
    try:
        other = theirs(backbone, pipe, 1.0)
    finally:
        pipe.unload_lora_weights()
    bank = Bank(backbone, {"style": AdapterSpec(3)}, [generator("adapters", 1)])
    bank.load("style", 0, read_lora(tmp_path / "pytorch_lora_weights.safetensors"))
    mine = ours(bank, 1.0)
    bank.close()
    assert np.abs(mine.astype(int) - other).max() <= 1


def test_no_file_is_one_sentence(tmp_path):
    with pytest.raises(BenchError, match="is not a file; give the .safetensors file of a LoRA"):
        read_lora(tmp_path / "absent.safetensors")
