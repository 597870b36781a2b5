"""What a method draws from: pairs stay aligned, posteriors are drawn anew, prompts are embedded once."""

from dataclasses import replace

import pytest
import torch
from tiny import TinyBackbone, tiny_dataset

from bench.contracts import BenchError, Recipe
from bench.seeding import generator
from bench.training.latents import Latents

RECIPE = Recipe(steps=1, lr=1.0, batch_size=6, flip=True)


@pytest.mark.parametrize("crop", [1.0, 0.5])
def test_the_halves_of_a_pair_are_flipped_and_cropped_together(crop):
    """The style half is the negative of the content half, so its latents are too, whatever was drawn."""
    data = Latents(tiny_dataset(), TinyBackbone(torch.float64), replace(RECIPE, crop=crop), resample=False)
    (content, style), examples = data.draw(("content", "style"), generator(0))
    torch.testing.assert_close(style, -content, rtol=0, atol=0.02)
    assert len(examples) == 6 and len({z.sum().item() for z in content}) == (2 if crop == 1 else 6)
    mirrored = {z.flip(-1).sum(0).mul(torch.arange(8.0)).sum().item() for z in content}
    assert len(mirrored) > 1


def test_a_latent_is_drawn_from_its_posterior_or_is_the_mean():
    backbone, recipe = TinyBackbone(torch.float64), replace(RECIPE, flip=False, batch_size=400)
    mean, std = backbone.encode(torch.from_numpy(tiny_dataset().pairs[0].content.image)[None])
    (z,), _ = Latents(tiny_dataset(), backbone, recipe).draw(("content",), generator(1))
    torch.testing.assert_close(z.mean(0), mean[0], rtol=0, atol=5 * 0.05 / 20)
    assert abs(z.std(0).mean() / std.mean() - 1) < 0.05
    (fixed,), _ = Latents(tiny_dataset(), backbone, recipe, resample=False).draw(("content",), generator(1))
    assert torch.equal(fixed, mean.expand_as(fixed))


def test_images_and_prompts_are_computed_once():
    backbone, calls = TinyBackbone(), []
    encode, embed = backbone.encode, backbone.embed
    backbone.encode = lambda images: calls.append("encode") or encode(images)
    backbone.embed = lambda prompts: calls.append(("embed", *prompts)) or embed(prompts)
    data = Latents(tiny_dataset(), backbone, RECIPE)
    for k in range(5):
        data.draw(("content", "style"), generator(k))
        texts = data.text(["b", "a", "b"])
    assert calls.count("encode") == 4  # two images, mirrored and not
    Latents(tiny_dataset(1), backbone, RECIPE).text(["a"])  # another cell on this backbone
    assert [call for call in calls if call != "encode"] == [("embed", "b"), ("embed", "a")]
    assert torch.equal(texts.states, embed(["b", "a", "b"]).states)


def test_the_same_generator_draws_the_same():
    data = Latents(tiny_dataset(), TinyBackbone(), replace(RECIPE, crop=0.6))
    first, second = (data.draw(("content", "style"), generator("x"))[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_role_without_images_is_one_sentence():
    with pytest.raises(BenchError, match="Dataset 'tiny0' has no images in the role 'auxiliary'"):
        Latents(tiny_dataset(auxiliary=()), TinyBackbone(), RECIPE).draw(("auxiliary",), generator(0))
