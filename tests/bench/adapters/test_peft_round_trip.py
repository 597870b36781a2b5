"""Adapters that PEFT makes and saves predict the same here, and ours the same in PEFT, in float64."""

import copy
from types import SimpleNamespace

import pytest
import torch
from lora_cases import rows
from narrow_networks import Shaped, sd
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from bench.adapters.bank import Bank
from bench.adapters.lora_files import ranks, read_lora
from bench.adapters.low_rank import with_dropout
from bench.adapters.routing import Block
from bench.contracts import AdapterSpec, Ask, Text
from bench.seeding import generator

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1"]
CONFIGS = {
    "alpha is the rank": dict(r=4, lora_alpha=4),
    "alpha": dict(r=4, lora_alpha=1),
    "rslora": dict(r=4, lora_alpha=3, use_rslora=True),
    "DoRA": dict(r=4, lora_alpha=3, use_dora=True),
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
        if "lora_magnitude" in name:  # lengths stay positive
            parameter.data *= 1 + 0.3 * torch.rand(parameter.shape, generator=generator(name), dtype=parameter.dtype)
        elif "lora_" in name:
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


@pytest.mark.parametrize("dora", [False, True])
def test_our_adapter_predicts_the_same_in_peft(backbone, dora):
    bank = Bank(backbone, {"style": AdapterSpec(3, "attention_conv", dora=dora)}, [generator("adapters", 0)])
    start = bank.state("style", 0)
    state = {key: 0.3 * torch.randn(value.shape, generator=generator(key)) for key, value in start.items()}
    state = {key: start[key] + value.abs() if "magnitude" in key else value for key, value in state.items()}
    bank.load("style", 0, state)
    mine, kept = ours(bank), bank.state("style", 0)
    bank.close()
    network = copy.deepcopy(backbone.network)
    network.add_adapter(LoraConfig(r=3, lora_alpha=3, target_modules=sorted(ranks(kept)), use_dora=dora))
    found = set_peft_model_state_dict(network, {key.removeprefix("unet."): x for key, x in kept.items()})
    assert not found.unexpected_keys
    assert not [key for key in found.missing_keys if "lora_" in key]
    assert (mine - plain(backbone.network)).abs().max() > 0.1
    assert (plain(network) - mine).abs().max() < 1e-6
    again = get_peft_model_state_dict(network)
    assert set(again) == {key.removeprefix("unet.") for key in kept}
    assert all(torch.equal(again[key.removeprefix("unet.")].float(), x) for key, x in kept.items())


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_with_dora_and_dropout_are_those_of_peft(backbone, dora, dropout):
    """PEFT's own layers, whose dropout draws our masks: predictions and the gradients of all adapter weights."""
    spec = AdapterSpec(3, "attention_conv", dora=dora, dropout=dropout, alpha=2.0)
    network = copy.deepcopy(backbone.network)
    bank = Bank(backbone, {"style": spec}, [generator("adapters", 0)])
    with torch.no_grad():
        bank.theta["style"] += 0.2 * torch.rand(bank.theta["style"].shape, generator=generator("fill")).double()
    into_peft(network, bank, dora, dropout)
    out = bank.answer([(0, Ask(*inputs(), {"style": 1.0}))], [5])[0]
    bank.backward(out.square().mean())
    z, t, text = inputs()
    theirs = network(z, t, text.states).sample
    theirs.square().mean().backward()
    torch.testing.assert_close(out.detach(), theirs.detach(), rtol=0, atol=1e-10)
    for site, layer in bank.layers["style"].items():
        module = network.get_submodule(site)
        ends = [module.lora_A["default"], module.lora_B["default"]]
        ends += [module.lora_magnitude_vector["default"]] if dora else []
        for mine, theirs in zip(layer.halves().values(), ends, strict=True):
            wanted = theirs.weight.grad.reshape(mine.grad[0].shape)
            torch.testing.assert_close(mine.grad[0], wanted, rtol=0, atol=1e-10)
    assert bank.grad["style"].abs().max() > 1e-3
    bank.close()


def into_peft(network, bank, dora, dropout):
    """Add PEFT's layers in training mode with the weights of cell 0; the dropout draws our masks."""
    targets = sorted(bank.layers["style"])
    network.add_adapter(LoraConfig(r=3, lora_alpha=2, target_modules=targets, use_dora=dora, lora_dropout=dropout))
    for site, layer in bank.layers["style"].items():
        module, block = network.get_submodule(site), Block(None, (0,), None, 2, torch.ones(2), seeds=(5,))
        for mine, theirs in zip(layer.halves(), ["lora_A", "lora_B", "lora_magnitude_vector"], strict=False):
            weight = getattr(module, theirs)["default"].weight
            weight.data = layer.halves()[mine][0].detach().reshape(weight.shape).clone()
            weight.requires_grad_(True)
        if dropout:
            module.lora_dropout["default"] = Masked(layer, block)
        module.train()


class Masked(torch.nn.Module):
    def __init__(self, layer, block):
        super().__init__()
        self.of = [layer, block]

    def forward(self, x):
        return with_dropout(x, *self.of)


def test_dropout_keeps_the_mean_and_drops_its_share():
    layer = SimpleNamespace(dropout=0.3, site="a")
    block = Block(None, (0, 1), None, 1, torch.ones(2), seeds=(1, 2))
    x = torch.ones(2, 200, 200)
    dropped = with_dropout(x, layer, block)
    for part in dropped:
        assert (part == 0).float().mean() == pytest.approx(0.3, abs=0.01)
        assert part.mean() == pytest.approx(1, abs=0.02)
    assert not torch.equal(dropped[0], dropped[1])  # each cell has a mask of its own
    again = with_dropout(x[:1], layer, Block(None, (0,), None, 1, torch.ones(1), seeds=(2,)))
    assert torch.equal(again[0], dropped[1])  # which depends on its own seed alone
