"""The sampler: noise by seed, packs, late start, and plain guidance as written in the paper."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from tiny import TinyBackbone, tiny_dataset

from bench.adapters.bank import Bank
from bench.contracts import AdapterSpec, Ask, Method, Text
from bench.sampling.sampler import Request, Sampler, Untouched, sample, shots
from bench.seeding import generator

SAMPLER = Sampler(steps=4, cfg=3.0, batch=4)


@dataclass
class Scaled(Method):
    strength: float = 1.0
    start_t: float = 1000
    strength_knob = "scale"

    def adapters(self, dataset):
        return {"style": AdapterSpec(2)}

    def prompts(self, prompt, dataset):
        return {"content": prompt, "negative": "", "style": dataset.styled(prompt)}

    def guide(self, z, t, texts, cfg, strength):
        first = yield Ask(z, t, texts["style"], {"style": strength})
        second = yield Ask(z, t, texts["negative"])
        return second + cfg * (first - second)


def images(bank, requests, sampler=SAMPLER):
    chunks = list(sample(bank, requests, sampler))
    return [np.concatenate([chunk[i] for chunk in chunks]) for i in range(len(requests))]


def a_bank(backbone, cells=1, specs=None):
    bank = Bank(backbone, {"style": AdapterSpec(2)} if specs is None else specs, [generator(i) for i in range(cells)])
    for theta in bank.theta.values():
        theta.normal_(generator=generator("theta")).mul_(0.2)
    return bank


def test_the_baseline_is_ddim_with_classifier_free_guidance():
    """A second implementation: one image at a time, two calls per step, diffusers' scheduler."""
    backbone, data = TinyBackbone(), tiny_dataset()
    (drawn,) = images(a_bank(backbone, specs={}), [Request(0, Untouched(), data, shots(data), 0.0)])
    assert drawn.shape == (4, 3, 64, 64) and drawn.dtype == np.uint8
    for shot, image in zip(shots(data), drawn, strict=True):
        scheduler, z = backbone.scheduler("ddim", 4), shot.noise((4, 8, 8))[None]
        for t in scheduler.timesteps:
            with torch.no_grad():
                plain = backbone.predict(z, t[None], backbone.embed([""]))
                requested = backbone.predict(z, t[None], backbone.embed([shot.prompt]))
            z = scheduler.step(plain + 3.0 * (requested - plain), t, z).prev_sample
        assert np.abs(backbone.decode(z)[0].numpy().astype(int) - image.astype(int)).max() <= 1


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_an_image_does_not_depend_on_the_batch_it_is_drawn_in(batch):
    backbone, data = TinyBackbone(), tiny_dataset()
    bank, request = a_bank(backbone), Request(0, Scaled(), data, shots(data), 0.7)
    (four,), (other,) = images(bank, [request]), images(bank, [request], replace(SAMPLER, batch=batch))
    assert np.abs(four.astype(int) - other.astype(int)).max() <= 1


def test_noise_depends_on_prompt_place_and_seed_alone():
    data = tiny_dataset()
    noises = [shot.noise((4, 8, 8)) for shot in shots(data)]
    assert len({noise.sum().item() for noise in noises}) == 4
    assert torch.equal(noises[3], shots(data)[3].noise((4, 8, 8)))


def test_cells_sampled_in_a_pack_give_the_images_of_each_alone():
    backbone, data = TinyBackbone(), tiny_dataset()
    bank = a_bank(backbone, cells=3)
    requests = [Request(i, Scaled(), data, shots(data), 0.5 * i) for i in range(3)]
    packed = images(bank, requests)
    for request, together in zip(requests, packed, strict=True):
        (alone,) = images(bank, [request])
        assert np.abs(together.astype(int) - alone.astype(int)).max() <= 1


def test_sampling_records_no_gradients_and_leaves_no_routing_behind():
    backbone, data = TinyBackbone(), tiny_dataset()
    bank, seen, predict = a_bank(backbone), [], backbone.predict
    backbone.predict = lambda z, t, text: seen.append(torch.is_grad_enabled()) or predict(z, t, text)
    images(bank, [Request(0, Scaled(), data, shots(data), 1.0)])
    assert seen and not any(seen) and bank.active == {}


def test_before_the_late_start_the_backbones_own_guidance_runs():
    backbone, data = TinyBackbone(), tiny_dataset()
    bank = a_bank(backbone)
    (base,) = images(bank, [Request(0, Untouched(), data, shots(data), 0.0)])
    never, always, half = (
        images(bank, [Request(0, Scaled(start_t=start), data, shots(data), 1.0)])[0] for start in (-1, 1000, 500)
    )
    assert np.array_equal(never, base)
    assert not np.array_equal(always, base) and not np.array_equal(half, base) and not np.array_equal(half, always)
    overridden = images(bank, [Request(0, Scaled(start_t=1000), data, shots(data), 1.0)], replace(SAMPLER, start_t=-1))[
        0
    ]
    assert np.array_equal(overridden, base)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++", "pndm"])
def test_what_all_methods_draw_before_their_start_is_drawn_once(scheduler):
    """The same images bit for bit, with fewer passes; other prompts, or another start, are drawn from the beginning."""
    data, sampler = tiny_dataset(), replace(SAMPLER, scheduler=scheduler, steps=6)
    backbone, fresh = TinyBackbone(), TinyBackbone()
    passes, predict = [], backbone.predict
    backbone.predict = lambda *args: passes.append(1) or predict(*args)

    def drawn(strength, of=backbone, start_t=500, data=data):
        passes.clear()
        return images(a_bank(of), [Request(0, Scaled(start_t=start_t), data, shots(data), strength)], sampler)[0]

    drawn(0.3)
    whole = len(passes)
    again = drawn(0.9)
    early = sum(t > 500 for t in backbone.scheduler(scheduler, 6).timesteps)
    assert len(passes) == whole - early and early >= 2
    assert np.array_equal(again, drawn(0.9, of=fresh)) and not np.array_equal(again, drawn(0.3))
    drawn(0.9, data=replace(data, prompts=tuple(f"{prompt}!" for prompt in data.prompts)))
    assert len(passes) == whole
    drawn(0.9, start_t=700)
    assert len(passes) > whole - early


def test_texts_keep_their_rows_when_joined_and_cut():
    text = Text(torch.arange(6.0).view(3, 2, 1), {"pooled": torch.arange(3.0).view(3, 1)})
    joined = Text.cat([text[1:], text[:1].expand(2)])
    assert joined.states[:, 0, 0].tolist() == [2, 4, 0, 0] and joined.extras["pooled"][:, 0].tolist() == [1, 2, 0, 0]


def test_a_method_can_be_asked_without_its_own_words():
    from bench.sampling.sampler import Plain
    from methods.zero_shot import ZeroShot

    backbone, data = TinyBackbone(), tiny_dataset()
    bank, chosen = a_bank(backbone), shots(data)
    assert Plain(ZeroShot()).prompts("a photo of a dog", data) == {
        "content": "a photo of a dog", "negative": "", "style": "a photo of a dog",
    }  # fmt: skip
    (bare,) = images(bank, [Request(0, Plain(ZeroShot()), data, chosen, 1.0)])
    (untouched,) = images(bank, [Request(0, Untouched(), data, chosen, 1.0)])
    (worded,) = images(bank, [Request(0, ZeroShot(), data, chosen, 1.0)])
    assert np.array_equal(bare, untouched) and not np.array_equal(bare, worded)
