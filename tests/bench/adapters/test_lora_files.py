"""Foreign LoRA files: the prediction of diffusers' own loader on the same network, or a refusal."""

import copy
import math
import os
from pathlib import Path

import pytest
import torch
from lora_cases import (
    ATTENTION,
    EVERYWHERE,
    FEED_FORWARD,
    diffusers_names,
    halves,
    kohya_names,
    lora_names,
    merged,
    metadata,
    original,
    peft_folder,
    processor_names,
    rows,
    saved,
)
from narrow_networks import Shaped, sd, sdxl

from bench.adapters.bank import Bank
from bench.adapters.lora_files import read_lora
from bench.contracts import AdapterSpec, Ask, BenchError
from bench.seeding import generator

MINI = '{"_target_": "bench.backbones.stable_diffusion.StableDiffusion", "name": "mini", "resolution": 64, '
MINI += '"path": "bench/mini/weights/diffusion", "device": "cpu"}'
BACKBONES = {make: Shaped(make, torch.float32) for make in (sd, sdxl)}


def ours(backbone, path, scale=1.0):
    """The prediction (2, 4, 8, 8) with an adapter that starts from the file."""
    bank = Bank(backbone, {"style": AdapterSpec(1, file=str(path))}, [generator("adapters", 0)])
    try:
        return bank.answer([(0, Ask(*rows(), {"style": scale}, frozenset({"style"})))])[0]
    finally:
        bank.close()


def plain(network):
    z, t, text = rows()
    with torch.no_grad():
        return network(z, t, text.states, added_cond_kwargs=dict(text.extras)).sample


def theirs(backbone, path):
    """The prediction with the file loaded by diffusers' pipeline."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    network, none = copy.deepcopy(backbone.network), dict(vae=None, text_encoder=None, tokenizer=None)
    if network.config.addition_embed_type:
        pipeline = StableDiffusionXLPipeline(
            **none, text_encoder_2=None, tokenizer_2=None, unet=network, scheduler=DDIMScheduler(),
            add_watermarker=False, feature_extractor=None, image_encoder=None,
        )  # fmt: skip
    else:
        pipeline = StableDiffusionPipeline(
            **none, unet=network, scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), safety_checker=None,
            feature_extractor=None, image_encoder=None, requires_safety_checker=False,
        )  # fmt: skip
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    return plain(pipeline.unet)


def two_ranks(site):
    return 2 if site.endswith("to_q") else 4


def two_alphas(site):
    return 3.0 if "attn2" in site else 1.0


TARGETS = [end[1:] for end in ATTENTION]
QUARTER = metadata(r=4, lora_alpha=1, target_modules=TARGETS)
PATTERNS = dict(
    target_modules=TARGETS,
    r=4,
    lora_alpha=1,
    rank_pattern={"to_q": 2},
    alpha_pattern={"attn2.to_v": 8, "attn1.to_q": 3},
)


def pattern_scale(site):
    alpha = 8 if site.endswith("attn2.to_v") else 3 if site.endswith("attn1.to_q") else 1
    return alpha / two_ranks(site)


# name -> (network, layers, ranks, the file's tensors from the halves, its header, the scale of a site)
FORMATS = {
    "diffusers": (sd, FEED_FORWARD, None, diffusers_names, None, lambda site: 1),
    "diffusers, all layers": (sd, EVERYWHERE, None, diffusers_names, None, lambda site: 1),
    "diffusers, two ranks": (sd, ATTENTION, two_ranks, diffusers_names, None, lambda site: 1),
    "alpha in the metadata": (sd, ATTENTION, None, diffusers_names, QUARTER, lambda site: 1 / 4),
    "rslora in the metadata": (
        sd, FEED_FORWARD, None, diffusers_names, metadata(r=4, lora_alpha=3, use_rslora=True),
        lambda site: 3 / math.sqrt(4),
    ),
    "patterns in the metadata": (sd, ATTENTION, two_ranks, diffusers_names, metadata(**PATTERNS), pattern_scale),
    "before PEFT": (sd, FEED_FORWARD, None, lora_names, None, lambda site: 1),
    "attention processors": (sd, ATTENTION, None, lambda x: processor_names(x, "unet."), None, lambda site: 1),
    "kohya": (sd, FEED_FORWARD, None, lambda x: kohya_names(x, lambda site: 4), None, lambda site: 1),
    "kohya without alpha": (sd, FEED_FORWARD, None, kohya_names, None, lambda site: 1),
    "kohya, alpha": (sd, EVERYWHERE, None, lambda x: kohya_names(x, lambda site: 1), None, lambda site: 1 / 4),
    "SDXL": (sdxl, EVERYWHERE, None, diffusers_names, None, lambda site: 1),
    "SDXL, kohya": (
        sdxl, EVERYWHERE, None, lambda x: kohya_names(x, lambda site: 2, original), None, lambda site: 2 / 4,
    ),
    "SDXL, kohya, diffusers' blocks": (
        sdxl, FEED_FORWARD, None, lambda x: kohya_names(x, lambda site: 2), None, lambda site: 2 / 4,
    ),
}  # fmt: skip


def made(name, folder):
    make, ends, rank, names, header, scale = FORMATS[name]
    backbone = BACKBONES[make]
    pairs = halves(backbone.network, ends, rank or (lambda site: 4))
    path = saved(folder / "lora.safetensors", names(pairs), header)
    return backbone, pairs, path, scale


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_predicts_as_in_diffusers_and_as_its_merged_weights(name, tmp_path):
    backbone, pairs, path, scale = made(name, tmp_path)
    mine, untouched = ours(backbone, path), plain(backbone.network)
    assert (mine - plain(merged(backbone.network, pairs, scale))).abs().max() < 5e-5
    assert (mine - theirs(backbone, path)).abs().max() < 5e-5
    assert (mine - untouched).abs().max() > 0.05


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_names_of_old_scripts_without_a_prefix(suffix, tmp_path):
    """diffusers' pipeline passes these by; its UNet reads them."""
    backbone = BACKBONES[sd]
    pairs = halves(backbone.network, ATTENTION)
    path = saved(tmp_path / f"lora.{suffix}", processor_names(pairs))
    network = copy.deepcopy(backbone.network)
    network.load_lora_adapter(processor_names(pairs), prefix=None)
    assert (ours(backbone, path) - plain(network)).abs().max() < 5e-5


@pytest.mark.parametrize("settings", [dict(lora_alpha=1), dict(lora_alpha=3, use_rslora=True)])
def test_a_folder_of_peft_predicts_as_in_peft(settings, tmp_path):
    from peft import PeftModel

    backbone = BACKBONES[sd]
    folder = peft_folder(tmp_path / "peft", backbone.network, halves(backbone.network), **settings)
    other = plain(PeftModel.from_pretrained(copy.deepcopy(backbone.network), str(folder)))
    for path in (folder, folder / "adapter_model.safetensors"):
        assert (ours(backbone, path) - other).abs().max() < 5e-5
    (folder / "adapter_config.json").unlink()
    with pytest.raises(BenchError, match="adapter_config.json, and that is not beside it"):
        ours(backbone, folder / "adapter_model.safetensors")


def test_alphas_that_differ_between_layers(tmp_path):
    """Against the merged weights: diffusers gives all attention layers the commonest alpha."""
    backbone = BACKBONES[sd]
    pairs = halves(backbone.network, ATTENTION, two_ranks)
    path = saved(tmp_path / "lora.safetensors", kohya_names(pairs, two_alphas))
    expected = merged(backbone.network, pairs, lambda site: two_alphas(site) / two_ranks(site))
    assert (ours(backbone, path) - plain(expected)).abs().max() < 5e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype, tmp_path):
    backbone = BACKBONES[sd]
    pairs = {site: tuple(x.to(dtype) for x in both) for site, both in halves(backbone.network).items()}
    path = saved(tmp_path / "lora.safetensors", kohya_names(pairs, lambda site: 1))
    wide = {site: tuple(x.float() for x in both) for site, both in pairs.items()}
    assert (ours(backbone, path) - plain(merged(backbone.network, wide, lambda site: 1 / 4))).abs().max() < 5e-5


# --- no tensor is passed over ----------------------------------------------------------------------------------------


def changed(state, name, how):
    value = state[name]
    rest = {key: x for key, x in state.items() if key != name}
    if how == "gone":
        return rest
    if how == "renamed":
        return rest | {name.replace("attentions", "attention"): value}
    if how == "turned":
        return state | {name: value.mT.contiguous()}
    if how == "whole numbers":
        return state | {name: value.to(torch.int8)}
    number = {"NaN": math.nan, "infinite": math.inf}[how]
    return state | {name: torch.full_like(value, number)}


@pytest.mark.parametrize("how", ["gone", "renamed", "turned", "whole numbers", "NaN", "infinite"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_with_one_tensor_changed_is_refused(name, how, tmp_path):
    make, ends, rank, names, header, _ = FORMATS[name]
    network = BACKBONES[make].network
    state = names(halves(network, ends, rank or (lambda site: 4)))
    draw = generator(name, how)
    tried = [key for key in state if how != "turned" or state[key].dim() == 2 and len(set(state[key].shape)) == 2]
    tried = [key for key in tried if how != "renamed" or "attentions" in key]
    for i in torch.randperm(len(tried), generator=draw)[:2].tolist():
        path = saved(tmp_path / "lora.safetensors", changed(state, tried[i], how), header)
        with pytest.raises(BenchError) as error:
            read_lora(path, network)
        assert str(error.value).count("\n") == 0 and len(str(error.value)) < 600


@pytest.mark.parametrize("name", FORMATS)
def test_every_tensor_counts(name, tmp_path):
    make, ends, rank, names, header, _ = FORMATS[name]
    network = BACKBONES[make].network
    state = names(halves(network, ends, rank or (lambda site: 4)))
    before = read_lora(saved(tmp_path / "lora.safetensors", state, header), network)
    seen = set()
    for key in list(state)[:: max(1, len(state) // 4)]:
        after = read_lora(saved(tmp_path / "lora.safetensors", state | {key: 2 * state[key]}, header), network)
        differing = {ours for ours in before if not torch.equal(before[ours], after[ours])}
        assert len(differing) == 1
        if not key.endswith(".alpha"):
            assert differing.isdisjoint(seen)
            seen |= differing


def test_tensors_that_are_one_object_are_used_at_each_of_their_layers(tmp_path):
    backbone = BACKBONES[sd]
    pairs = halves(backbone.network, (".to_k", ".to_q"))
    shared = {site: pairs[site.replace("to_k", "to_q")] if "attn1" in site else both for site, both in pairs.items()}
    path = saved(tmp_path / "lora.bin", lora_names(shared))
    assert (ours(backbone, path) - plain(merged(backbone.network, shared, lambda site: 1))).abs().max() < 5e-5


# --- what is not supported is listed ---------------------------------------------------------------------------------

SITE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT = "lora_unet_" + SITE.replace(".", "_")
ONE = torch.ones(4, 16)
EXTRA = {
    "text encoder": (diffusers_names, {"text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": ONE},
                     "1 weights of a text encoder, first text_encoder.text_model"),
    "second text encoder": (diffusers_names, {f"text_encoder_2.x.lora_{half}.weight": ONE for half in "AB"},
                            "2 weights of a text encoder"),
    "kohya text encoder": (kohya_names, {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": ONE},
                           "1 weights of a text encoder, first lora_te1"),
    "kohya text encoder's alpha": (kohya_names, {"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": ONE[0, 0]},
                                   "1 weights of a text encoder"),
    "DoRA": (diffusers_names, {f"unet.{SITE}.lora_magnitude_vector.weight": ONE[0]},
             "layers without DoRA beside others with it"),
    "DoRA without a layer": (
        diffusers_names, {"unet.conv_in.lora_magnitude_vector": ONE[0]}, "1 lengths of DoRA without a layer"),
    "kohya DoRA": (kohya_names, {f"{FLAT}.dora_scale": ONE[:, :1]}, "1 lengths of DoRA in kohya's form"),
    "LoHa": (kohya_names, {f"{FLAT}.hada_w1_a": ONE}, "1 factors of LoHa"),
    "LoKr": (kohya_names, {f"{FLAT}.lokr_w1": ONE}, "1 factors of LoKr"),
    "Tucker": (kohya_names, {f"{FLAT}.lora_mid.weight": ONE}, "1 factors of a Tucker"),
    "bias": (diffusers_names, {f"unet.{SITE}.lora_B.bias": ONE[0]}, "1 differences of whole weights or biases"),
    "whole difference": (kohya_names, {"lora_unet_conv_in.diff": ONE}, "1 differences of whole weights"),
    "custom diffusion": (diffusers_names, {f"{SITE[:-5]}.processor.to_k_custom_diffusion.weight": ONE},
                         "1 weights of other attention processors"),
    "another model": (diffusers_names, {"transformer.blocks.0.to_q.lora_A.weight": ONE}, "1 names that are unknown"),
    "optimizer": (diffusers_names, {"step": ONE[0, 0]}, "1 names that are unknown or doubled, first step"),
    "alpha without a layer": (kohya_names, {"lora_unet_conv_in.alpha": ONE[0, 0]}, "1 alphas without a layer"),
    "a layer of another network": (
        diffusers_names, {f"unet.down_blocks.7.x.lora_{half}.weight": ONE for half in "AB"},
        "2 weights for layers that this network does not have"),
    "one layer under two names": (diffusers_names, {f"unet.{SITE}.lora.down.weight": ONE}, "1 names that are unknown"),
    "two sorts of block names": (
        kohya_names, {f"lora_unet_input_blocks_1_1_proj_in.lora_{end}.weight": ONE for end in ("down", "up")},
        "2 names that are unknown or doubled, first lora_unet_input_blocks"),
}  # fmt: skip


@pytest.mark.parametrize("case", EXTRA)
def test_what_is_not_supported_is_listed(case, tmp_path):
    names, extra, listed = EXTRA[case]
    network = BACKBONES[sd].network
    state = names(halves(network, ATTENTION))
    path = saved(tmp_path / "lora.safetensors", state)
    read_lora(path, network)
    with pytest.raises(BenchError, match=listed):
        read_lora(saved(path, state | extra), network)


SETTINGS = {
    "use_dora": (dict(r=4, lora_alpha=4, use_dora=True), "use_dora=true and holds no lora_magnitude_vector"),
    "lora_bias": (dict(r=4, lora_alpha=4, lora_bias=True), "lora_bias=True"),
    "bias": (dict(r=4, lora_alpha=4, bias="lora_only"), "bias='lora_only'"),
    "transposed": (dict(r=4, lora_alpha=4, fan_in_fan_out=True), "fan_in_fan_out=True"),
    "init that moves weights": (dict(r=4, lora_alpha=4, init_lora_weights="pissa"), "init_lora_weights='pissa'"),
    "further weights": (dict(r=4, lora_alpha=4, modules_to_save=["conv_in"]), "modules_to_save="),
    "of a later version": (dict(r=4, lora_alpha=4, twist={"by": 2}), "twist="),
    "another kind": (dict(r=4, lora_alpha=4, peft_type="LOHA"), "peft_type='LOHA'"),
    "another rank": (dict(r=8, lora_alpha=4), "says rank 8 for .* holds rank 4"),
    "no number": (dict(r=4, lora_alpha="much"), "lora_alpha='much', which is no finite number"),
    "not finite": (dict(r=4, lora_alpha=math.nan), "lora_alpha=nan, which is no finite number"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_change_the_meaning_are_refused(case, tmp_path):
    settings, listed = SETTINGS[case]
    network = BACKBONES[sd].network
    path = saved(tmp_path / "lora.safetensors", diffusers_names(halves(network, ATTENTION)), metadata(**settings))
    with pytest.raises(BenchError, match=listed):
        read_lora(path, network)


HEADERS = {
    "alpha in kohya's words": ({"ss_network_alpha": "1"}, "ss_network_alpha=1 in its header without"),
    "alpha": ({"lora_alpha": "16"}, "lora_alpha=16 in its header"),
    "rslora": ({"use_rslora": "true"}, "use_rslora=true in its header"),
    "broken metadata": ({"lora_adapter_metadata": "{"}, "are not JSON"),
    "metadata of another type": ({"lora_adapter_metadata": "[1]"}, "no JSON object"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_scale_in_the_header_alone_is_refused(case, tmp_path):
    header, listed = HEADERS[case]
    network = BACKBONES[sd].network
    state = kohya_names(halves(network, ATTENTION))
    path = saved(tmp_path / "lora.safetensors", state, {"ss_network_alpha": "4", "ss_network_dim": "4"})
    read_lora(path, network)  # it says what holds anyway
    with pytest.raises(BenchError, match=listed):
        read_lora(saved(path, state, header), network)


def test_alpha_in_some_layers_and_twice(tmp_path):
    network = BACKBONES[sd].network
    state = kohya_names(halves(network, ATTENTION), lambda site: 1 if "attn1" in site else None)
    with pytest.raises(BenchError, match="layers without an alpha beside others with one"):
        read_lora(saved(tmp_path / "lora.safetensors", state), network)
    state = kohya_names(halves(network, ATTENTION), lambda site: 1)
    with pytest.raises(BenchError, match="both PEFT's settings and .alpha"):
        read_lora(saved(tmp_path / "lora.safetensors", state, metadata(r=4, lora_alpha=4)), network)


class Payload:
    """What runs code when a file is unpickled without restriction."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.ckpt", "adapter_model.bin"])
def test_a_pickle_is_opened_without_running_it(name, tmp_path):
    trace = tmp_path / "ran"
    torch.save({"a": Payload(trace)}, tmp_path / name)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BenchError, match="cannot be read"):
        read_lora(tmp_path / name)
    assert not trace.exists()


@pytest.mark.parametrize("data", [b"", b"\0" * 7, b"\xff" * 64, b"<html>", b"\x02\0\0\0\0\0\0\0{}"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_what_is_no_file_of_tensors_is_one_sentence(data, suffix, tmp_path):
    path = tmp_path / f"lora.{suffix}"
    path.write_bytes(data)
    with pytest.raises(BenchError, match="cannot be read as weights of a LoRA|holds no tensors"):
        read_lora(path)


@pytest.mark.skipif("BENCH_CASES" not in os.environ, reason="BENCH_CASES names no folder of collected files")
@pytest.mark.parametrize("name", ["diffusers_with_metadata", "kohya_alpha"])
def test_collected_files_predict_as_in_diffusers(name):
    from bench.steps.work import loaded_backbone

    backbone = loaded_backbone(MINI)
    path = Path(os.environ["BENCH_CASES"]) / "lora" / f"{name}.safetensors"
    text = backbone.embed(["a dog", "a cat"])
    z, t = torch.randn(2, *backbone.latent_shape, generator=generator("rows")), torch.tensor([500, 20])
    bank = Bank(backbone, {"style": AdapterSpec(1, file=str(path))}, [generator("adapters", 0)])
    with torch.no_grad():
        mine = bank.answer([(0, Ask(z, t, text, {"style": 1.0}, frozenset({"style"})))])[0]
    bank.close()
    untouched, pipeline = backbone.predict(z, t, text), backbone.pipeline()
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    try:
        other = backbone.predict(z, t, text)
    finally:
        pipeline.unload_lora_weights()
    assert (mine - other).abs().max() < 5e-5 < 1e-3 < (mine - untouched).abs().max()
