"""Adapters that PEFT makes and saves predict the same here, and ours the same in PEFT, in float64."""

import copy

import pytest
import torch
from lora_cases import rows
from narrow_networks import Shaped, sd
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from bench.adapters.bank import Bank
from bench.adapters.lora_files import ranks, read_lora
from bench.contracts import AdapterSpec, Ask, Text
from bench.seeding import generator

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1"]
CONFIGS = {
    "alpha is the rank": dict(r=4, lora_alpha=4),
    "alpha": dict(r=4, lora_alpha=1),
    "rslora": dict(r=4, lora_alpha=3, use_rslora=True),
    "patterns": dict(r=4, lora_alpha=1, rank_pattern={"to_q": 2}, alpha_pattern={"attn2.to_v": 8, "conv1": 3}),
}


@pytest.fixture(scope="module")
def backbone():
    return Shaped(sd)


def inputs():
    z, t, text = rows()
    return z.double(), t, Text(text.states.double(), {key: value.double() for key, value in text.extras.items()})


def plain(network):
    z, t, text = inputs()
    with torch.no_grad():
        return network(z, t, text.states, added_cond_kwargs=dict(text.extras)).sample


def ours(bank):
    return bank.answer([(0, Ask(*inputs(), {"style": 1.0}, frozenset({"style"})))])[0]


def ours_from(backbone, path):
    """The prediction of a bank that starts from a file."""
    bank = Bank(backbone, {"style": AdapterSpec(1, file=str(path))}, [generator("adapters", 0)])
    try:
        return ours(bank)
    finally:
        bank.close()


def moved(network):
    """The network with other numbers in every half of its adapters."""
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator(name), dtype=parameter.dtype)
    return network


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_folder_that_peft_saves_predicts_the_same_here(backbone, config, tmp_path):
    model = moved(get_peft_model(copy.deepcopy(backbone.network), LoraConfig(target_modules=TARGETS, **config)))
    model.save_pretrained(tmp_path)
    assert (plain(model) - plain(backbone.network)).abs().max() > 0.1
    assert (ours_from(backbone, tmp_path) - plain(model)).abs().max() < 1e-6


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_file_of_add_adapter_predicts_the_same_here(backbone, config, tmp_path):
    network = copy.deepcopy(backbone.network)
    network.add_adapter(LoraConfig(target_modules=TARGETS, **config))
    moved(network).save_lora_adapter(tmp_path)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    assert (ours_from(backbone, path) - plain(network)).abs().max() < 1e-6


@pytest.mark.parametrize("alpha", [2, 8])
def test_the_scale_of_a_transformer_is_read_as_that_of_a_unet(alpha, tmp_path):
    """Against the product of the halves, alpha / rank times."""
    from diffusers import StableDiffusion3Pipeline

    site = "transformer_blocks.0.attn.to_q"
    down, up = torch.randn(4, 6, generator=generator("down")), torch.randn(5, 4, generator=generator("up"))
    config = LoraConfig(r=4, lora_alpha=alpha, target_modules=["to_q"]).to_dict()
    StableDiffusion3Pipeline.save_lora_weights(
        tmp_path,
        {f"{site}.lora_A.weight": down, f"{site}.lora_B.weight": up},
        transformer_lora_adapter_metadata=config,
    )
    state = read_lora(tmp_path / "pytorch_lora_weights.safetensors", part="transformer")
    found = state[f"transformer.{site}.lora_B.weight"] @ state[f"transformer.{site}.lora_A.weight"]
    torch.testing.assert_close(found, alpha / 4 * up @ down)


def test_our_adapter_predicts_the_same_in_peft(backbone):
    bank = Bank(backbone, {"style": AdapterSpec(3)}, [generator("adapters", 0)])
    start = bank.state("style", 0)
    state = {key: 0.3 * torch.randn(value.shape, generator=generator(key)) for key, value in start.items()}
    bank.load("style", 0, state)
    mine, kept = ours(bank), bank.state("style", 0)
    bank.close()
    network = copy.deepcopy(backbone.network)
    network.add_adapter(LoraConfig(r=3, lora_alpha=3, target_modules=sorted(ranks(kept))))
    found = set_peft_model_state_dict(network, {key.removeprefix("unet."): x for key, x in kept.items()})
    assert not found.unexpected_keys
    assert not [key for key in found.missing_keys if "lora_" in key]
    assert (mine - plain(backbone.network)).abs().max() > 0.1
    assert (plain(network) - mine).abs().max() < 1e-6
    again = get_peft_model_state_dict(network)
    assert set(again) == {key.removeprefix("unet.") for key in kept}
    assert all(torch.equal(again[key.removeprefix("unet.")].float(), x) for key, x in kept.items())
