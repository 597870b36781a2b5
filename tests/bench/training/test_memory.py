"""The forecast of memory against what a real step keeps: bytes of weights, optimizer state and saved tensors."""

import pytest
import torch
from random_flow_pipelines import FAMILIES, LENGTH, PIXELS
from test_flow import load
from torch.nn.functional import mse_loss

from bench.adapters.bank import Bank
from bench.backbones import architectures
from bench.backbones.architectures import Architecture
from bench.contracts import AdapterSpec, Ask, BenchError
from bench.training import memory

SPECS = {"style": AdapterSpec(4, "attention")}


def saved(backbone, cells, rows, text):
    """Bytes of the tensors that autograd keeps in a real step, each storage once, without the weights."""
    bank = Bank(backbone, SPECS, [torch.Generator() for _ in range(cells)])
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    weights = {p.untyped_storage()._cdata for p in [*backbone.network.parameters(), *bank.theta.values()]}
    z = torch.zeros(rows, *backbone.latent_shape)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        asks = [(cell, Ask(z, torch.full((rows,), 500), text, {"style": 1.0})) for cell in range(cells)]
        loss = sum(mse_loss(out, torch.zeros_like(out)) for out in bank.answer(asks))
    adapters = 4 * sum(theta.numel() * theta.element_size() for theta in bank.theta.values())
    del loss
    bank.close()
    return adapters, sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "z_image"])  # it picks rows by their values
def test_the_forecast_is_what_a_real_step_of_a_tiny_model_keeps(family, tmp_path, monkeypatch):
    FAMILIES[family][0]().save_pretrained(tmp_path)
    backbone = load(family, tmp_path)
    config = {key: value for key, value in backbone.network.config.items() if not key.startswith("_")}
    channels, side, _ = backbone.latent_shape
    model = Architecture(config, (channels, PIXELS // side), 0, 0, 0)
    monkeypatch.setitem(architectures.PUBLISHED, str(tmp_path), model)
    settings = {"_target_": FAMILIES[family][1], "name": family, "path": str(tmp_path), "resolution": PIXELS,
                "dtype": "float32", "text_length": LENGTH}  # fmt: skip
    with torch.no_grad():
        text = backbone.embed(["a dog"])
    monkeypatch.setattr(memory, "_text", lambda *_: lambda n: fake(text))
    found = memory.forecast(settings, SPECS, rows=1, cells=2)
    adapters, kept = saved(backbone, 2, 1, text)
    assert found.network == sum(p.numel() * p.element_size() for p in backbone.network.parameters())
    real = memory.training_step(backbone, SPECS, backbone.latent_shape, lambda n: text, 1, 2)
    assert (found.adapters, found.step) == (adapters, pytest.approx(real[1], rel=0.15))
    assert kept <= found.step <= 1.5 * kept  # and intermediate results, which weigh more in a tiny model


def fake(text):
    from dataclasses import replace

    extras = {name: torch.zeros(value.shape) for name, value in text.extras.items()}
    return replace(text, states=torch.zeros(text.states.shape), extras=extras)


@pytest.mark.slow
def test_the_forecast_is_what_a_real_step_of_sd15_keeps():
    """At full size with random weights, 256 pixels, float32."""
    import yaml

    from bench.paths import ROOT

    settings = yaml.safe_load((ROOT / "conf/backbone/sd15.yaml").read_text())
    settings |= {"dtype": "float32", "resolution": 256}
    found = memory.forecast(settings, SPECS, rows=1)
    backbone = memory._without_network(settings)
    model = architectures.published(settings)
    backbone.network = memory._network(backbone, settings, model)
    type(backbone).latent_shape = memory._latent_shape(settings, model)
    adapters, kept = saved(backbone, 1, 1, memory._text(settings, model)(1))
    assert (found.network, found.adapters) == (4 * 859_520_964, adapters)
    assert found.step == pytest.approx(kept, rel=0.15)


def test_quantised_weights_take_fewer_bytes():
    import yaml

    from bench.paths import ROOT

    settings = yaml.safe_load((ROOT / "conf/backbone/flux2_klein.yaml").read_text()) | {"resolution": 512}
    plain = memory.forecast(settings, SPECS, rows=1)
    small = memory.forecast({**settings, "quantize": "nf4"}, SPECS, rows=1)
    assert 0.27 < small.network / plain.network < 0.30  # 4.5 of 16 bits in nearly all layers
    assert small.step == plain.step


def test_memory_of_unknown_shapes_is_not_forecast():
    with pytest.raises(BenchError, match="shapes of somebody/model are not known"):
        memory.forecast({"path": "somebody/model"}, SPECS, rows=1)
