"""Vanilla T-LoRA: its schedule of ranks, masks per row against merged weights, and its update in plain torch."""

import pytest
import torch
from test_replays_with_diffusers import RECIPE, both, families
from tiny import tiny, tiny_dataset
from torch.nn.functional import mse_loss

from bench.adapters.bank import Bank
from bench.contracts import AdapterSpec, Ask, BenchError
from bench.seeding import generator
from methods.t_lora import TLora

torch.set_num_threads(1)


@pytest.mark.parametrize("t, ranks", [(0, 64), (250, 56), (500, 48), (750, 40), (999, 32), (1000, 32)])
def test_the_schedule_of_the_paper(t, ranks):
    mask = TLora(RECIPE).mask(torch.tensor([t]))
    assert mask.shape == (1, 64) and mask.sum() == ranks and (mask[0, :ranks] == 1).all()


@pytest.mark.parametrize("where", ["attention", "all"])
@torch.no_grad()
def test_each_row_uses_its_own_ranks_in_a_pack(where):
    """Against the network with the masked product merged into its weights, row by row; linear and convolutional."""
    backbone, r = tiny(torch.float64), 3
    bank = Bank(backbone, {"style": AdapterSpec(r, where)}, [generator("adapters", seed) for seed in range(2)])
    bank.theta["style"].normal_(generator=torch.Generator().manual_seed(1)).mul_(0.1)
    rng = torch.Generator().manual_seed(2)
    scales = [torch.rand(2, r, generator=rng), torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, -2.0]]), 0.7]
    asks = []
    for i, scale in enumerate(scales):
        z = torch.randn(2, *backbone.latent_shape, generator=rng, dtype=torch.float64)
        asks.append((i % 2, Ask(z, torch.tensor([100, 700]), backbone.embed(["a", "b"]), {"style": scale})))
    found = bank.answer(asks)
    bank.close()
    weights = dict(backbone.network.named_parameters())
    for (cell, ask), out, scale in zip(asks, found, scales, strict=True):
        for row in range(2):
            own = (
                scale[row].double() if isinstance(scale, torch.Tensor) else torch.full((r,), scale, dtype=torch.float64)
            )
            merged = dict(weights)
            for site, layer in bank.layers["style"].items():
                delta = torch.einsum("or,r,r...->o...", layer.up[cell], own, layer.down[cell])
                merged[f"{site}.weight"] = weights[f"{site}.weight"] + delta
            inputs = (ask.z[row : row + 1], ask.t[row : row + 1], ask.text.states[row : row + 1])
            expected = torch.func.functional_call(backbone.network, merged, inputs).sample
            torch.testing.assert_close(out[row : row + 1], expected, rtol=0, atol=1e-9)


@families
def test_its_update(family):
    """The columns beyond r(t) take no part, and get no gradient, in a step."""
    method = TLora(RECIPE, rank=4)

    def replay(plain, latents):
        optimizer = plain.optimizer("style", 0, 1)
        whole = plain.factors["style"]

        def go(k, rng):
            (z,), _ = latents.draw(("style",), rng)
            eps, t = latents.noise(z, rng)
            used = (4 - 2) * (1000 - int(t)) // 1000 + 2
            plain.factors["style"] = {site: [down[:used], up[:, :used]] for site, (down, up) in whole.items()}
            loss = mse_loss(plain.predict(plain.noisy(z, eps, t), t, "a photo of a dog in sks style", style=1), eps)
            plain.factors["style"] = whole
            return [plain.step(optimizer, loss)]

        return go

    both(family, method, replay)


def test_a_share_of_ranks_that_is_none_is_told():
    with pytest.raises(BenchError, match="method.least=0 was requested; give a share of the ranks"):
        TLora(RECIPE, least=0)
    assert TLora(RECIPE).lacks(tiny_dataset()) is None
