"""Stacked adapters: routing by row, frozen and orthonormal halves, files."""

import pytest
import torch
from tiny import TinyBackbone

from bench.adapters.bank import Bank
from bench.adapters.low_rank import basis
from bench.contracts import AdapterSpec, Ask, BenchError
from bench.seeding import generator


def bank_of(backbone, specs, cells=1):
    bank = Bank(backbone, specs, [generator("adapters", seed) for seed in range(cells)])
    for theta in bank.theta.values():  # `up` starts at zero: give every adapter something to do
        theta.copy_(torch.randn(theta.shape, generator=generator("fill"), dtype=theta.dtype) * 0.1)
    return bank


def rows(backbone, n, seed=0):
    rng = generator("rows", seed)
    z = torch.randn(n, 4, 8, 8, generator=rng).to(backbone.dtype)
    t = torch.randint(1000, (n,), generator=rng)
    return z, t, backbone.embed([f"prompt {i}" for i in range(n)])


def merged(backbone, bank, name, cell, scale, ask):
    """Oracle: add the low-rank products to the weights themselves, one row at a time."""
    kept = {layer.module: layer.module.weight.clone() for layer in bank.layers[name].values()}
    with torch.no_grad():
        for layer in bank.layers[name].values():
            delta = layer.up[cell] @ layer.down[cell].flatten(1) * layer.scale * scale
            layer.module.weight += delta.reshape(layer.module.weight.shape)
        out = backbone.predict(ask.z, ask.t, ask.text)
        for module, weight in kept.items():
            module.weight.copy_(weight)
    return out


@pytest.mark.parametrize("where", ["attention", "linear", "all"])
def test_each_row_uses_its_own_cell_and_scale_as_if_merged_into_the_weights(where):
    backbone = TinyBackbone(torch.float64)
    bank = bank_of(backbone, {"style": AdapterSpec(3, where, alpha=2)}, cells=3)
    scales = [0.0, 1.0, -0.7, 2.0]
    asks = [
        (cell, Ask(*rows(backbone, 4, cell), {"style": torch.tensor(scales, dtype=torch.float64)}))
        for cell in (0, 1, 2)
    ]
    asks.append((1, Ask(*rows(backbone, 2, 7), {"style": 0.5})))  # blocks of different sizes in one batch
    answers = bank.answer(asks)
    bank.settle()
    for (cell, ask), answer in zip(asks, answers, strict=True):
        per_row = scales if len(answer) == 4 else [0.5, 0.5]
        for i, scale in enumerate(per_row):
            one = Ask(ask.z[i : i + 1], ask.t[i : i + 1], ask.text[i : i + 1])
            expected = merged(backbone, bank, "style", cell, scale, one)
            torch.testing.assert_close(answer[i : i + 1], expected, rtol=0, atol=1e-9)


def test_scale_zero_and_absent_are_the_backbone_bit_for_bit():
    backbone = TinyBackbone()
    z, t, text = rows(backbone, 4)
    plain = backbone.predict(z, t, text)
    bank = bank_of(backbone, {"style": AdapterSpec(3, "all")})
    with torch.no_grad():
        for adapters in ({}, {"style": 0.0}, {"style": torch.zeros(4)}):
            assert torch.equal(bank.answer([(0, Ask(z, t, text, adapters, frozenset(adapters)))])[0], plain)
        some = bank.answer([(0, Ask(z, t, text, {"style": torch.tensor([0.0, 1.0, 0.0, 0.0])}, frozenset({"style"})))])[
            0
        ]
    assert torch.equal(some[[0, 2, 3]], plain[[0, 2, 3]])
    assert not torch.equal(some[1], plain[1])
    bank.close()
    assert torch.equal(backbone.predict(z, t, text), plain)


def test_orthonormal_halves_are_disjoint_rows_of_one_basis_and_not_trained():
    specs = {"content": AdapterSpec(4, orthonormal_row=0), "style": AdapterSpec(4, orthonormal_row=4)}
    bank = bank_of(TinyBackbone(torch.float64), specs)
    for site, content in bank.layers["content"].items():
        style = bank.layers["style"][site]
        both = torch.cat([content.down[0], style.down[0]])
        torch.testing.assert_close(both @ both.T, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-12)
        assert not style.down.requires_grad and style.up.requires_grad
    widths = {layer.down.shape[-1] for layer in bank.layers["style"].values()}
    assert all(torch.equal(basis(w, 123846), basis(w, 123846)) for w in widths)


@pytest.mark.parametrize("cells", [1, 2])
def test_a_loaded_file_changes_no_frozen_half_but_its_own(cells):
    specs = {"style": AdapterSpec(4, orthonormal_row=0)}
    bank = Bank(TinyBackbone(torch.float64), specs, [generator(cell) for cell in range(cells)])
    site, kept = next(iter(bank.layers["style"])), basis(16, 123846).clone()
    before = bank.layers["style"][site].down.clone()
    bank.load("style", 0, {key: value + 1 for key, value in bank.state("style", 0).items()})
    after = bank.layers["style"][site].down
    torch.testing.assert_close(after[0], before[0] + 1, rtol=0, atol=1e-6)  # files hold float32
    assert torch.equal(after[1:], before[1:])
    assert torch.equal(basis(16, 123846), kept)


def test_ranks_that_do_not_fit_the_narrowest_layer_are_refused_in_one_sentence():
    with pytest.raises(BenchError, match=r"need 17 rows in all, but a layer has only 16 inputs.*method.rank=8"):
        Bank(TinyBackbone(), {"style": AdapterSpec(9, orthonormal_row=8)}, [generator(0)])


def test_an_adapter_written_and_loaded_again_is_the_same(tmp_path):
    backbone = TinyBackbone()
    spec = {"style": AdapterSpec(3, "all", alpha=1.5)}
    bank, other = bank_of(backbone, spec), Bank(backbone, spec, [generator("other")])
    other.load("style", 0, bank.state("style", 0))
    torch.testing.assert_close(other.row("style", 0), bank.row("style", 0))
    with pytest.raises(BenchError, match="use the rank and the layers that the file was trained with"):
        Bank(backbone, {"style": AdapterSpec(5, "all")}, [generator(0)]).load("style", 0, bank.state("style", 0))


def test_the_gradient_of_a_frozen_adapter_is_not_computed():
    backbone = TinyBackbone()
    bank = bank_of(backbone, {"content": AdapterSpec(2), "style": AdapterSpec(2)})
    ask = Ask(*rows(backbone, 2), {"content": 1.0, "style": 1.0}, frozenset({"content"}))
    bank.answer([(0, ask)])[0].square().sum().backward()
    assert bank.grad["content"].abs().max() == 0 and bank.grad["style"].abs().max() > 0


@pytest.mark.parametrize(("init", "square"), [("kaiming", 3), ("kaiming_sqrt5", 1)])
def test_kaiming_halves_are_uniform_within_the_bound_of_their_inputs(init, square):
    """Uniform in +-sqrt(6 / (1 + a^2) / inputs), a^2 = 1 or 5: for convolutions the inputs include the kernel."""
    bank = Bank(TinyBackbone(), {"style": AdapterSpec(64, "noxattn", alpha=1, init=init)}, [generator(0)])
    for site in ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1"):
        layer = bank.layers["style"][site]
        inputs = layer.module.weight[0].numel()
        assert layer.down.abs().max() <= (square / inputs) ** 0.5 and layer.scale == 1 / 64 and not layer.up.any()
        assert layer.down.abs().max() > 0.99 * (square / inputs) ** 0.5
        assert layer.down.var().item() == pytest.approx(square / 3 / inputs, rel=0.1)


def test_an_unknown_start_is_refused_with_the_known_ones():
    with pytest.raises(BenchError, match="Adapters were to start 'ones'; known are gaussian, kaiming"):
        Bank(TinyBackbone(), {"style": AdapterSpec(2, init="ones")}, [generator(0)])
