"""IP-Adapter against diffusers' own loader, processors and modules on the same random weights; its training."""

import copy
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
import random_pipelines
import torch
import yaml
from narrow_networks import Shaped, sd, sdxl
from safetensors.torch import save_file
from tiny import TinyBackbone, picture, tiny_dataset
from torch.nn.functional import mse_loss

from bench.adapters.bank import Bank
from bench.adapters.cross_attention import CrossAttention
from bench.adapters.image_adapter_files import read_image_adapter
from bench.adapters.image_encoder import ImageEncoder
from bench.backbones.sdxl import StableDiffusionXL
from bench.contracts import Ask, BenchError, CrossAttentionSpec, Example, Impossible, Recipe, Text
from bench.errors import Unavailable
from bench.sampling.sampler import Request, Sampler, Untouched, sample, shots
from bench.seeding import generator
from bench.settings import construct
from bench.store.record import Store
from bench.training.latents import Latents
from bench.training.trainer import Job, train
from methods.ip_adapter import IPAdapter

CONF = Path(__file__).parents[2] / "conf" / "method"
CLIP = "bench/mini/weights/clip"
FEATURES, PATCHES = 20, 9
STYLE = yaml.safe_load((CONF / "instantstyle_sdxl.yaml").read_text())["scales"]

# --- small networks and files in the public format -------------------------------------------------------------------


def rows(n, features):
    draw = generator("rows")
    extras = {"text_embeds": torch.randn(n, 16, generator=draw), "time_ids": torch.full((n, 6), 64.0)}
    states = torch.randn(n, 6, 24, generator=draw)
    text = Text(states.double(), {name: value.double() for name, value in extras.items()}, {"image": features})
    return torch.randn(n, 4, 8, 8, generator=draw).double(), torch.tensor([500, 20, 981])[:n], text


def drawn(shapes, rng):
    """Random weights; those of normalisations about one."""
    return {
        key: torch.randn(shape, generator=rng) * (0.3 if len(shape) > 1 else 0.1) + float("norm" in key and "w" in key)
        for key, shape in shapes.items()
    }


def base_projection(width, tokens=4):
    shapes = {"proj.weight": (tokens * width, FEATURES), "proj.bias": (tokens * width,)}
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def plus_projection(width, tokens=5, hidden=32, heads=2, depth=4):
    """The names and shapes of the official Resampler."""
    shapes = {"latents": (1, tokens, hidden), "proj_in.weight": (hidden, FEATURES), "proj_in.bias": (hidden,)}
    shapes |= {"proj_out.weight": (width, hidden), "proj_out.bias": (width,)}
    shapes |= {"norm_out.weight": (width,), "norm_out.bias": (width,)}
    for i in range(depth):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            shapes |= {f"layers.{i}.{norm}.weight": (hidden,), f"layers.{i}.{norm}.bias": (hidden,)}
        shapes |= {
            f"layers.{i}.0.to_q.weight": (64 * heads, hidden),
            f"layers.{i}.0.to_out.weight": (hidden, 64 * heads),
        }
        shapes |= {f"layers.{i}.0.to_kv.weight": (128 * heads, hidden)}
        shapes |= {f"layers.{i}.1.1.weight": (4 * hidden, hidden), f"layers.{i}.1.3.weight": (hidden, 4 * hidden)}
    return shapes


def public_file(network, projection, folder, suffix="safetensors"):
    """Random weights as the official training script saves them: attention layers counted by their processors."""
    rng = generator("file", projection.__name__)
    keys = {}
    for i, name in enumerate(network.attn_processors):
        layer = network.get_submodule(name.removesuffix(".processor"))
        if layer.to_k.in_features == network.config.cross_attention_dim:  # no self-attention here is 24 wide
            keys |= {f"{i}.to_{kind}_ip.weight": tuple(layer.to_k.weight.shape) for kind in "kv"}
    state = {"image_proj": drawn(projection(network.config.cross_attention_dim), rng), "ip_adapter": drawn(keys, rng)}
    path = folder / f"adapter.{suffix}"
    if suffix == "bin":
        torch.save(state, path)
    else:
        save_file({f"{group}.{key}": value for group, part in state.items() for key, value in part.items()}, path)
    return path


def theirs(network, path):
    """diffusers' pipeline with the adapter loaded by diffusers, on a copy of the network."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=copy.deepcopy(network), safety_checker=None,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), feature_extractor=None, image_encoder=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.load_ip_adapter(
        str(path.parent), subfolder="", weight_name=path.name, image_encoder_folder=None, local_files_only=True
    )
    return pipeline


CASES = [
    (sd, base_projection, 0.7, "safetensors"),
    (sd, base_projection, {"up": {"block_1": [0.0, 1.0, 0.3]}, "mid": 0.5}, "bin"),
    (sd, plus_projection, {"down": 0.8}, "bin"),
    (sdxl, base_projection, STYLE, "safetensors"),
    (sdxl, plus_projection, {**STYLE, "down": {"block_2": [0.0, 1.0]}}, "safetensors"),
]


@pytest.mark.parametrize("make, projection, scale, suffix", CASES)
def test_a_public_file_predicts_as_in_diffusers(make, projection, scale, suffix, tmp_path):
    backbone = Shaped(make)
    path = public_file(backbone.network, projection, tmp_path, suffix)
    shape = (3, FEATURES) if projection is base_projection else (3, PATCHES, FEATURES)
    features = torch.randn(shape, generator=generator("features")).double()
    z, t, text = rows(3, features)
    pipeline = theirs(backbone.network, path)
    pipeline.set_ip_adapter_scale(scale)
    conditions = {**text.extras, "image_embeds": [features[:, None]]}
    with torch.no_grad():
        expected = pipeline.unet(z, t, text.states, added_cond_kwargs=conditions).sample
        plain = backbone.predict(z, t, text)
    whole, strength = (scale, 1.0) if isinstance(scale, dict) else (1.0, scale)
    bank = Bank(backbone, {"image": CrossAttentionSpec(FEATURES, scales=whole, file=str(path))}, [None])
    (answer,) = bank.answer([(0, Ask(z, t, text, {"image": strength}, frozenset({"image"})))])
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-10)
    assert (answer - plain).abs().max() > 1e-3
    bank.close()
    assert torch.equal(backbone.predict(z, t, text), plain)


def test_what_we_write_diffusers_reads(tmp_path):
    backbone = Shaped(sd)
    bank = Bank(backbone, {"image": CrossAttentionSpec(FEATURES)}, [generator("drawn")])
    save_file(bank.state("image", 0), tmp_path / "ours.safetensors")
    features = torch.randn(2, FEATURES, generator=generator("features")).double()
    z, t, text = rows(2, features)
    (answer,) = bank.answer([(0, Ask(z, t, text, {"image": 1.0}, frozenset({"image"})))])
    bank.close()
    network = theirs(backbone.network, tmp_path / "ours.safetensors").unet
    with torch.no_grad():
        conditions = {**text.extras, "image_embeds": [features[:, None]]}
        expected = network(z, t, text.states, added_cond_kwargs=conditions).sample
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-6)  # files are float32


# --- the published sizes ---------------------------------------------------------------------------------------------


class Meta:
    """A published network without weights."""

    name = "meta"

    def __init__(self, **config):
        from diffusers import UNet2DConditionModel

        with torch.device("meta"):
            self.network = UNet2DConditionModel(sample_size=64, layers_per_block=2, **config)

    def cross_attention(self):
        return TinyBackbone.cross_attention(self)


def count(backbone, spec):
    return sum(prod(shape) for shape in CrossAttention(backbone, spec).shapes.values())


def test_stable_diffusion_15_has_the_published_parameters():
    backbone = Meta(block_out_channels=(320, 640, 1280, 1280), attention_head_dim=8, cross_attention_dim=768)
    assert len(backbone.cross_attention()) == 16
    assert count(backbone, CrossAttentionSpec(1024)) == 22_319_616
    keys_values = 2 * 768 * (5 * 320 + 5 * 640 + 6 * 1280)
    assert keys_values + 4 * 768 * 1024 + 4 * 768 + 2 * 768 == 22_319_616


def test_sdxl_has_351_million():
    backbone = Meta(
        block_out_channels=(320, 640, 1280), attention_head_dim=(5, 10, 20), cross_attention_dim=2048,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
        transformer_layers_per_block=(1, 2, 10),
    )  # fmt: skip
    assert len(backbone.cross_attention()) == 70
    keys_values = 2 * 2048 * (10 * 640 + 60 * 1280)
    assert count(backbone, CrossAttentionSpec(1280)) == keys_values + 4 * 2048 * 1280 + 4 * 2048 + 2 * 2048
    assert 340.7e6 < keys_values < 340.9e6


# --- sampling --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip():
    return ImageEncoder(CLIP)


@pytest.fixture(scope="module")
def weights(clip, tmp_path_factory):
    """An adapter file for the tiny backbone and `mini`'s CLIP."""
    bank = Bank(TinyBackbone(), {"image": CrossAttentionSpec(clip.width)}, [generator("weights")])
    path = tmp_path_factory.mktemp("weights") / "image.safetensors"
    save_file(bank.state("image", 0), path)
    return str(path)


def images(backbone, method, strength, data=None):
    data = data or tiny_dataset()
    bank = Bank(backbone, method.adapters(data), [None])
    request = Request(0, method, data, shots(data), strength)
    out = np.concatenate([chunk[0] for chunk in sample(bank, [request], Sampler(steps=4, cfg=3.0))])
    bank.close()
    return out


def test_lambda_zero_is_the_backbone_bit_for_bit(clip, weights):
    backbone, method = TinyBackbone(), IPAdapter(clip, file=weights)
    base = images(backbone, Untouched(), 0.0)
    assert np.array_equal(images(backbone, method, 0.0), base)
    assert not np.array_equal(images(backbone, method, 1.0), base)


def test_it_shows_the_style_image_or_the_mean_of_the_references(clip, weights):
    style, other = picture(3), picture(4)
    references = tuple(Example(image, "a photo of a dog", "dog") for image in (style, other))
    with_pair = IPAdapter(clip, file=weights).shown(tiny_dataset())["content"]["image"]
    torch.testing.assert_close(with_pair, clip([tiny_dataset().pairs[0].style.image]))
    data = tiny_dataset(references=references, pairs=(), content_hash="references")
    mean = IPAdapter(clip, file=weights).shown(data)["content"]["image"]
    torch.testing.assert_close(mean, (clip([style]) + clip([other])) / 2)


def test_instantstyle_subtracts_the_embedding_of_the_caption(clip, weights):
    data = tiny_dataset()
    shown = IPAdapter(clip, file=weights, subtract=0.5).shown(data)["content"]["image"]
    expected = clip([data.pairs[0].style.image]) - 0.5 * clip.words(["a photo of a dog"])
    torch.testing.assert_close(shown, expected)
    with pytest.raises(BenchError, match="pooled features only; give method.subtract=0"):
        IPAdapter(ImageEncoder(CLIP, "patches"), file=weights, subtract=0.5)


def test_guidance_is_diffusers_with_zeros_for_no_image(clip, weights):
    """Both rows at the same lambda, the empty prompt beside the projected zero embedding."""
    backbone, method = TinyBackbone(torch.float64), IPAdapter(clip, file=weights)
    network = theirs(backbone.network, Path(weights))
    network.set_ip_adapter_scale(0.6)
    z, t = torch.randn(1, 4, 8, 8, generator=generator("z")).double(), torch.tensor([500])
    shown = method.shown(tiny_dataset())
    texts = {role: backbone.embed([p]) for role, p in method.prompts("a photo of a cat", tiny_dataset()).items()}

    def predicted(role, features):
        conditions = {"image_embeds": [features[:, None]]}
        with torch.no_grad():
            return network.unet(z, t, texts[role].states, added_cond_kwargs=conditions).sample

    empty, content = (
        predicted("negative", torch.zeros(1, 256).double()),
        predicted("content", shown["content"]["image"]),
    )
    bank = Bank(backbone, method.adapters(tiny_dataset()), [None])
    coroutine = method.guide(z, t, {role: text.showing(shown[role]) for role, text in texts.items()}, 3.0, 0.6)
    with torch.no_grad():
        answer = bank.answer([(0, next(coroutine))])[0]
    with pytest.raises(StopIteration) as stop:
        coroutine.send(answer)
    torch.testing.assert_close(stop.value.value, empty + 3.0 * (content - empty), rtol=0, atol=1e-6)


# --- training --------------------------------------------------------------------------------------------------------

RECIPE = Recipe(steps=3, lr=1e-3, batch_size=3)


def learner(clip, **changes):
    return IPAdapter(clip, **{"recipe": RECIPE, **changes})


def test_one_number_decides_what_is_dropped(clip):
    no_image, no_text = learner(clip).dropped(50_000, generator("u"))
    expected = []
    for u in torch.rand(50_000, generator=generator("u")).tolist():  # as the official training script has it
        if u < 0.05:
            expected.append((True, False))
        elif u < 0.05 + 0.05:
            expected.append((False, True))
        elif u < 0.05 + 0.05 + 0.05:
            expected.append((True, True))
        else:
            expected.append((False, False))
    near = sum(a != b for a, b in zip(zip(no_image.tolist(), no_text.tolist(), strict=True), expected, strict=True))
    assert near <= 2  # a number on a border may round either way
    for case in ((True, False), (False, True), (True, True)):
        assert expected.count(case) / 50_000 == pytest.approx(0.05, abs=0.004)


@pytest.mark.parametrize(
    "dropout, image, text", [((1, 0, 0), 0, 1), ((0, 1, 0), 1, 0), ((0, 0, 1), 0, 0), ((0, 0, 0), 1, 1)]
)
def test_what_is_dropped_is_what_sampling_shows_for_nothing(clip, dropout, image, text):
    backbone, method, data = TinyBackbone(), learner(clip, dropout=dropout), tiny_dataset()
    ask = next(method.step(Latents(data, backbone, RECIPE), 0, generator("step")))
    shown = clip([data.references[0].image]) if image else method.shown(data)["negative"]["image"]
    torch.testing.assert_close(ask.text.images["image"], shown.expand(3, -1))
    torch.testing.assert_close(ask.text.states, backbone.embed(["a photo of a dog" if text else ""] * 3).states)
    assert ask.adapters == {"image": 1.0} and ask.trains == {"image"}


def tiny_unet(folder):
    """A backbone, and what its network reads for captions."""
    backbone = TinyBackbone(torch.float64)
    return backbone, lambda captions: (backbone.embed(captions).states, {})


def tiny_sdxl(folder):
    """The same of SDXL: states, pooled states and sizes, as diffusers' pipeline has them, also of an empty caption."""
    pipeline = random_pipelines.sdxl()
    pipeline.save_pretrained(folder)
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        encoder.to(torch.float64)
    backbone = StableDiffusionXL(str(folder), 64, dtype="float64", device="cpu")

    @torch.no_grad()
    def read(captions):
        states, _, pooled, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False, device="cpu")
        sizes = torch.tensor([[64, 64, 0, 0, 64, 64]] * len(captions)).double()
        return states, {"text_embeds": pooled, "time_ids": sizes}

    return backbone, read


@pytest.mark.parametrize("network", [tiny_unet, tiny_sdxl])
def test_the_published_update_replayed_with_diffusers_modules(network, clip, tmp_path):
    """AdamW on projection, keys and values, MSE of eps, everything else frozen; no bank, no trainer, no method."""
    backbone, read = network(tmp_path / "folder")
    data = tiny_dataset(references=tuple(
        Example(picture(seed), f"a photo of a dog {seed}", "dog") for seed in range(3)
    ))  # fmt: skip
    method = learner(clip, dropout=(0.3, 0.2, 0.2))
    frozen = {name: value.clone() for name, value in backbone.network.state_dict().items()}
    bank = Bank(backbone, method.adapters(data), [generator("adapters", 0)])
    save_file(bank.state("image", 0), tmp_path / "start.safetensors")
    steps = list(train(bank, [Job(0, method, Latents(data, backbone, RECIPE), RECIPE, seed=5)]))
    bank.close()
    assert all(torch.equal(value, frozen[name]) for name, value in backbone.network.state_dict().items())

    start = Bank(backbone, {"image": CrossAttentionSpec(256, file=str(tmp_path / "start.safetensors"))}, [None])
    start.close()
    unet = theirs(backbone.network, tmp_path / "start.safetensors").unet
    learned = {"image_proj.proj": "encoder_hid_proj.image_projection_layers.0.image_embeds"}
    learned |= {"image_proj.norm": "encoder_hid_proj.image_projection_layers.0.norm"}
    names = [name for name in unet.attn_processors if "attn2" in name]
    for i, name in enumerate(names):
        learned |= {f"ip_adapter.{2 * i + 1}.to_{x}_ip": f"{name}.to_{x}_ip.0" for x in "kv"}
    parameters = {
        f"{ours}.{kind}": unet.get_parameter(f"{name}.{kind}").requires_grad_()
        for ours, name in learned.items()
        for kind in (("weight", "bias") if "proj." in ours or "norm" in ours else ("weight",))
    }
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3, weight_decay=1e-2)
    latents, dropped = Latents(data, backbone, RECIPE), 0
    for k in range(RECIPE.steps):
        rng = generator("train", 5, k)
        (z,), examples = latents.draw(("references",), rng)
        eps, t = latents.noise(z, rng)
        u = torch.rand(3, generator=rng)
        captions = ["" if 0.3 <= x < 0.7 else e.caption for x, e in zip(u.tolist(), examples, strict=True)]
        shown = clip([e.image for e in examples]).double() * ((u >= 0.3) & ((u < 0.5) | (u >= 0.7)))[:, None]
        dropped += captions.count("")
        states, added = read(captions)
        conditions = {"image_embeds": [shown[:, None]], **added}
        loss = mse_loss(unet(latents.noisy(z, eps, t), t, states, added_cond_kwargs=conditions).sample, eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert steps[k].losses[0] == pytest.approx(loss.item(), abs=1e-6)
    assert dropped and set(bank.crossed["image"].weights) == set(parameters)
    for key, value in bank.crossed["image"].weights.items():
        moved = (value[0] - start.crossed["image"].weights[key][0]).abs().max()
        assert moved > 1e-4
        torch.testing.assert_close(value[0].detach(), parameters[key].detach(), rtol=0, atol=1e-5)


# --- what is told ----------------------------------------------------------------------------------------------------


def test_a_file_for_another_network_is_a_reason_to_skip(tmp_path):
    path = str(public_file(Shaped(sd).network, base_projection, tmp_path))
    with pytest.raises(Impossible, match=r"backbone tiny needs \(64, 20\).*found \(96, 20\); .*method.file"):
        Bank(TinyBackbone(), {"image": CrossAttentionSpec(FEATURES, file=path)}, [None])
    with pytest.raises(Impossible, match="features of width 20, the image encoder gives 256; .*method.encoder.path"):
        Bank(Shaped(sd), {"image": CrossAttentionSpec(256, file=path)}, [None])


def test_a_file_with_more_than_we_read_is_a_reason_to_skip(tmp_path):
    """Such as the low-rank weights that face adapters carry beside their image tokens."""
    path = public_file(Shaped(sd).network, base_projection, tmp_path)
    save_file(read_image_adapter(path) | {"ip_adapter.0.to_q_lora.down.weight": torch.zeros(4, 16)}, path)
    with pytest.raises(Impossible, match="1 weights have no place in the backbone tiny, first ip_adapter.0.to_q_lora"):
        Bank(Shaped(sd), {"image": CrossAttentionSpec(FEATURES, file=str(path))}, [None])


def test_other_files_are_refused_in_a_sentence(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(BenchError, match="other.safetensors is no image adapter"):
        read_image_adapter(tmp_path / "other.safetensors")
    torch.save({"image_proj": {"x": Path("a class, not a tensor")}, "ip_adapter": {}}, tmp_path / "unsafe.bin")
    with pytest.raises(BenchError, match="unsafe.bin cannot be read as weights.*stage it again"):
        read_image_adapter(tmp_path / "unsafe.bin")


def test_blocks_that_the_network_lacks_are_told():
    with pytest.raises(
        BenchError, match=r"requested at up \['block_0'\]; blocks .* down.block_0 \(2\).*up.block_1 \(3\)"
    ):
        Bank(Shaped(sd), {"image": CrossAttentionSpec(4, scales={"up": {"block_0": 1.0}})}, [generator(0)])
    with pytest.raises(BenchError, match=r"requested at up \['block_1'\]"):
        Bank(Shaped(sd), {"image": CrossAttentionSpec(4, scales={"up": {"block_1": [1, 0]}})}, [generator(0)])


def test_absent_weights_leave_the_cell_open_and_name_what_makes_them(tmp_path):
    from hydra import compose, initialize_config_dir

    from bench.compose import cell, register_datasets
    from bench.paths import CONF
    from bench.run import run

    register_datasets()
    file = "bench/mini/weights/encoder/none.safetensors"
    overrides = ["method=ip_adapter", f"method.file={file}", "tracker=none", f"results={tmp_path}", "dataset=blueprint"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        requested = cell(compose("config", overrides))
    assert list(requested.identity["method"]["files"]) == [CLIP]
    with pytest.raises(Unavailable, match=f"The weights {file} are not on this machine") as error:
        run(requested)
    assert "python -m bench.mini.recipe --out DIR --stages world,encoder" in str(error.value)
    assert Store(tmp_path).read(requested.run_id) is None
    hub = IPAdapter(ImageEncoder(CLIP), file="h94/IP-Adapter/models/none.safetensors").missing()
    assert "hf download h94/IP-Adapter --include 'models/none.safetensors*'" in hub


def test_the_run_id_follows_the_contents_of_the_weights(tmp_path):
    from bench.cell import contents

    settings = {"file": str(tmp_path / "a.bin"), "encoder": {"path": str(tmp_path)}, "images": "style"}
    (tmp_path / "a.bin").write_bytes(b"one")
    first = contents(settings)
    (tmp_path / "a.bin").write_bytes(b"other")
    assert set(first) == {settings["file"], str(tmp_path)}
    assert all(contents(settings)[name] != value for name, value in first.items())
    assert contents({"token": "sks", "where": "attention", "note": "a/b"}) == {}


def test_a_file_and_a_recipe_together_or_neither_are_refused(clip):
    for settings in ({}, {"file": "a", "recipe": RECIPE}):
        with pytest.raises(BenchError, match="give one of them"):
            IPAdapter(clip, **settings)
    assert replace(learner(clip)).lacks(tiny_dataset(references=())) == "references"


def mutated(state, key, how):
    value = state[key]
    rest = {name: x for name, x in state.items() if name != key}
    return {
        "gone": rest,
        "renamed": rest | {f"{key}.more": value},
        "turned": state | {key: value.T.contiguous() if value.dim() == 2 else value},
        "not finite": state | {key: torch.full_like(value, float("nan"))},
        "whole numbers": state | {key: value.to(torch.int8)},
    }[how]


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("how", ["gone", "renamed", "turned", "not finite", "whole numbers"])
@pytest.mark.parametrize("projection", [base_projection, plus_projection])
def test_a_file_with_one_tensor_changed_is_refused(projection, how, suffix, tmp_path):
    backbone = Shaped(sd)
    state = read_image_adapter(public_file(backbone.network, projection, tmp_path))
    keys = [key for key in state if how != "turned" or len(set(state[key].shape)) == 2]
    for i in torch.randperm(len(keys), generator=generator("mutated"))[:6].tolist():
        changed, path = mutated(state, keys[i], how), tmp_path / f"changed.{suffix}"
        if suffix == "bin":
            groups = {"image_proj": {}, "ip_adapter": {}}
            for key, value in changed.items():
                group, _, rest = key.partition(".")
                groups[group][rest] = value
            torch.save(groups, path)
        else:
            save_file(changed, path)
        with pytest.raises(BenchError, match="Image adapter|have no place here|no image adapter"):
            Bank(backbone, {"image": CrossAttentionSpec(FEATURES, file=str(path))}, [None])


def test_no_group_of_a_file_is_passed_over(tmp_path):
    state = torch.load(public_file(Shaped(sd).network, base_projection, tmp_path, "bin"), weights_only=True)
    for extra in ({"face_proj": {"x": torch.ones(1)}}, {"scale": torch.ones(1)}, {"scale": 0.5}):
        torch.save(state | extra, tmp_path / "more.bin")
        with pytest.raises(
            BenchError, match="no place here: 1 (weights of no image adapter|values that are no tensors)"
        ):
            read_image_adapter(tmp_path / "more.bin")


# --- several images, the words of the authors' scripts


@pytest.mark.parametrize("make, projection", [(sd, base_projection), (sdxl, plus_projection)])
def test_several_images_are_diffusers_concatenated_tokens(make, projection, tmp_path):
    """Three images in each of two rows, and rows without an adapter beside them."""
    backbone = Shaped(make)
    path = public_file(backbone.network, projection, tmp_path)
    shape = (2, 3, FEATURES) if projection is base_projection else (2, 3, PATCHES, FEATURES)
    features = torch.randn(shape, generator=generator("several")).double()
    z, t, text = rows(2, features)
    pipeline = theirs(backbone.network, path)
    with torch.no_grad():
        conditions = {**text.extras, "image_embeds": [features]}
        expected = pipeline.unet(z, t, text.states, added_cond_kwargs=conditions).sample
    bank = Bank(backbone, {"image": CrossAttentionSpec(FEATURES, file=str(path))}, [None])
    (answer,) = bank.answer([(0, Ask(z, t, text, {"image": 1.0}, frozenset({"image"})))])
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-10)
    one = rows(2, features[:, 0])[2]
    (single,) = bank.answer([(0, Ask(z, t, one, {"image": 1.0}, frozenset({"image"})))])
    assert (answer - single).abs().max() > 1e-3
    bank.close()


def test_references_are_shown_as_their_mean_or_each_by_itself(clip, weights):
    data = tiny_dataset(pairs=())
    mean, tokens = (IPAdapter(clip, weights, combine=combine) for combine in (None, "tokens"))
    each = clip([example.image for example in data.references])
    assert torch.equal(tokens.shown(data)["content"]["image"], each[None])
    assert torch.equal(tokens.shown(data)["negative"]["image"], clip.blank.expand(1, len(each), -1))
    assert torch.equal(mean.shown(data)["content"]["image"], each.mean(0, keepdim=True))
    assert not np.array_equal(*[images(TinyBackbone(), method, 1.0, data) for method in (mean, tokens)])


def test_template_and_negative_prompt_reach_the_network(clip, weights):
    data = tiny_dataset()
    method = IPAdapter(clip, weights, template="{prompt}, best quality", negative="lowres")
    assert method.prompts("a cat", data) == {"content": "a cat", "negative": "lowres", "style": "a cat, best quality"}
    assert set(method.shown(data)) == {"style", "negative"}
    backbone = TinyBackbone()
    prompted = replace(data, prompts=tuple(f"{prompt}, best quality" for prompt in data.prompts))
    with_words = images(backbone, method, 1.0)
    asked = images(backbone, IPAdapter(clip, weights, negative="lowres"), 1.0, prompted)
    assert np.array_equal(with_words, asked)
    positive = IPAdapter(clip, weights, template="{prompt}, best quality")
    assert not np.array_equal(with_words, images(backbone, positive, 1.0))


@pytest.mark.parametrize("template", ["best quality", "{prompt} {prompt}"])
def test_a_template_without_its_place_is_refused(template, clip, weights):
    with pytest.raises(BenchError, match="write {prompt} once"):
        IPAdapter(clip, weights, template=template)


def test_settings_that_are_null_are_no_part_of_a_cell():
    from bench.compose import from_overrides

    plain = from_overrides("method=ip_adapter", "tracker=none")
    assert not {"combine", "template", "negative"} & set(plain.method)
    on = from_overrides("method=ip_adapter", "tracker=none", "method.negative=lowres", "method.combine=tokens")
    assert on.method == {**plain.method, "negative": "lowres", "combine": "tokens"} and on.run_id != plain.run_id
    with pytest.raises(BenchError, match=r"combine=sum was requested; type mean, tokens or null"):
        construct(IPAdapter, {"encoder": None, "combine": "sum"}, "method")
