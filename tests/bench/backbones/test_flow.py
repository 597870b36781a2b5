"""Flow-matching backbones against diffusers' own transformers, pipelines and training scripts, on random weights."""

import importlib.util
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from random_flow_pipelines import FAMILIES, LENGTH, PIXELS

from bench.adapters.bank import Bank
from bench.adapters.lora_files import read_lora
from bench.backbones.flow_schedule import noise_level
from bench.contracts import CONTEXT, CONVENTION, AdapterSpec, Ask, BenchError, Example, Impossible
from bench.sampling.sampler import Request, Sampler, Shot, Untouched, sample
from bench.steps.load import convention_notes
from methods.in_context import InContext

PROMPTS = ["a dog in the sea", "two red balls"]
STEPS, CFG = 4, 3.0


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    made = tmp_path_factory.mktemp(family)
    FAMILIES[family][0]().save_pretrained(made)
    return made


def load(family, folder, **options):
    module, name = FAMILIES[family][1].rsplit(".", 1)
    options = {"dtype": "float32", "device": "cpu", "text_length": LENGTH, **options}
    return getattr(import_module(module), name)(str(folder), PIXELS, **options)


@pytest.fixture(scope="module")
def backbone(family, folder):
    return load(family, folder)


class Prompts:
    """A dataset that only has prompts."""

    name, prompts, seeds = "prompts", PROMPTS, (0,)


def ours(backbone, cfg=CFG):
    bank = Bank(backbone, {}, [])
    shots = [Shot(i, prompt, 0) for i, prompt in enumerate(PROMPTS)]
    sampler = Sampler("euler", STEPS, cfg, batch=4)
    (images,) = zip(*sample(bank, [Request(0, Untouched(), Prompts(), shots, 0.0)], sampler), strict=True)
    return np.concatenate(images), shots


def theirs(backbone, shots, cfg=CFG):
    """Images of the pipeline made of the backbone's own parts, on the same noise."""
    pipe = backbone.pipeline()
    pipe.set_progress_bar_config(disable=True)
    noise = torch.stack([shot.noise(backbone.latent_shape) for shot in shots])
    options = {"height": PIXELS, "width": PIXELS, "num_inference_steps": STEPS, "output_type": "np"}
    options |= {"max_sequence_length": backbone.text_encoders[-1].length}
    if backbone.network_name == "FluxTransformer2DModel":
        n, c, h, w = noise.shape
        noise = pipe._pack_latents(noise, n, c, h, w)
        options |= {
            "guidance_scale": getattr(backbone, "guidance", 1.0),
            "true_cfg_scale": cfg,
            "negative_prompt": [""] * len(shots),
        }
    elif backbone.network_name == "ZImageTransformer2DModel":
        options |= {"guidance_scale": cfg - 1}  # it counts from the conditional prediction
    else:
        options |= {"guidance_scale": cfg}
    if backbone.network_name == "SD3Transformer2DModel":
        options |= {"negative_prompt": [""] * len(shots)}
    images = pipe(prompt=[shot.prompt for shot in shots], latents=noise, **options).images
    return (images * 255).round().astype(np.uint8).transpose(0, 3, 1, 2)


def test_the_sampler_draws_what_the_pipeline_draws(backbone):
    images, shots = ours(backbone)
    expected = theirs(backbone, shots)
    assert expected.std() > 5  # not a grey image
    assert np.abs(images.astype(int) - expected.astype(int)).max() <= 1


def test_the_states_of_prompts_are_the_pipelines(backbone):
    pipe = backbone.pipeline()
    with torch.no_grad():
        text = backbone.embed(["a dog", ""])
        if backbone.network_name.startswith("ZImage"):  # its pipeline keeps the words that are read, in a list
            expected, _ = pipe.encode_prompt(prompt=["a dog", ""], max_sequence_length=LENGTH, device="cpu")
            masks = text.extras["mask"].bool()
            for states, mask, one in zip(text.states, masks, expected, strict=True):
                torch.testing.assert_close(states[mask], one)
            return
        more = {} if backbone.network_name.startswith("Flux") else {"prompt_3": ["a dog", ""]}
        more |= {} if backbone.network_name.startswith("Flux2") else {"prompt_2": ["a dog", ""]}
        more |= {"max_sequence_length": backbone.text_encoders[-1].length}
        expected = pipe.encode_prompt(prompt=["a dog", ""], device="cpu", **more)
    torch.testing.assert_close(text.states, expected[0])
    if "pooled" in text.extras:
        pooled = expected[2] if backbone.network_name.startswith("SD3") else expected[1]
        torch.testing.assert_close(text.extras["pooled"], pooled)


def test_images_survive_the_autoencoder_as_in_diffusers(backbone):
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, PIXELS, PIXELS), generator=rng, dtype=torch.uint8)
    mean, std = backbone.encode(images)
    assert (std > 0).all() == backbone.draws_latents
    raw = backbone.vae.network.encode(images / 127.5 - 1).latent_dist.mode()
    decoded = (backbone.vae.network.decode(raw).sample / 2 + 0.5).clamp(0, 1)
    expected = (decoded * 255).round().to(torch.uint8)
    assert (backbone.decode(mean).int() - expected.int()).abs().max() <= 1


def test_the_training_target_is_the_scripts(backbone):
    """diffusers' scripts: places in the scheduler's table, its sigmas, target noise - latents."""
    rng, own = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    t = backbone.draw_timesteps(64, rng)
    table = backbone.pipeline().scheduler
    if backbone.time_sampling == "uniform":
        u = torch.rand(64, generator=own)
    else:
        u = torch.normal(0.0, 1.0, (64,), generator=own).sigmoid()
    expected = table.timesteps[(u * 1000).long()]
    torch.testing.assert_close(t, expected)
    z, eps = (torch.randn(64, 3, 2, 2, generator=own) for _ in range(2))
    places = [(table.timesteps == step).nonzero().item() for step in expected]
    sigmas = table.sigmas[places].view(-1, 1, 1, 1)
    torch.testing.assert_close(backbone.noisy(z, eps, t), (1.0 - sigmas) * z + sigmas * eps)
    torch.testing.assert_close(backbone.target(z, eps, t), eps - z)


def test_a_late_start_is_a_noise_level(backbone):
    """DDPM timestep 800 of Stable Diffusion, whose noise is 5.1 times the signal."""
    assert noise_level(800) == pytest.approx(0.836, abs=5e-4)
    assert backbone.timestep(800) == pytest.approx(836, abs=0.5)
    assert backbone.timestep(1000) == 1000


def rows(backbone, n, seed):
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn((n, *backbone.latent_shape), generator=rng, dtype=torch.float64).to(backbone.dtype)
    t = backbone.draw_timesteps(n, rng)
    with torch.no_grad():
        text = backbone.embed(PROMPTS[:n])
    return z, t, text


def moved(bank, cells):
    """A bank whose adapters are not zero."""
    for cell in range(cells):
        row = bank.row("style", cell)
        row += 0.05 * torch.randn(row.shape, generator=torch.Generator().manual_seed(cell), dtype=torch.float64).to(row)
    return bank


@pytest.mark.parametrize("where", ["attention", "linear", "noxattn"])
def test_a_pack_predicts_what_each_cell_predicts_alone(family, folder, where):
    backbone = load(family, folder, dtype="float64")
    generators = [torch.Generator().manual_seed(cell) for cell in range(2)]
    bank = moved(Bank(backbone, {"style": AdapterSpec(2, where)}, generators), 2)
    asks = [(cell, Ask(*rows(backbone, 2, cell), {"style": 1.0})) for cell in range(2)]
    together = bank.answer(asks)
    for (cell, ask), packed in zip(asks, together, strict=True):
        (alone,) = bank.answer([(cell, ask)])
        torch.testing.assert_close(packed, alone, rtol=0, atol=1e-9)
        (untouched,) = bank.answer([(cell, Ask(ask.z, ask.t, ask.text))])
        assert (alone - untouched).abs().max() > 1e-4
    bank.close()


def test_an_adapter_loads_in_the_pipeline_and_back(backbone, tmp_path):
    bank = moved(Bank(backbone, {"style": AdapterSpec(2, "attention")}, [torch.Generator().manual_seed(0)]), 1)
    z, t, text = rows(backbone, 2, 5)
    (expected,) = bank.answer([(0, Ask(z, t, text, {"style": 1.0}))])
    bank.save("style", 0, tmp_path)
    bank.close()
    pipe = backbone.pipeline()
    pipe.load_lora_weights(tmp_path / "style.safetensors")
    with torch.no_grad():
        loaded = backbone.predict(z, t, text)
    pipe.unload_lora_weights()
    torch.testing.assert_close(loaded, expected)
    again = Bank(backbone, {"style": AdapterSpec(2, "attention", file=str(tmp_path / "style.safetensors"))}, [None])
    (reread,) = again.answer([(0, Ask(z, t, text, {"style": 1.0}))])
    again.close()
    torch.testing.assert_close(reread, expected)


def test_text_encoders_are_on_the_device_only_while_they_read(family, folder, monkeypatch):
    """No move before the first prompt, then one there and one back for each encoder."""
    from transformers import PreTrainedModel

    moves, move = [], PreTrainedModel.to
    monkeypatch.setattr(PreTrainedModel, "to", lambda self, *args: moves.append(str(args[0])) or move(self, *args))
    backbone = load(family, folder, offload_text_encoders=True)
    assert moves == []
    backbone.device = torch.device("cpu:0")  # tells "there" from "back"
    with torch.no_grad():
        backbone.embed(["a dog"])
    encoders = len(backbone.text_encoders)
    assert moves == ["cpu:0"] * encoders + ["cpu"] * encoders


@pytest.mark.parametrize(
    "name", ["lora_unet_double_blocks_0_img_attn_proj", "diffusion_model.double_blocks.0.img_attn.proj"]
)
def test_files_of_other_tools_are_refused_with_the_way_to_convert_them(name, tmp_path):
    """What the sentence says to type makes a file that is read, with the scale of the first."""
    from diffusers import FluxPipeline
    from safetensors.torch import save_file

    network = FAMILIES["flux1"][0]().transformer
    rng = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 32, generator=rng), torch.randn(32, 2, generator=rng)
    file, made = tmp_path / "kohya.safetensors", tmp_path / "made.safetensors"
    save_file(
        {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}, file
    )
    with pytest.raises(BenchError, match="2 weights under names of kohya's tools .* convert it with the pipeline"):
        read_lora(file, network, "transformer")
    if name.startswith("lora_unet"):
        save_file({key: value.clone() for key, value in FluxPipeline.lora_state_dict(str(file)).items()}, made)
        state = read_lora(made, network, "transformer")
        site = "transformer.transformer_blocks.0.attn.to_out.0.lora"
        torch.testing.assert_close(state[f"{site}_B.weight"] @ state[f"{site}_A.weight"], up @ down / 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"time_sampling": "cosine"}, "backbone.time_sampling=cosine was requested; give uniform or logit_normal"),
        ({"resolution": PIXELS + 1}, "needs a multiple of"),
    ],
)
def test_bad_settings_are_one_sentence(family, folder, options, words):
    module, name = FAMILIES[family][1].rsplit(".", 1)
    with pytest.raises(BenchError, match=words):
        getattr(import_module(module), name)(str(folder), **{"resolution": PIXELS, "device": "cpu", **options})


def test_other_solvers_and_selections_are_refused(backbone):
    with pytest.raises(BenchError, match="sampler.scheduler=euler"):
        backbone.scheduler("ddim", 4)
    with pytest.raises(BenchError, match="joint attention does not have"):
        backbone.sites("selfattn")


def test_a_backbone_of_another_family_is_refused(family, folder):
    other = next(name for name in FAMILIES if name != family)
    with pytest.raises(BenchError, match="choose the backbone of that model"):
        load(other, folder)


@pytest.fixture(scope="module")
def klein(tmp_path_factory):
    made = tmp_path_factory.mktemp("klein")
    FAMILIES["flux2_klein"][0]().save_pretrained(made)
    return load("flux2_klein", made)


@pytest.mark.parametrize("count", [1, 2])
def test_references_in_context_are_drawn_as_the_pipeline_draws_them(klein, count, monkeypatch):
    from PIL import Image

    rng = torch.Generator().manual_seed(4)
    pictures = torch.randint(0, 256, (count, 3, PIXELS, PIXELS), generator=rng, dtype=torch.uint8)
    dataset = Prompts()
    dataset.pairs, dataset.references = (), [Example(picture.numpy(), "", "") for picture in pictures]
    method = InContext(count=count, words="{prompt} like this")
    shots = [Shot(i, prompt, 0) for i, prompt in enumerate(PROMPTS)]
    bank = Bank(klein, {}, [])
    ((drawn,),) = sample(bank, [Request(0, method, dataset, shots, 1.0)], Sampler("euler", STEPS, CFG, batch=4))
    pipe = klein.pipeline()
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(pipe.image_processor, "check_image_input", lambda image: None)  # it wants 64 pixels
    images = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures]
    expected = pipe(
        image=images, prompt=[f"{prompt} like this" for prompt in PROMPTS], height=PIXELS, width=PIXELS,
        num_inference_steps=STEPS, guidance_scale=CFG, max_sequence_length=LENGTH, output_type="np",
        latents=torch.stack([shot.noise(klein.latent_shape) for shot in shots]),
    ).images  # fmt: skip
    expected = (expected * 255).round().astype(int).transpose(0, 3, 1, 2)
    assert np.abs(drawn.astype(int) - expected).max() <= 1
    alone, _ = ours(klein)
    assert np.abs(drawn.astype(int) - alone).max() > 5  # the references are read


@pytest.mark.parametrize("name", ["sd35", "flux1"])
def test_a_network_without_references_refuses_them(name, tmp_path):
    FAMILIES[name][0]().save_pretrained(tmp_path)
    backbone = load(name, tmp_path)
    with torch.no_grad():
        text = backbone.embed(["a dog"]).showing({CONTEXT: torch.zeros(1, 1, 3, PIXELS, PIXELS, dtype=torch.uint8)})
    with pytest.raises(Impossible, match="does not read reference images"):
        backbone.drawing(text)


@pytest.mark.parametrize(
    ("quantize", "words"),
    [("nf5", "give null, nf4, int8, fp8"), ("int8", "needs torchao, which is not installed")],
)
def test_quantisation_that_cannot_be_is_one_sentence(klein, quantize, words):
    if "torchao" in words and importlib.util.find_spec("torchao"):
        pytest.skip("torchao is installed")
    with pytest.raises(BenchError, match=words):
        load("flux2_klein", klein.folder, quantize=quantize)


@pytest.mark.parametrize("quantize", ["int8", "fp8"])
def test_adapters_train_on_quantised_weights(klein, quantize):
    pytest.importorskip("torchao")
    small = load("flux2_klein", klein.folder, quantize=quantize, dtype="bfloat16")
    full = load("flux2_klein", klein.folder, dtype="bfloat16")
    bank = Bank(small, {"style": AdapterSpec(2, "attention")}, [torch.Generator().manual_seed(0)])
    z, t, text = rows(full, 1, 3)
    (out,) = bank.answer([(0, Ask(z.float(), t, text, {"style": 1.0}))])
    bank.backward((out**2).mean())
    assert bank.grad_row("style", 0).abs().max() > 0
    bank.close()
    with torch.no_grad():
        expected = full.predict(z.float(), t, text)
    assert (out.detach() - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_record_notes_conventions_and_sites(family, backbone):
    """Counted by hand: layers of the attention of each block, as named by diffusers' LoRA script."""
    adapters = {"style": AdapterSpec(2, "attention"), "other": AdapterSpec(2, "linear", file="one.safetensors")}
    work = SimpleNamespace(backbone=backbone, specs=lambda: adapters)
    flux = 8 + 4 + 2 * 3
    count = {"sd35": 8 + 7, "flux1": flux, "mini_flow": flux, "flux2_klein": 4 + 2 * 2, "z_image": 4 * 4}
    (note,) = convention_notes(work)
    assert note.startswith(CONVENTION) and f"time sampling ({backbone.time_sampling})" in note
    assert note.endswith(f"adapters at attention ({count[family]} layers)")
    work.specs = dict
    assert convention_notes(work)[0] == note.partition(", adapters")[0]


def test_a_backbone_says_its_conventions(backbone):
    said = backbone.conventions()
    assert said["time sampling"] == "uniform" and said["latents"].startswith("drawn") == backbone.draws_latents
    shifts = {"StableDiffusion3": "static, 3", "ZImage": "static, 3", "MiniFlow": "static, 1"}
    assert said["shift"] == shifts.get(type(backbone).__name__, "dynamic, in sampling alone")
