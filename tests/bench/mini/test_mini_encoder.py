"""The encoder stage of the recipe, on six pictures and the tiny backbone: two steps, a file that diffusers opens."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import TinyBackbone, picture

from bench.adapters.bank import Bank
from bench.adapters.cross_attention import read_image_adapter
from bench.contracts import Ask, CrossAttentionSpec
from bench.mini.recipe import encoder, export
from bench.mini.recipe.world import World
from bench.paths import ROOT

CLIP = ROOT / "bench" / "mini" / "weights" / "clip"


@pytest.fixture(scope="module")
def world():
    images = np.stack([picture(seed).transpose(1, 2, 0) for seed in range(6)])
    captions = [[f"picture {i} told as {k}" for k in range(5)] for i in range(6)]
    return World(images, captions, {})


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
    backbone, work = TinyBackbone(), tmp_path_factory.mktemp("work")
    frozen = {name: value.clone() for name, value in backbone.network.state_dict().items()}
    state = encoder.train(world, backbone, CLIP, work, steps=2, seed=0, batch=4)
    assert all(torch.equal(value, frozen[name]) for name, value in backbone.network.state_dict().items())
    encoder.write(state, work / "encoder")
    return backbone, state, work


def test_pictures_captions_and_latents_belong_together(world):
    backbone = TinyBackbone()
    data = encoder.WorldData(world, encoder.latents_of(world, backbone), backbone, 16)
    (z,), examples = data.draw(("references",), torch.Generator().manual_seed(0))
    for latent, example in zip(z, examples, strict=True):
        mean, _ = backbone.encode(torch.from_numpy(example.image)[None])
        torch.testing.assert_close(latent, mean[0], rtol=0, atol=1e-2)  # kept in half precision
        (row,) = [i for i in range(6) if np.array_equal(world.images[i].transpose(2, 0, 1), example.image)]
        assert example.caption in world.captions[row]
    assert len({example.caption for example in examples}) > 6


def test_two_steps_move_every_weight_and_a_finished_training_is_not_done_again(world, made):
    backbone, state, work = made
    untrained = Bank(backbone, {"image": CrossAttentionSpec(256)}, [encoder.generator("adapters", 0)])
    untrained.close()
    start = {key: value.clone() for key, value in untrained.state("image", 0).items()}
    assert set(state) == set(start) and {value.dtype for value in state.values()} == {torch.float16}
    untrained.row("image", 0).copy_(load_file(work / "encoder.checkpoint.safetensors")["image/theta"])
    for key, value in untrained.state("image", 0).items():  # in float32: a warm-up's two steps are small
        assert not torch.equal(value, start[key])
        torch.testing.assert_close(state[key], value.half())
    again = encoder.train(world, backbone, CLIP, work, steps=2, seed=0, batch=4)
    assert all(torch.equal(value, again[key]) for key, value in state.items())


def test_the_file_is_the_public_format(made):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    backbone, _, work = made
    path = work / "encoder" / "ip_adapter.safetensors"
    bank = Bank(backbone, {"image": CrossAttentionSpec(256, file=str(path))}, [None])
    features = torch.randn(2, 256, generator=torch.Generator().manual_seed(1))
    z, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([500, 20])
    text = backbone.embed(["one", "two"])
    with torch.no_grad():
        (ours,) = bank.answer([(0, Ask(z, t, text.showing({"image": features}), {"image": 1.0}))])
    bank.close()
    pipeline = StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=TinyBackbone().network, safety_checker=None,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), feature_extractor=None, image_encoder=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.load_ip_adapter(str(path.parent), subfolder="", weight_name=path.name, image_encoder_folder=None)
    conditions = {"image_embeds": [features[:, None]]}
    with torch.no_grad():
        theirs = pipeline.unet(z, t, text.states, added_cond_kwargs=conditions).sample
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert {key.split(".")[0] for key in read_image_adapter(path)} == {"image_proj", "ip_adapter"}


def test_a_bundle_over_its_limit_is_refused(tmp_path, monkeypatch):
    (tmp_path / "net.bin").write_bytes(b"x" * 2000)
    assert export.check_size(tmp_path) == 2000
    monkeypatch.setattr(export, "LIMIT_BYTES", 1999)
    with pytest.raises(ValueError, match="over the limit of 48: make a network smaller"):
        export.check_size(tmp_path)
