"""StyleAligned: the authors' sampling restated on tiny Stable Diffusion and SDXL, and what its adapter does to rows."""

import functools
import math

import pytest
import torch
from diffusers import DDIMScheduler
from test_replays_with_diffusers import P, families, made
from tiny import tiny_dataset
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from bench.adapters.bank import Bank
from bench.adapters.shared_attention import adain
from bench.contracts import Ask, BenchError, Impossible, SharedAttentionSpec
from bench.sampling.references import reference_latents
from bench.sampling.sampler import Request, Sampler, Shot, denoise
from methods.style_aligned import StyleAligned

torch.set_num_threads(1)
STEPS, CFG = 8, 4.0
PROMPTS = ("a cat", "a car", "a hut")


# --- the authors' code, restated: the reference is the first row of each half of the batch ----------------------------


def first(x):
    """(2 n, ...) -> the same shape, every row replaced by the first of its half."""
    return torch.cat([half[:1].expand_as(half) for half in x.chunk(2)])


def normalised_to_first(x):
    std = (x.var(-2, keepdim=True) + 1e-5).sqrt()
    return (x - x.mean(-2, keepdim=True)) / std * first(std) + first(x.mean(-2, keepdim=True))


class Sharing:
    """An attention processor of diffusers: keys and values of the first row behind the row's own, scores shifted."""

    def __init__(self, shift):
        self.shift = shift

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        def heads(x):
            return x.view(len(x), -1, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2)

        own = encoder_hidden_states is None
        source = hidden_states if own else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        query, key, value = map(heads, (query, key, value))
        mask = None
        if own:
            query, key = normalised_to_first(query), normalised_to_first(key)
            mask = torch.cat([torch.zeros(key.shape[-2]), torch.full((key.shape[-2],), self.shift)])[None].double()
            key, value = (torch.cat([x, first(x)], -2) for x in (key, value))
        out = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


def share(unet, shift):
    """Returns what undoes it."""
    before, norms = unet.attn_processors, [m for m in unet.modules() if isinstance(m, (nn.GroupNorm, nn.LayerNorm))]
    unet.set_attn_processor(Sharing(shift))
    for norm in norms:
        plain = norm.forward
        norm.forward = lambda x, plain=plain: plain(torch.cat([x, first(x)], -2))[..., : x.shape[-2], :]

    def undo():
        unet.set_attn_processor(before)
        for norm in norms:
            del norm.forward

    return undo


class Theirs:
    def __init__(self, pipeline):
        self.pipeline = pipeline
        config = pipeline.scheduler.config
        last = config.get(
            "set_alpha_to_one", True
        )  # of SD's file: false; diffusers would take it for a default of PNDM
        self.scheduler = DDIMScheduler.from_config(config, clip_sample=False, set_alpha_to_one=last)
        self.scheduler.set_timesteps(STEPS)

    @functools.cache  # noqa: B019
    @torch.no_grad()
    def read(self, prompt):
        """None: no negative prompt."""
        out = self.pipeline.encode_prompt(
            prompt or "", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
        )
        i = 1 if prompt is None else 0
        sizes = torch.tensor([[P, P, 0, 0, P, P]]).double()
        return out[i], ({"text_embeds": out[2 + i], "time_ids": sizes} if len(out) == 4 else None)

    def guided(self, z, t, prompts, cfg):
        """One batch: all rows without their prompts, then all with them."""
        texts = [self.read(prompt) for prompt in [*[None] * len(prompts), *prompts]]
        added = None
        if texts[0][1] is not None:
            added = {key: torch.cat([text[1][key] for text in texts]) for key in texts[0][1]}
        states = torch.cat([text[0] for text in texts])
        out = self.pipeline.unet(torch.cat([z, z]), t, encoder_hidden_states=states, added_cond_kwargs=added).sample
        unconditional, conditional = out.chunk(2)
        return unconditional + cfg * (conditional - unconditional)

    def inverted(self, z, prompt):
        """From the noise to the image, STEPS + 1 latents."""
        alphas, stride, found = self.scheduler.alphas_cumprod.double(), 1000 // STEPS, [z]
        for t in self.scheduler.timesteps.flip(0).tolist():
            eps = self.guided(z, t, [prompt], 2.0)
            now = alphas[t - stride] if t >= stride else self.scheduler.final_alpha_cumprod.double()
            z = alphas[t] ** 0.5 * (z - (1 - now) ** 0.5 * eps) / now**0.5 + (1 - alphas[t]) ** 0.5 * eps
            found.append(z)
        return found[::-1]

    @torch.no_grad()
    def sample(self, z0, reference, prompts, noise, offset, shift):
        known = self.inverted(z0, reference)
        z = torch.cat([known[offset], noise])
        undo = share(self.pipeline.unet, shift)
        for i, t in enumerate(self.scheduler.timesteps.tolist()):
            z = self.scheduler.step(self.guided(z, t, [reference, *prompts], CFG), t, z).prev_sample
            z[:1] = known[max(offset + 1, i + 1)]  # the callback at the end of the step
        undo()
        return z[1:]


@families
@pytest.mark.parametrize("offset", [0, 3])
def test_the_sampling_of_the_authors(family, offset):
    """Latents of three prompts after 8 steps of DDIM, from the same noise."""
    pipeline, backbone = made(family)
    data, method = tiny_dataset(prompts=PROMPTS, seeds=(0,)), StyleAligned(offset=offset, strength=2.0)
    ours = drawn(backbone, data, method, 2.0)
    noise = torch.stack([shot.noise(backbone.latent_shape) for shot in shots()]).double()
    z0 = backbone.encode(torch.from_numpy(data.pairs[0].style.image)[None])[0]
    told = [data.styled(prompt) for prompt in PROMPTS]
    theirs = Theirs(pipeline).sample(z0, data.styled("a photo of a dog"), told, noise, offset, math.log(2))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert (ours - drawn(backbone, data, method, 0.0)).abs().mean() > 0.01, "the reference changes the images"


def shots():
    return [Shot(i, prompt, 0) for i, prompt in enumerate(PROMPTS)]


def drawn(backbone, data, method, strength, bank=None):
    own = bank or Bank(backbone, method.adapters(data), [None])
    sampler, z = Sampler(steps=STEPS, cfg=CFG), torch.stack([shot.noise(backbone.latent_shape) for shot in shots()])
    scheduler = backbone.scheduler("ddim", STEPS)
    parts = [(Request(0, method, data, shots(), strength), shots())]
    with torch.no_grad():
        made = denoise(own, parts, sampler, scheduler, z.double(), scheduler.timesteps)
    own.close()
    return made


# --- rows -------------------------------------------------------------------------------------------------------------


def ask(backbone, n, references, scales):
    rng = torch.Generator().manual_seed(n)
    z = torch.randn(n, *backbone.latent_shape, generator=rng).double()
    text = backbone.embed([f"prompt {i}" for i in range(n)])
    scales = {} if scales is None else {"shared": torch.tensor(scales)}
    return Ask(z, torch.full((n,), 300), text, scales, references=references)


@families
@torch.no_grad()
def test_rows_of_several_cells_share_with_the_references_of_their_own_asks(family):
    """Rows without the adapter, the references themselves and other cells' rows are what they are alone."""
    _, backbone = made(family)
    bank = Bank(backbone, {"shared": SharedAttentionSpec()}, [None] * 3)
    asks = [
        ask(backbone, 3, [0, 0, 0], [0.0, 1.0, 2.0]),
        ask(backbone, 2, [1, 1], [0.5, 0.0]),
        ask(backbone, 4, [0, 0, 1, 1], None),
    ]
    alone = [bank.answer([(0, one)])[0] for one in asks]
    together = bank.answer(list(enumerate(asks)))
    bank.close()
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    plain = [backbone.predict(one.z, one.t, one.text) for one in asks]
    for made_, expected, changed in zip(together, plain, ([1, 2], [0], []), strict=True):
        moved = (made_ - expected).abs().flatten(1).amax(1)
        assert [i for i, gap in enumerate(moved.tolist()) if gap > 1e-6] == changed


@torch.no_grad()
def test_a_row_that_shares_with_itself_is_as_it_was():
    """Twice the same tokens weigh as once, and a row normalised to itself is itself, but for the epsilon of AdaIN."""
    _, backbone = made("sd")
    bank = Bank(backbone, {"shared": SharedAttentionSpec()}, [None])
    own = ask(backbone, 2, [0, 1], [3.0, 0.2])
    out = bank.answer([(0, own)])[0]
    bank.close()
    torch.testing.assert_close(out, backbone.predict(own.z, own.t, own.text), rtol=0, atol=1e-8)


def test_adain_gives_the_moments_of_the_reference():
    rng = torch.Generator().manual_seed(0)
    x, reference = torch.randn(2, 3, 50, 4, generator=rng), 5 + 7 * torch.randn(2, 3, 50, 4, generator=rng)
    made_ = adain(x, reference)
    torch.testing.assert_close(made_.mean(-2), reference.mean(-2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made_.std(-2), reference.std(-2), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_reference_begins_at_the_noise_of_a_later_step():
    """At the first step it is shown as at step `offset`, until step `offset + 1` as at that one, then as it comes."""
    _, backbone = made("sd")
    data, bank = tiny_dataset(), Bank(backbone, {}, [None])
    every, held = (reference_latents(bank, StyleAligned(inversion_guidance=1.0, offset=n), data, STEPS) for n in (0, 3))
    bank.close()
    timesteps = [float(t) for t in backbone.scheduler("ddim", STEPS).timesteps]
    assert [t for t, _ in every] == [t for t, _ in held] == timesteps
    for k, place in enumerate([3, 4, 4, 4, 4, 5, 6, 7]):
        assert torch.equal(held[k][1], every[place][1])


# --- what is told -----------------------------------------------------------------------------------------------------


def test_an_ask_without_references_is_told():
    _, backbone = made("sd")
    bank = Bank(backbone, {"shared": SharedAttentionSpec()}, [None])
    with pytest.raises(BenchError, match="'shared' takes part in an ask of 2 rows, 0 of which say their reference"):
        bank.answer([(0, ask(backbone, 2, [], [1.0, 1.0]))])
    bank.close()


def test_a_network_without_self_attention_is_a_reason_to_skip():
    class Plain:
        name, network = "plain", nn.Linear(2, 2)

    with pytest.raises(Impossible, match="plain has no self-attention layers"):
        Bank(Plain(), {"shared": SharedAttentionSpec()}, [])
