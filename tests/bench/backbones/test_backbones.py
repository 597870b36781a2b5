"""Our pieces against diffusers' pipelines on the same tiny random weights; what is told when weights are missing."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from random_pipelines import LENGTH, PIXELS, SD15_UNET, SDXL_UNET, autoencoder, sdxl, stable_diffusion

from bench import backbones, paths
from bench.backbones import embedding
from bench.backbones.sdxl import StableDiffusionXL
from bench.backbones.stable_diffusion import StableDiffusion
from bench.contracts import BenchError

# diffusers' Euler and DPM++ schedulers read tensors by np.array
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
torch.set_num_threads(1)

PROMPTS = ["a photo of a red house", "", "two cats"]
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "pndm": "PNDMScheduler",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Both families in hub layout, as diffusers writes it."""
    root = tmp_path_factory.mktemp("backbones")
    made = {"sd": stable_diffusion, "v": lambda: stable_diffusion("v_prediction"), "sdxl": sdxl}
    for name, build in made.items():
        build().save_pretrained(root / name)
    return {name: root / name for name in made}


@pytest.fixture(scope="module")
def references(folders):
    """diffusers' own pipelines, loaded by diffusers."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    pipelines = {
        "sd": StableDiffusionPipeline.from_pretrained(folders["sd"], safety_checker=None),
        "sdxl": StableDiffusionXLPipeline.from_pretrained(folders["sdxl"]),
    }
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)
    return pipelines


CLASSES = {"sd": StableDiffusion, "v": StableDiffusion, "sdxl": StableDiffusionXL}


@pytest.fixture(scope="module")
def ours(folders):
    loaded = {}

    def get(family, **options):
        key = (family, tuple(options.items()))
        if key not in loaded:
            loaded[key] = CLASSES[family](str(folders[family]), PIXELS, name=family, device="cpu", **options)
        return loaded[key]

    return get


def copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def noise(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pixels(seed, n=2):
    return torch.randint(256, (n, 3, PIXELS, PIXELS), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


# --- equal to diffusers -----------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_embedded_prompts_are_the_pipelines(family, ours, references):
    backbone, prompts = ours(family), ["a red house", "", "b"]
    assert_texts(backbone.embed(prompts), *encoded(references[family], prompts)[::2])
    if family == "sdxl":
        assert backbone.embed(prompts).extras["time_ids"].tolist() == [[PIXELS, PIXELS, 0, 0, PIXELS, PIXELS]] * 3


@torch.no_grad()
@pytest.mark.parametrize("read", [embedding.read, embedding.embedded])
@pytest.mark.parametrize("given", [None, "", "blurry"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_negative_prompts_are_the_pipelines_absent_empty_or_said(family, given, read, ours, references):
    """An absent one is zeros on SDXL; an empty one that is given is encoded, as every prompt of another role is."""
    expected = encoded(references[family], ["a", "b"], given)[1::2]
    assert (family == "sdxl" and given is None) == (not expected[0].any())
    text = read(ours(family), [given, "x", given])
    assert text.prompts == (given, "x", given)
    assert_texts(text[[0, 2]], *expected)
    assert_texts(text[[1]], *encoded(references[family], ["x"])[::2])


@torch.no_grad()
def test_without_zeros_in_the_index_an_absent_negative_prompt_is_the_empty_one(folders, references, tmp_path):
    folder = copied(folders["sdxl"], tmp_path / "changed")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
    backbone = StableDiffusionXL(str(folder), PIXELS, device="cpu")
    assert_texts(embedding.read(backbone, [None]), *encoded(references["sdxl"], ["a"], "")[1::2])


def encoded(pipeline, prompts, negative=None):
    """Prompt and negative states, of SDXL then the pooled states of both, as diffusers' pipeline reads them."""
    negative = None if negative is None else [negative] * len(prompts)
    return pipeline.encode_prompt(
        prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, negative_prompt=negative
    )


def assert_texts(text, states, pooled=None):
    torch.testing.assert_close(text.states, states)
    if pooled is not None:
        torch.testing.assert_close(text.extras["text_embeds"], pooled)


@torch.no_grad()
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_encode_and_decode_are_the_pipelines(family, ours, references):
    backbone, pipeline = ours(family), references[family]
    images = pixels(0)
    posterior = pipeline.vae.encode(pipeline.image_processor.preprocess(images.float() / 255)).latent_dist
    mean, std = backbone.encode(images)
    factor = pipeline.vae.config.scaling_factor
    assert mean.shape == (2, *backbone.latent_shape)
    torch.testing.assert_close(mean, posterior.mean * factor)
    torch.testing.assert_close(std, posterior.std * factor)
    z = noise(1, 2, *backbone.latent_shape)
    drawn = pipeline.image_processor.postprocess(pipeline.vae.decode(z / factor).sample, output_type="pil")
    expected = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in drawn])
    assert torch.equal(backbone.decode(z), expected)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_pixels_are_what_decode_rounds_and_carry_the_gradient_of_the_decoder(family, ours):
    backbone = ours(family)
    z = noise(1, 1, *backbone.latent_shape).requires_grad_()
    seen = backbone.pixels(z)
    assert torch.equal((seen * 255).round().to(torch.uint8), backbone.decode(z))
    (gradient,) = torch.autograd.grad(seen[0, :, 5, 7].sum(), z)
    step = 1e-2 * noise(2, *z.shape)
    moved = backbone.pixels(z + step) - backbone.pixels(z - step)
    expected = (gradient * step).sum() * 2
    torch.testing.assert_close(moved[0, :, 5, 7].sum(), expected, rtol=0.05, atol=1e-4)


def guided_images(backbone, scheduler, steps, prompts, z, cfg):
    """Plain classifier-free guidance with our pieces."""
    scheduler = backbone.scheduler(scheduler, steps)
    assert scheduler.timesteps.device.type == "cpu"
    text = type(backbone.embed([""])).cat([embedding.read(backbone, [None] * len(prompts)), backbone.embed(prompts)])
    z = z * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.scale_model_input(torch.cat([z, z]), t)
        empty, prompted = backbone.predict(x, t.expand(len(x)), text).chunk(2)
        z = scheduler.step(empty + cfg * (prompted - empty), t, z).prev_sample
    return backbone.decode(z)


@torch.no_grad()
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_sampled_images_are_the_pipelines(family, scheduler, ours, references):
    import diffusers

    pipeline, backbone = references[family], ours(family)
    kept = pipeline.scheduler
    pipeline.scheduler = getattr(diffusers, SCHEDULERS[scheduler]).from_config(kept.config, clip_sample=False)
    z, prompts = noise(3, 2, *backbone.latent_shape), ["a red house", "two cats"]
    try:
        drawn = pipeline(
            prompts, latents=z.clone(), num_inference_steps=6, guidance_scale=4.0, height=PIXELS, width=PIXELS,
            output_type="np",
        ).images  # fmt: skip
    finally:
        pipeline.scheduler = kept
    expected = (torch.from_numpy(drawn).permute(0, 3, 1, 2) * 255).round()
    found = guided_images(backbone, scheduler, 6, prompts, z, 4.0)
    assert found.dtype == torch.uint8
    assert expected.std() > 1  # a picture, not one colour
    assert (found.float() - expected).abs().max() <= 1


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_our_pipeline_is_made_of_the_same_components(family, ours, references):
    backbone, pipeline = ours(family), ours(family).pipeline()
    assert pipeline.unet is backbone.network
    assert type(pipeline) is type(references[family])
    assert dict(pipeline.scheduler.config) == dict(references[family].scheduler.config, clip_sample=False)


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd", "v", "sdxl"])
def test_noise_and_target_follow_their_formulas(family, ours):
    backbone = ours(family)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    t = torch.tensor([0, 400, 999])
    z, eps = noise(0, 3, 4, 8, 8).double(), noise(1, 3, 4, 8, 8).double()
    a, s = (value.sqrt().view(-1, 1, 1, 1) for value in (kept[t], 1 - kept[t]))
    torch.testing.assert_close(backbone.noisy(z, eps, t), a * z + s * eps, rtol=1e-4, atol=1e-4)
    expected = a * eps - s * z if family == "v" else eps
    torch.testing.assert_close(backbone.target(z, eps, t), expected, rtol=1e-4, atol=1e-4)
    assert backbone.train_timesteps == 1000


def test_unknown_scheduler_and_too_many_steps_are_told(ours):
    with pytest.raises(BenchError, match="scheduler 'heun' was requested; known are ddim, euler, dpm\\+\\+, pndm"):
        ours("sd").scheduler("heun", 10)
    with pytest.raises(BenchError, match="1001 sampling steps were requested; give 1 to 1000"):
        ours("sd").scheduler("ddim", 1001)


def test_schedulers_never_clip_latents(folders, tmp_path):
    folder = copied(folders["sd"], tmp_path / "clips")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "clip_sample"}))
    backbone = StableDiffusion(str(folder), PIXELS, device="cpu")
    assert backbone.scheduler("ddim", 5).config.clip_sample is False


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_long_prompt_keeps_its_end_token_and_the_rest_is_counted(family, ours):
    backbone = ours(family)
    tokens = backbone.text_encoders[0].tokens(["x" * 30, "x"])
    assert tokens.shape == (2, LENGTH)
    assert tokens[0].tolist() == [512, *[tokens[0, 1]] * (LENGTH - 2), 513]
    assert tokens[1, 2] == 513
    assert backbone.truncated("x" * 30) == 30 - (LENGTH - 2)
    assert backbone.truncated("x" * (LENGTH - 2)) == 0
    assert backbone.embed(["x" * 30]).states.shape[1] == LENGTH


def test_prompts_embed_alike_alone_and_together(ours):
    backbone = ours("sdxl")
    together = backbone.embed(PROMPTS * 30)
    for i, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(together[i + 87 : i + 88].states, backbone.embed([prompt]).states)


# --- precision, memory ------------------------------------------------------------------------------------------------


def prediction(backbone, **kind):
    z = noise(5, 3, *backbone.latent_shape).to(**kind)
    return backbone.predict(z, torch.tensor([1, 500, 999]), backbone.embed(PROMPTS))


@torch.no_grad()
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_precisions_agree(family, ours):
    exact = prediction(ours(family, dtype="float64"), dtype=torch.float64)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(prediction(ours(family)).double(), exact, rtol=1e-3, atol=1e-4)
    half = ours(family, dtype="bfloat16")
    rough = prediction(half)
    assert half.embed(PROMPTS).states.dtype == torch.bfloat16
    assert rough.dtype == torch.float32  # latents and answers keep their precision
    assert (rough.double() - exact).std() < 0.05 * exact.std()


def test_an_unsafe_autoencoder_stays_float32_and_a_safe_one_does_not(folders, tmp_path, ours):
    assert ours("sdxl", dtype="bfloat16").vae.network.dtype == torch.float32
    autoencoder(force_upcast=False, scaling_factor=0.13025).save_pretrained(tmp_path / "safe")
    safe = StableDiffusionXL(
        str(folders["sdxl"]), PIXELS, dtype="bfloat16", device="cpu", name="sdxl", vae=str(tmp_path / "safe")
    )
    assert safe.vae.network.dtype == torch.bfloat16
    mean, std = safe.encode(pixels(0))
    assert mean.dtype == std.dtype == torch.float32
    exact = ours("sdxl").encode(pixels(0))[0]
    assert (mean - exact).std() < 0.05 * exact.std()
    assert (safe.decode(mean).float() - ours("sdxl").decode(mean).float()).abs().mean() < 4


@torch.no_grad()
def test_channels_last_predicts_the_same(ours):
    last = ours("sd", channels_last=True)
    assert last.network.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(prediction(last), prediction(ours("sd")), rtol=1e-3, atol=1e-4)


def adapter_gradients(backbone):
    """Gradients of one low-rank matrix per attention layer, added by a forward hook as our adapters are."""
    sites = backbone.sites("attention")
    ups = {name: torch.zeros(m.out_features, 1, dtype=backbone.dtype, requires_grad=True) for name, m in sites.items()}
    hooks = [
        module.register_forward_hook(lambda m, args, out, up=ups[name]: out + args[0].sum(-1, keepdim=True) @ up.T)
        for name, module in sites.items()
    ]
    try:
        prediction(backbone, dtype=backbone.dtype).square().mean().backward()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: up.grad for name, up in ups.items()}


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_gradient_checkpointing_changes_no_gradient(family, ours):
    plain = adapter_gradients(ours(family, dtype="float64"))
    backbone = ours(family, dtype="float64", gradient_checkpointing=True)
    forwards = []
    hook = backbone.network.up_blocks[0].resnets[0].register_forward_pre_hook(lambda *args: forwards.append(1))
    recomputed = adapter_gradients(backbone)
    hook.remove()
    assert len(forwards) == 2  # forward, and again in the backward pass
    assert all(grad.abs().sum() > 0 for grad in plain.values())
    for name, grad in plain.items():
        torch.testing.assert_close(recomputed[name], grad, rtol=1e-9, atol=1e-12)


def test_the_weights_are_frozen_and_in_evaluation_mode(ours):
    for family in ("sd", "sdxl"):
        backbone = ours(family)
        networks = [backbone.network, backbone.vae.network, *(encoder.network for encoder in backbone.text_encoders)]
        assert not any(weight.requires_grad for network in networks for weight in network.parameters())
        assert not any(network.training for network in networks)


# --- foreign folders --------------------------------------------------------------------------------------------------


def half_stored(folder, target, variant):
    """The same model as many publish it: float16 files, perhaps named so."""
    from diffusers import StableDiffusionPipeline

    StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float16, safety_checker=None).save_pretrained(
        target, variant=variant
    )
    return target


@torch.no_grad()
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_half_stored_weights_are_upcast(variant, folders, tmp_path, ours):
    folder = half_stored(folders["sd"], tmp_path / "half", variant)
    backbone = StableDiffusion(str(folder), PIXELS, device="cpu")
    for network in (backbone.network, backbone.vae.network, backbone.text_encoders[0].network):
        assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    torch.testing.assert_close(prediction(backbone), prediction(ours("sd")), rtol=0.02, atol=0.02)


@torch.no_grad()
def test_a_folder_with_bin_files_only_loads(folders, tmp_path, ours):
    from safetensors.torch import load_file

    folder = copied(folders["sd"], tmp_path / "bin")
    for file in [*folder.glob("*/*.safetensors")]:
        stem = "pytorch_model" if file.stem == "model" else file.stem
        torch.save(load_file(file), file.with_name(f"{stem}.bin"))
        file.unlink()
    assert torch.equal(prediction(StableDiffusion(str(folder), PIXELS, device="cpu")), prediction(ours("sd")))


def test_a_missing_weight_is_told(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = copied(folders["sd"], tmp_path / "lacks")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["conv_in.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(BenchError, match=r"unet lacks 1 weights of its model, first conv_in\.weight; stage it again"):
        StableDiffusion(str(folder), PIXELS, device="cpu")


def test_broken_files_are_told(folders, tmp_path):
    folder = copied(folders["sd"], tmp_path / "cut")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(BenchError, match="unet was opened for a model in diffusers format and cannot be read"):
        StableDiffusion(str(folder), PIXELS, device="cpu")
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(BenchError, match="opened for its unet/config.json, which cannot be read"):
        StableDiffusion(str(folder), PIXELS, device="cpu")


def test_the_wrong_family_and_wrong_sizes_are_told(folders, ours):
    with pytest.raises(BenchError, match="StableDiffusion needs None; try backbone=sdxl"):
        StableDiffusion(str(folders["sdxl"]), PIXELS, device="cpu")
    with pytest.raises(BenchError, match="StableDiffusionXL needs 'text_time'; try backbone=sd15"):
        StableDiffusionXL(str(folders["sd"]), PIXELS, device="cpu")
    with pytest.raises(BenchError, match="resolution 30 was requested; tiny needs a multiple of 4, e.g. .*=32"):
        StableDiffusion(str(folders["sd"]), 30, device="cpu", name="tiny")
    with pytest.raises(BenchError, match="precision 'int8'"):
        StableDiffusion(str(folders["sd"]), PIXELS, device="cpu", dtype="int8")
    with pytest.raises(BenchError, match=r"sd encodes images \(N, 3, 32, 32\); found \(1, 3, 64, 64\)"):
        ours("sd").encode(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


# --- where the weights lie, and which they are ------------------------------------------------------------------------


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """No network, an empty hub cache, an empty mirror."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("BENCH_MIRROR", str(tmp_path / "mirror"))
    (tmp_path / "mirror").mkdir()
    return tmp_path


def test_missing_weights_say_what_where_from_how_large_and_what_to_type(no_hub):
    with pytest.raises(BenchError) as told:
        StableDiffusion("stable-diffusion-v1-5/stable-diffusion-v1-5", 512, download_gb=4.3, device="cpu")
    sentence = str(told.value)
    assert "https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5, about 4.3 GB" in sentence
    assert "hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --local-dir <folder>" in sentence
    assert "backbone.path=<folder>" in sentence and "HF_HUB_OFFLINE is set" in sentence
    with pytest.raises(BenchError, match="backbone folder ./nowhere/at/all was requested and does not exist"):
        backbones.resolve("./nowhere/at/all")
    with pytest.raises(BenchError, match="does not exist"):
        backbones.identity({"path": "/nowhere/at/all"})


SDXL_FILES = """
model_index.json README.md sd_xl_base_1.0.safetensors scheduler/scheduler_config.json
text_encoder/config.json text_encoder/model.safetensors text_encoder/model.fp16.safetensors text_encoder/model.onnx
text_encoder_2/config.json text_encoder_2/model.safetensors text_encoder_2/model.fp16.safetensors
tokenizer/merges.txt tokenizer/vocab.json tokenizer/tokenizer_config.json tokenizer/special_tokens_map.json
tokenizer_2/merges.txt tokenizer_2/vocab.json tokenizer_2/tokenizer_config.json
unet/config.json unet/diffusion_pytorch_model.safetensors unet/diffusion_pytorch_model.fp16.safetensors
unet/diffusion_pytorch_model-00001-of-00002.safetensors unet/diffusion_pytorch_model.bin unet/model.onnx
vae/config.json vae/diffusion_pytorch_model.safetensors vae/diffusion_pytorch_model.fp16.safetensors
vae_1_0/config.json vae_1_0/diffusion_pytorch_model.safetensors vae_decoder/model.onnx
""".split()


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_only_what_is_read_is_downloaded(variant, monkeypatch, no_hub):
    """The file list of SDXL's repository, filtered as huggingface_hub filters it."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import filter_repo_objects

    def snapshot_download(repo_id, revision, allow_patterns, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        requested.update(filter_repo_objects(SDXL_FILES, allow_patterns=allow_patterns))
        raise OSError("no route to host")

    requested = set()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(
        BenchError, match=r"are not on this machine .* and the hub did not give them \(no route to host"
    ):
        backbones.resolve("stabilityai/stable-diffusion-xl-base-1.0", variant)
    weights = {name for name in requested if name.endswith(("safetensors", "bin", "onnx"))}
    plain = {name for name in SDXL_FILES if name.endswith("safetensors") and name.count("/") and "vae_1_0" not in name}
    assert weights == {name for name in plain if (".fp16." in name) == (variant == "fp16")}
    texts = {name for name in SDXL_FILES if name.endswith((".json", ".txt")) and "vae_1_0" not in name}
    assert requested - weights == texts


def test_staged_weights_are_found_in_the_mirror(no_hub, folders):
    for place in ("someone/model", "other"):
        copied(folders["sd"], no_hub / "mirror" / "weights" / place)
    assert backbones.resolve("someone/model") == no_hub / "mirror" / "weights" / "someone" / "model"
    assert backbones.resolve("another/other") == no_hub / "mirror" / "weights" / "other"
    assert backbones.identity({"path": "someone/model"}) == backbones.identity({"path": str(folders["sd"])})


def test_the_hub_cache_is_read_without_network_and_names_its_commit(no_hub, folders):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = no_hub / "hub" / "models--someone--model"
    copied(folders["sd"], repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    assert backbones.identity({"path": "someone/model"}) == "someone/model@0123456789ab"
    assert backbones.resolve("someone/model") == repo / "snapshots" / commit
    assert StableDiffusion("someone/model", PIXELS, device="cpu").latent_shape == (4, 8, 8)
    assert backbones.identity({"path": "never/seen@v2"}) == "never/seen@v2"


def test_identity_follows_the_weights_and_nothing_else(folders, tmp_path):
    folder = copied(folders["sd"], tmp_path / "sd")
    spec = {"path": str(folder)}
    first = backbones.identity(spec)
    assert first == backbones.identity({"path": str(folders["sd"])}) == backbones.identity(spec)
    (folder / "README.md").write_text("words")
    (folder / "model.ckpt").write_bytes(b"another format")
    assert backbones.identity(spec) == first
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content, times = bytearray(file.read_bytes()), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    os.utime(file, ns=(times[0], times[1] + 10**9))
    assert backbones.identity(spec) != first
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    os.utime(file, ns=(times[0], times[1] + 2 * 10**9))
    assert backbones.identity(spec) == first
    assert backbones.identity(spec | {"vae": str(folder / "vae")}) != first


def test_naming_weights_needs_no_torch():
    import subprocess
    import sys

    code = (
        "import sys; from bench.backbones import identity; identity({'path': 'conf'}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | {"HF_HUB_OFFLINE": "1"}).returncode == 0


def test_variant_files_are_chosen(tmp_path):
    def chosen(*names, requested=None):
        folder = tmp_path / "-".join([*names, str(requested)])
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"")
        return backbones.variant_of(folder, requested)

    plain, half = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"
    assert chosen(plain) is None
    assert chosen(half) == "fp16"
    assert chosen(plain, half) is None
    assert chosen(plain, half, requested="fp16") == "fp16"
    assert chosen(plain, requested="fp16") is None
    assert chosen("model.fp16-00001-of-00002.safetensors") == "fp16"
    assert chosen("model-00001-of-00002.fp16.safetensors") == "fp16"
    assert chosen("model-00001-of-00002.safetensors") is None


# --- where adapters attach --------------------------------------------------------------------------------------------


def full_unet(**options):
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**options)


@pytest.mark.parametrize(
    "options, million, attention", [(SD15_UNET, 859.52, 128), (SDXL_UNET, 2567.46, 560)], ids=["sd15", "sdxl"]
)
def test_full_networks_carry_adapters_where_the_papers_put_them(options, million, attention):
    from bench.backbones.sites import sites

    network = full_unet(**options)
    assert round(sum(weight.numel() for weight in network.parameters()) / 1e6, 2) == million
    found = sites(network, "attention")
    assert len(found) == attention
    inward = sum(layer.in_features for layer in found.values())
    outward = sum(layer.out_features for layer in found.values())
    if attention == 128:
        assert 4 * (inward + outward) == 797_184  # methods.md: rank-4 LoRA of SD 1.5
        assert {layer.in_features for layer in found.values()} == {320, 640, 768, 1280}
    else:
        assert 64 * outward == 42_598_400  # methods.md: rank 64, only `up` is trained
        assert {layer.in_features for layer in found.values()} == {640, 1280, 2048}
    assert_linear_and_all(network, found)


def assert_linear_and_all(network, attention):
    """Against diffusers' module classes instead of names."""
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    from bench.backbones.sites import sites

    inside = {
        f"{outer}.{name}"
        for outer, part in network.named_modules()
        if isinstance(part, Transformer2DModel)
        for name, layer in part.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    assert set(sites(network, "linear")) == inside >= set(attention)
    convolutions = {name for name, layer in network.named_modules() if isinstance(layer, torch.nn.Conv2d)}
    assert set(sites(network, "all")) == inside | convolutions - {"conv_in", "conv_out"}


def test_unknown_places_are_told(ours):
    with pytest.raises(BenchError, match="requested at 'everywhere'; known places are attention, attention_conv"):
        ours("sd").sites("everywhere")


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mini", "sd15", "sdxl"])
def test_every_setting_of_a_yaml_is_a_parameter(name):
    import inspect
    import pydoc

    import yaml

    settings = yaml.safe_load((paths.ROOT / "conf" / "backbone" / f"{name}.yaml").read_text())
    kind = pydoc.locate(settings.pop("_target_"))
    assert settings["name"] == name
    inspect.signature(kind).bind(**settings)
