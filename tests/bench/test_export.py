"""Exported adapters: the images of diffusers and PEFT, ComfyUI's names, the model card, and what is refused."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from finished_cells import finished
from narrow_networks import sd, sdxl
from safetensors.torch import load_file, save_file
from tiny import tiny_dataset

from bench import export
from bench.adapters import lora_export
from bench.adapters.bank import Bank
from bench.adapters.lora_files import read_lora
from bench.contracts import AdapterSpec, BenchError
from bench.sampling.sampler import Request, Sampler, sample, shots
from bench.seeding import generator
from bench.steps.work import loaded_backbone
from methods.external_adapter import ExternalAdapter

MINI = '{"_target_": "bench.backbones.stable_diffusion.StableDiffusion", "name": "mini", "resolution": 64, '
MINI += '"path": "bench/mini/weights/diffusion", "device": "cpu", "dtype": "float64"}'
SAMPLER = Sampler(steps=2, cfg=3.0)
DATA = tiny_dataset()
FILES = {"diffusers": "pytorch_lora_weights.safetensors", "kohya": "lora.safetensors"}


def random_state(backbone, where="all", rank=4, **options):
    bank = Bank(backbone, {"style": AdapterSpec(rank, where, **options)}, [generator("adapters", 0)])
    bank.theta["style"].add_(torch.randn(bank.theta["style"].shape, generator=generator("fill")) * 0.1)
    state = bank.state("style", 0)
    bank.close()
    return state


@pytest.fixture(scope="module")
def backbone():
    return loaded_backbone(MINI)


def images(backbone, file):
    """Ours, uint8 (4, 3, 64, 64)."""
    method = ExternalAdapter(str(file))
    bank = Bank(backbone, method.adapters(DATA), [generator("adapters", 0)])
    (chunk,) = sample(bank, [Request(0, method, DATA, shots(DATA), 1.0)], SAMPLER)
    bank.close()
    return chunk[0]


def of_pipeline(backbone, folder, name):
    pipe = backbone.pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = backbone.scheduler("ddim", SAMPLER.steps)
    pipe.load_lora_weights(folder, weight_name=name)
    try:
        drawn = pipe(
            [shot.prompt for shot in shots(DATA)],
            latents=torch.stack([shot.noise(backbone.latent_shape) for shot in shots(DATA)]).double(),
            num_inference_steps=SAMPLER.steps, guidance_scale=SAMPLER.cfg, output_type="np",
        ).images  # fmt: skip
    finally:
        pipe.unload_lora_weights()
    return (drawn * 255).round().astype(np.uint8).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("kind,dora", [("diffusers", False), ("kohya", False), ("diffusers", True)])
def test_diffusers_draws_our_images_from_an_exported_file(kind, dora, backbone, tmp_path):
    save_file(random_state(backbone, dora=dora), tmp_path / "style.safetensors")
    lora_export.FORMATS[kind](read_lora(tmp_path / "style.safetensors"), tmp_path)
    mine, theirs = images(backbone, tmp_path / "style.safetensors"), of_pipeline(backbone, tmp_path, FILES[kind])
    assert np.abs(mine.astype(int) - theirs).max() == 0
    save_file({key: 0 * x for key, x in random_state(backbone).items()}, tmp_path / "zero.safetensors")
    assert np.abs(mine.astype(int) - images(backbone, tmp_path / "zero.safetensors")).max() > 20


@pytest.mark.parametrize("kind", lora_export.FORMATS)
def test_an_exported_file_is_read_back_exactly(kind, tmp_path):
    state = two_ranks()
    lora_export.FORMATS[kind](state, tmp_path)
    back = read_lora(tmp_path if kind == "peft" else tmp_path / FILES[kind], sd())
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("kind", ["diffusers", "peft"])
def test_an_exported_dora_is_read_back_exactly(kind, backbone, tmp_path):
    state = random_state(backbone, "attention_conv", dora=True)
    assert any("lora_magnitude_vector" in key for key in state)
    lora_export.FORMATS[kind](state, tmp_path)
    back = read_lora(tmp_path if kind == "peft" else tmp_path / FILES[kind], backbone.network)
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)


def test_a_dora_is_refused_for_kohyas_tools(backbone, tmp_path):
    with pytest.raises(BenchError, match="is a DoRA, which tools read in several forms"):
        lora_export.kohya(random_state(backbone, dora=True), tmp_path)


def two_ranks():
    state = {}
    for site, module in sd().named_modules():
        if site.endswith((".to_q", ".to_out.0")):
            r = 2 if site.endswith("to_q") else 3
            state[f"unet.{site}.lora_A.weight"] = torch.randn(r, module.in_features, generator=generator(site))
            state[f"unet.{site}.lora_B.weight"] = torch.randn(module.out_features, r, generator=generator(site, "up"))
    return state


def test_peft_reads_the_exported_folder(tmp_path):
    from peft import PeftModel

    state = two_ranks()
    lora_export.peft(state, tmp_path)
    network = sd()
    merged = copy.deepcopy(network)
    with torch.no_grad():
        for key, down in state.items():
            if "lora_A" in key:
                site = key.removeprefix("unet.").removesuffix(".lora_A.weight")
                merged.get_submodule(site).weight += state[key.replace("lora_A", "lora_B")] @ down
        z, text = torch.randn(1, 4, 8, 8), torch.randn(1, 6, 24)
        expected, plain = merged(z, 500, text).sample, network(z, 500, text).sample
        found = PeftModel.from_pretrained(network, tmp_path)(z, 500, text).sample
    assert (found - expected).abs().max() < 1e-4 < 1e-2 < (found - plain).abs().max()


@pytest.mark.parametrize("make", [sd, sdxl])
def test_kohya_names_are_those_of_comfyuis_key_map(make, tmp_path):
    """ComfyUI, comfy/lora.py, model_lora_keys_unet: "lora_unet_" and diffusers' name of a weight with _ for every dot;
    comfy/weight_adapter/lora.py: then .lora_up.weight, .lora_down.weight and .alpha."""
    network = make()
    state = {
        f"unet.{site}.lora_{half}.weight": torch.ones(2, 2)
        for site, module in network.named_modules()
        for half in "AB"
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
    }
    lora_export.kohya(state, tmp_path)
    weights = [name.removesuffix(".weight") for name, x in network.named_parameters() if name.endswith(".weight")]
    key_map = {"lora_unet_" + name.replace(".", "_") for name in weights}
    ends = (".lora_up.weight", ".lora_down.weight", ".alpha")
    found = load_file(tmp_path / "lora.safetensors")
    bases = {re.sub(r"\.(lora_up\.weight|lora_down\.weight|alpha)$", "", key) for key in found}
    assert bases <= key_map and len(bases) == len(state) // 2
    assert found.keys() == {base + end for base in bases for end in ends}
    assert {float(value) for key, value in found.items() if key.endswith(".alpha")} == {2.0}


# --- the command


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    """A finished cell with an adapter and a number."""
    score = {"metric": "clip_t", "value": 25.5, "strength": 1.0, "group": "clip", "higher_is_better": True}
    folder = finished(tmp_path_factory.mktemp("results"), "method=dreambooth", "dataset.prompts=[a photo of a sad dog]")
    adapters = folder / "adapters"
    adapters.mkdir()
    backbone = loaded_backbone(MINI.replace("float64", "float32"))
    save_file(random_state(backbone, "attention"), adapters / "style.safetensors")
    record = json.loads((folder / "record.json").read_text())
    del record["checksum"]
    (folder / "record.json").write_text(json.dumps(record | {"scores": [score], "notes": ["a note"]}))
    return folder


def test_a_card_has_the_row_the_prompts_and_the_command(cell, tmp_path, capsys):
    import yaml

    out = tmp_path / "made"
    export.main([cell.name, "--results", str(cell.parent), "--format", "kohya", "--out", str(out)])
    assert capsys.readouterr().out.strip() == str(out) and (out / "lora.safetensors").is_file()
    card = (out / "README.md").read_text()
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "diffusers" and "lora" in yaml.safe_load(head)["tags"]
    assert "25.5" in text and "a photo of a sad" in text and "- a note" in text
    assert "python -m bench method=dreambooth dataset=blueprint backbone=mini seed=0" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no-such-run", "--format", "peft"], "holds no finished cell"),
        (["--format", "peft", "--push", "name"], "OWNER/NAME"),
        (["--format", "peft", "--out", "."], "is there already"),
    ],
)
def test_what_cannot_be_exported(words, said, cell):
    with pytest.raises(BenchError, match=said):
        export.main([*([] if words[0] == "no-such-run" else [cell.name]), *words, "--results", str(cell.parent)])


def test_a_cell_without_an_adapter_is_refused(tmp_path):
    folder = finished(tmp_path, "method=zero_shot")
    with pytest.raises(BenchError, match="holds no low-rank adapter"):
        export.main([str(folder), "--format", "diffusers", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_an_upload_uses_the_hubs_client_and_its_failure_is_one_sentence(tmp_path, monkeypatch):
    import huggingface_hub

    calls = []

    class Hub:
        def create_repo(self, name, **options):
            calls.append((name, options))

        def upload_folder(self, **options):
            if len(calls) > 1:
                raise huggingface_hub.errors.LocalTokenNotFoundError("no token")
            return f"hub/{options['repo_id']} from {options['folder_path']}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert export.push(tmp_path, "me/style") == f"hub/me/style from {tmp_path}"
    assert calls == [("me/style", {"private": True, "exist_ok": True})]
    with pytest.raises(BenchError, match="hf auth login"):
        export.push(tmp_path, "me/style")
