"""Decoupled cross-attention in the bank: rows, cells and scales; beside low-rank adapters; nothing left behind."""

from dataclasses import dataclass, replace

import pytest
import torch
from tiny import TinyBackbone, tiny_dataset
from torch.nn.functional import mse_loss

from bench.adapters.bank import Bank
from bench.adapters.cross_attention import attention, block_scales
from bench.contracts import AdapterSpec, Ask, BenchError, CrossAttentionSpec, Loss, Method, Recipe, Text
from bench.seeding import generator
from bench.training.latents import Latents
from bench.training.trainer import Job, train

WIDTH = 10
SPECS = {"image": CrossAttentionSpec(WIDTH, tokens=3), "style": AdapterSpec(3)}


def bank_of(backbone, specs=SPECS, cells=1):
    bank = Bank(backbone, specs, [generator("adapters", seed) for seed in range(cells)])
    for name, theta in bank.theta.items():  # every number of every cell is its own
        theta += torch.randn(theta.shape, generator=generator("fill", name), dtype=theta.dtype) * 0.2
    return bank


def rows(backbone, n, seed=0, shape=(WIDTH,)):
    draw = generator("rows", seed)
    z, t = torch.randn(n, 4, 8, 8, generator=draw).to(backbone.dtype), torch.randint(1000, (n,), generator=draw)
    features = torch.randn(n, *shape, generator=draw).to(backbone.dtype)
    return z, t, backbone.embed([f"prompt {seed} {i}" for i in range(n)]).showing({"image": features})


class Reference:
    """A second implementation as an attention processor, for one row: low-rank deltas added, heads in a loop."""

    def __init__(self, weights, tokens, scale, style):
        self.weights, self.tokens, self.scale, self.style = weights, tokens, scale, style

    def __call__(self, layer, hidden, encoder_hidden_states=None, **kwargs):
        def through(module, x):
            delta = self.style.get(module)
            return module(x) if delta is None else module(x) + x @ delta.T

        context = hidden if encoder_hidden_states is None else encoder_hidden_states
        query = through(layer.to_q, hidden)
        out = self.read(layer, query, through(layer.to_k, context), through(layer.to_v, context))
        if encoder_hidden_states is not None and self.scale:
            key, value = (self.tokens @ weight.T for weight in self.weights[layer])
            out = out + self.scale * self.read(layer, query, key, value)
        return through(layer.to_out[0], out)

    @staticmethod
    def read(layer, query, key, value):
        parts = zip(*(x.chunk(layer.heads, -1) for x in (query, key, value)), strict=True)
        return torch.cat([(q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v for q, k, v in parts], -1)


def one_row(backbone, bank, cell, ask, i):
    """Oracle for row i of an ask: the weights of its cell alone, and torch's own modules for the projection."""
    crossed, style = bank.crossed["image"], bank.layers["style"]
    w = {key: value[cell].detach() for key, value in crossed.weights.items()}
    made = torch.nn.functional.linear(
        ask.text.images["image"][i], w["image_proj.proj.weight"], w["image_proj.proj.bias"]
    )
    norm = w["image_proj.norm.weight"], w["image_proj.norm.bias"]
    tokens = torch.nn.functional.layer_norm(made.view(3, -1), norm[0].shape, *norm)
    layers = [m for name, m in backbone.network.named_modules() if name.endswith("attn2")]
    pairs = {m: [w[f"ip_adapter.{2 * j + 1}.to_{x}_ip.weight"] for x in "kv"] for j, m in enumerate(layers)}
    lora = {s.module: float(scale_of(ask, "style", i)) * (s.up[cell] @ s.down[cell]).detach() for s in style.values()}
    before = backbone.network.attn_processors
    backbone.network.set_attn_processor(Reference(pairs, tokens, float(scale_of(ask, "image", i)), lora))
    with torch.no_grad():
        out = backbone.predict(ask.z[i : i + 1], ask.t[i : i + 1], ask.text[i : i + 1])
    backbone.network.set_attn_processor(dict(before))
    return out


def scale_of(ask, name, i):
    scale = ask.adapters.get(name, 0.0)
    return scale[i] if isinstance(scale, torch.Tensor) else scale


def test_each_row_uses_its_own_cell_image_and_scales_beside_low_rank_adapters():
    backbone = TinyBackbone(torch.float64)
    bank = bank_of(backbone, cells=3)
    some = torch.tensor([0.0, 1.0, -0.7, 2.0]).double()
    asks = [
        (0, Ask(*rows(backbone, 4, 0), {"image": some, "style": some.flip(0)})),
        (1, Ask(*rows(backbone, 4, 1), {"image": some})),
        (2, Ask(*rows(backbone, 2, 2), {"image": 0.5, "style": 1.0})),
        (1, Ask(*rows(backbone, 2, 3), {"style": 1.0})),
    ]
    answers = [answer.detach() for answer in bank.answer(asks)]
    bank.settle()
    bank.close()
    for (cell, ask), answer in zip(asks, answers, strict=True):
        for i in range(len(answer)):
            expected = one_row(backbone, bank, cell, ask, i)
            torch.testing.assert_close(answer[i : i + 1], expected, rtol=0, atol=1e-9)


def test_scale_zero_absent_and_closed_are_the_backbone_bit_for_bit():
    backbone = TinyBackbone()
    z, t, text = rows(backbone, 4)
    processors = {name: type(p) for name, p in backbone.network.attn_processors.items()}
    plain = backbone.predict(z, t, text)
    bank = bank_of(backbone)
    with torch.no_grad():
        for adapters in ({}, {"image": 0.0}, {"image": torch.zeros(4)}):
            assert torch.equal(bank.answer([(0, Ask(z, t, text, adapters))])[0], plain)
        some = bank.answer([(0, Ask(z, t, text, {"image": torch.tensor([0.0, 1.0, 0.0, 0.0])}))])[0]
    assert torch.equal(some[[0, 2, 3]], plain[[0, 2, 3]]) and not torch.equal(some[1], plain[1])
    assert torch.equal(backbone.predict(z, t, text), plain)  # the routing ends with its forward pass
    bank.close()
    assert torch.equal(backbone.predict(z, t, text), plain)
    assert {name: type(p) for name, p in backbone.network.attn_processors.items()} == processors
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.network.modules())


def test_a_block_with_scale_zero_is_not_read():
    backbone = TinyBackbone()
    z, t, text = rows(backbone, 2)
    bank = bank_of(backbone, {"image": CrossAttentionSpec(WIDTH, scales={"up": {"block_1": [0.0, 0.5]}})})
    (before,) = bank.answer([(0, Ask(z, t, text, {"image": 1.0}))])
    bank.settle()
    sites = list(bank.crossed["image"].sites)
    for i, site in enumerate(sites):
        if not site.startswith("up_blocks.1.attentions.1."):
            with torch.no_grad():
                bank.crossed["image"].weights[f"ip_adapter.{2 * i + 1}.to_v_ip.weight"].mul_(-5)
    assert torch.equal(bank.answer([(0, Ask(z, t, text, {"image": 1.0}))])[0], before)
    bank.settle()


@pytest.mark.parametrize(
    "scales",
    [
        0.3,
        {"down": 0.5},
        {"mid": 0.2, "up": {"block_1": [0.1, 0.9]}},
        {"down": {"block_0": [0.7]}, "up": {"block_1": 2}},
    ],
)
def test_scales_by_block_mean_what_they_mean_in_diffusers(scales):
    from diffusers.loaders.unet_loader_utils import _maybe_expand_lora_scales

    backbone = TinyBackbone()
    sites = list(backbone.cross_attention())
    (theirs,) = _maybe_expand_lora_scales(backbone.network, [scales], default_scale=0.0)
    expected = {
        site: theirs if not isinstance(theirs, dict) else next(v for k, v in theirs.items() if site.startswith(k))
        for site in sites
    }
    assert block_scales(sites, scales) == expected


def test_attention_is_torchs():
    q, k, v = (torch.randn(2, n, 12, generator=generator("qkv", n)).double() for n in (7, 5, 5))
    split = [x.view(2, -1, 3, 4).transpose(1, 2) for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).reshape(2, 7, 12)
    torch.testing.assert_close(attention(q, k, v, 3), expected)


def test_keys_and_values_start_as_the_texts_and_the_projection_depends_on_its_generator_alone():
    backbone = TinyBackbone()
    one, two, same = (
        Bank(backbone, {"image": CrossAttentionSpec(WIDTH)}, [generator(seed)]).crossed["image"].state(0)
        for seed in (1, 2, 1)
    )
    for i, layer in enumerate(backbone.cross_attention().values()):
        assert torch.equal(one[f"ip_adapter.{2 * i + 1}.to_k_ip.weight"], layer.to_k.weight)
        assert torch.equal(one[f"ip_adapter.{2 * i + 1}.to_v_ip.weight"], layer.to_v.weight)
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    assert not torch.equal(one["image_proj.proj.weight"], two["image_proj.proj.weight"])


def test_an_adapter_that_is_shown_nothing_is_told():
    backbone = TinyBackbone()
    z, t, text = rows(backbone, 2)
    with pytest.raises(BenchError, match="'image' takes part, but no prompt shows it an image"):
        bank_of(backbone).answer([(0, Ask(z, t, Text(text.states), {"image": 1.0}))])


def test_texts_joined_keep_their_images_and_have_zeros_where_there_are_none():
    states, image = torch.arange(12.0).view(2, 3, 2), torch.ones(1, 4)
    seen = Text(states).showing({"image": image})
    both = Text.cat([Text(states), seen[1:], seen.expand(2)])
    assert torch.equal(both.images["image"], torch.cat([torch.zeros(2, 4), torch.ones(3, 4)]))
    assert len(both) == 5 and torch.equal(both[2:3].states, states[1:])
    assert Text.cat([Text(states), Text(states)]).images == {}


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass
class Both(Method):
    """An image adapter and a low-rank one learn together; then the first is frozen."""

    recipe: Recipe
    heads: int = 0
    strength_knob = "scale"

    def adapters(self, dataset):
        return {"image": CrossAttentionSpec(WIDTH, tokens=2, heads=self.heads, depth=1), "style": AdapterSpec(2)}

    def step(self, data, k, rng):
        (z,), examples = data.draw(("style",), rng)
        eps, t = data.noise(z, rng)
        shape = (len(z), 3, WIDTH) if self.heads else (len(z), WIDTH)
        text = data.text(["a dog"] * len(z)).showing({"image": torch.randn(shape, generator=rng)})
        frozen = frozenset({"image"}) if k >= 3 else frozenset()
        out = yield Ask(data.noisy(z, eps, t), t, text, {"image": 0.8, "style": 1.0}, frozen)
        yield Loss(mse_loss(out, eps))

    def prompts(self, prompt, dataset):
        return {"content": prompt, "negative": ""}

    def guide(self, z, t, texts, cfg, strength):
        return (yield Ask(z, t, texts["content"]))


def job(backbone, i, heads=0, steps=5, **changes):
    recipe = Recipe(steps=steps, lr=2e-3, batch_size=2, clip_norm=0.1)
    return Job(i, Both(recipe, heads), Latents(tiny_dataset(i), backbone, recipe), recipe, seed=20 + i, **changes)


def trained(backbone, jobs):
    bank = Bank(backbone, jobs[0].method.adapters(None), [generator("adapters", job.seed) for job in jobs])
    start = {name: theta.clone() for name, theta in bank.theta.items()}
    steps = [{name: theta.clone() for name, theta in bank.theta.items()} for _ in train(bank, jobs)]
    bank.close()
    return bank, start, steps


@pytest.mark.parametrize("heads", [0, 1])
def test_packed_and_alone_give_the_same_weights_with_or_without_checkpointing(heads):
    backbone = TinyBackbone(torch.float64)
    packed, start, _ = trained(backbone, [job(backbone, 0, heads), job(backbone, 1, heads)])
    backbone.network.enable_gradient_checkpointing()
    for i in (0, 1):
        alone, _, _ = trained(backbone, [replace(job(backbone, i, heads), cell=0)])
        for name in ("image", "style"):
            assert (packed.row(name, i) - start[name][i]).abs().max() > 1e-3
            torch.testing.assert_close(alone.row(name, 0), packed.row(name, i), rtol=0, atol=1e-9)


def test_a_frozen_image_adapter_does_not_move():
    backbone = TinyBackbone()
    _, _, steps = trained(backbone, [job(backbone, 0)])
    assert not torch.equal(steps[1]["image"], steps[2]["image"])
    assert torch.equal(steps[2]["image"], steps[4]["image"]) and not torch.equal(steps[2]["style"], steps[4]["style"])


@pytest.mark.parametrize("frozen", ["image", "style"])
def test_the_gradient_of_a_frozen_adapter_is_not_computed(frozen):
    backbone = TinyBackbone()
    bank = bank_of(backbone)
    (trained,) = {"image", "style"} - {frozen}
    ask = Ask(*rows(backbone, 2), {"image": 1.0, "style": 1.0}, frozenset({frozen}))
    bank.answer([(0, ask)])[0].square().sum().backward()
    assert bank.grad[frozen].abs().max() == 0 and bank.grad[trained].abs().max() > 0


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    backbone = TinyBackbone()
    calm, _, _ = trained(backbone, [job(backbone, 0)])
    monkeypatch.setattr("bench.training.trainer.CHECKPOINT_SHARE", 1e9)
    halves = job(backbone, 0, checkpoint=tmp_path / "checkpoint.safetensors")
    bank = Bank(backbone, halves.method.adapters(None), [generator("adapters", halves.seed)])
    for step in train(bank, [halves]):
        if step.k == 3:
            break
    bank.close()
    resumed, _, steps = trained(backbone, [halves])
    assert len(steps) == 3 and all(torch.equal(resumed.row(name, 0), calm.row(name, 0)) for name in SPECS)
