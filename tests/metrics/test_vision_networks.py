"""DINO, CSD and DreamSim loaders on random weights, against the libraries that host the networks."""

import argparse
import importlib.util
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from metric_cases import scenes

from bench.contracts import BenchError
from metrics import csd, dino, dreamsim
from metrics.csd import Csd
from metrics.dino import Vit
from metrics.dreamsim import Dreamsim
from metrics.networks import OpenClip


@pytest.fixture
def random_state():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        yield


# --- DINO --------------------------------------------------------------------------------------------------------

TINY = "vit_tiny_patch16_224"


@pytest.fixture
def vit_file(tmp_path, random_state):
    """A tiny transformer trained, so to say, at 64 pixels."""
    import timm

    model = timm.create_model(TINY, num_classes=0, img_size=64)
    torch.save(model.state_dict(), tmp_path / "tiny.pth")
    return tmp_path / "tiny.pth"


def test_the_class_token_is_timms_own_behind_its_own_transform(vit_file):
    import timm
    from PIL import Image

    images = scenes(3, 5, 73)  # 64 * 8 // 7: nothing is resized
    model = timm.create_model(TINY, num_classes=0, img_size=64, checkpoint_path=str(vit_file)).eval()
    transform = timm.data.create_transform(
        (3, 64, 64), interpolation="bicubic", crop_pct=64 / 73, mean=dino.MEAN, std=dino.STD
    )
    batch = torch.stack([transform(Image.fromarray(image.transpose(1, 2, 0))) for image in images])
    with torch.inference_mode():
        expected = model.forward_features(batch)[:, 0]
    found = Vit(name="tiny", architecture=TINY, weights=str(vit_file), size=64, device="cpu")(images)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert found.shape == (3, 192) and expected.std() > 0.1


def test_positions_of_another_size_are_resampled_as_timm_does_it(vit_file):
    import timm

    overlay = {"file": str(vit_file), "num_classes": 0}
    model = timm.create_model(TINY, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=32).eval()
    found = dino._load(Vit(name="tiny", architecture=TINY, weights=str(vit_file), size=32, device="cpu"))
    assert torch.equal(found.pos_embed, model.pos_embed) and found.pos_embed.shape[1] == 5


def test_a_transformer_of_another_width_is_refused(vit_file):
    network = Vit(name="small", architecture="vit_small_patch16_224", weights=str(vit_file), size=64, device="cpu")
    with pytest.raises(BenchError, match="weights of small do not fit"):
        network(scenes(1, 0))


# --- CSD ---------------------------------------------------------------------------------------------------------

SMALL = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def clip_tower(tmp_path, monkeypatch, random_state):
    """A whole random CLIP whose projection plays the style head, under the name small-test-csd."""
    import json

    import open_clip

    (tmp_path / "small-test-csd.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(tmp_path / "small-test-csd.json")
    return open_clip.CLIP(**SMALL).visual.eval()


def published(tower, **more):
    """A checkpoint in the form of the published one: wrapped names, numpy numbers and options beside the tensors."""
    state = {f"module.backbone.{name}": value for name, value in tower.state_dict().items() if name != "proj"}
    heads = {"module.last_layer_style": tower.proj.data, "module.last_layer_content": torch.zeros_like(tower.proj)}
    rest = {"iter": np.float64(3.0), "args": argparse.Namespace(lr=1e-4)}
    return {"model_state_dict": state | heads, **rest, **more}


def small_csd(path):
    return Csd(weights=str(path), name="small-csd", architecture="small-test-csd", device="cpu")


def test_the_descriptor_is_the_projected_tower_at_unit_length(clip_tower, tmp_path):
    torch.save(published(clip_tower), tmp_path / "csd.bin")
    images = scenes(3, 6, 32)
    x = torch.from_numpy(images).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (csd.MEAN, csd.STD))
    with torch.inference_mode():
        expected = clip_tower((x - mean) / std)
    expected = expected / expected.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(small_csd(tmp_path / "csd.bin")(images), expected.numpy(), atol=1e-6)


def test_a_plain_clip_and_a_checkpoint_with_code_are_no_csd(clip_tower, tmp_path):
    torch.save(clip_tower.state_dict(), tmp_path / "clip.bin")
    with pytest.raises(BenchError, match="has no last_layer_style, so it is no CSD"):
        small_csd(tmp_path / "clip.bin")(scenes(1, 0, 32))
    torch.save(published(clip_tower, opt=types.SimpleNamespace(), hook=print), tmp_path / "code.bin")
    with pytest.raises(BenchError, match="cannot be read"):
        small_csd(tmp_path / "code.bin")(scenes(1, 0, 32))


# --- DreamSim ----------------------------------------------------------------------------------------------------


def archive(path, *names):
    with zipfile.ZipFile(path, "w") as opened:
        for name in names:
            opened.writestr(name, b"weights")
    return path


@pytest.fixture
def package(monkeypatch):
    """In the place of the package dreamsim: it embeds the mean colour, and moves torch.hub's folder as the real one."""
    calls = []

    def load(device, cache_dir, dreamsim_type):
        calls.append((device, sorted(p.name for p in __import__("pathlib").Path(cache_dir).iterdir()), dreamsim_type))
        torch.hub.set_dir(cache_dir)
        print("Using cached")
        model = torch.nn.Module()
        model.embed = lambda x: x.mean((2, 3))
        return model, None

    module = types.ModuleType("dreamsim")
    module.dreamsim, module.__spec__ = load, importlib.util.spec_from_loader("dreamsim", None)
    monkeypatch.setitem(sys.modules, "dreamsim", module)
    dreamsim._load.cache_clear()
    return calls


def test_dreamsim_gets_the_unpacked_archive_and_torch_hub_stays_where_it_was(package, tmp_path, capsys):
    names = ("open_clip_vitb32_pretrain.pth.tar", "open_clip_vitb32_single_lora/adapter_config.json")
    network = Dreamsim(weights=str(archive(tmp_path / "a.zip", *names)), device="cpu")
    before, images = torch.hub.get_dir(), scenes(2, 7, 224)
    found = network(images)
    np.testing.assert_allclose(found, images.mean((2, 3)) / 255, atol=1e-5)
    assert package == [("cpu", ["open_clip_vitb32_pretrain.pth.tar", "open_clip_vitb32_single_lora"], network.branch)]
    assert torch.hub.get_dir() == before and capsys.readouterr().out == ""


def test_dreamsim_never_downloads_and_says_what_is_wrong(package, tmp_path):
    other = Dreamsim(weights=str(archive(tmp_path / "b.zip", "clip_vitb32_pretrain.pth.tar")), device="cpu")
    with pytest.raises(BenchError, match="holds no open_clip_vitb32_pretrain.pth.tar"):
        other(scenes(1, 0))
    assert package == []
    assert "give open_clip_vitb32 or clip_vitb32" in Dreamsim(branch="ensemble").missing()
    assert "dreamsim_open_clip_vitb32_checkpoint.zip" in Dreamsim().missing()


def test_without_its_package_dreamsim_is_missing(monkeypatch):
    monkeypatch.setattr(dreamsim, "find_spec", lambda name: None)
    assert Dreamsim().missing().endswith("type uv pip install dreamsim.")


@pytest.mark.slow
def test_the_real_package_gives_its_own_embedding_of_random_weights(tmp_path, random_state):
    pytest.importorskip("dreamsim", reason="the optional package dreamsim is not installed")
    from dreamsim.config import dreamsim_args
    from dreamsim.feature_extraction.vision_transformer import vit_base
    from dreamsim.model import PerceptualModel
    from peft import LoraConfig, get_peft_model

    parts, kind = tmp_path / "parts", "open_clip_vitb32"
    parts.mkdir()
    tower = vit_base(patch_size=32)
    tower.pos_drop = torch.nn.LayerNorm(tower.embed_dim)
    state = tower.state_dict() | {"proj": torch.randn(768, 512) / 768**0.5}
    torch.save({"state_dict": state}, parts / f"{kind}_pretrain.pth.tar")
    settings = dreamsim_args["model_config"][kind]
    plain = PerceptualModel(**settings, device="cpu", load_dir=str(parts), normalize_embeds=True)
    model = get_peft_model(plain, LoraConfig(r=2, lora_alpha=1, target_modules=["qkv"]))
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    model.save_pretrained(parts / f"{kind}_single_lora")
    with zipfile.ZipFile(tmp_path / "real.zip", "w") as opened:
        for path in (path for path in parts.rglob("*") if path.is_file()):
            opened.write(path, path.relative_to(parts))
    dreamsim._load.cache_clear()
    images = scenes(2, 8, 224)
    with torch.inference_mode():
        expected = model.eval().embed(torch.from_numpy(images).float() / 255).numpy()
    found = Dreamsim(weights=str(tmp_path / "real.zip"), device="cpu")(images)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.shape == (2, 512) and np.abs(found[0] - found[1]).max() > 1e-3


# --- DINOv3 and SigLIP 2 -----------------------------------------------------------------------------------------


def test_dinov3_is_timms_class_token_of_the_whole_image(tmp_path, random_state):
    import timm
    from PIL import Image

    name = "vit_tiny_patch16_dinov3_qkvb"
    model = timm.create_model(name, num_classes=0, img_size=64).eval()
    for key, weight in model.named_parameters():
        weight.data = torch.ones_like(weight) if "gamma" in key else weight.data  # new ones hide the image
    torch.save(model.state_dict(), tmp_path / "tiny.pth")
    images = scenes(2, 5, 64)
    transform = timm.data.create_transform(
        (3, 64, 64), interpolation="bicubic", crop_pct=1.0, mean=dino.MEAN, std=dino.STD
    )
    batch = torch.stack([transform(Image.fromarray(image.transpose(1, 2, 0))) for image in images])
    with torch.inference_mode():
        expected = model.forward_features(batch)[:, 0].numpy()
    network = Vit(name="v3", architecture=name, weights=str(tmp_path / "tiny.pth"), size=64, crop=False, device="cpu")
    found = network(images)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 1e-3 and "centre" not in network.recipe


def test_siglip_reads_the_preprocessing_of_its_folder(tmp_path, monkeypatch, random_state):
    """Squashed, with means of a half: open_clip's default for a plain weights file is another one."""
    import json

    import open_clip
    from safetensors.torch import save_file
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "weights" / "owner" / "tiny-siglip"
    folder.mkdir(parents=True)
    config = {
        "embed_dim": 16, "init_logit_bias": -10,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1,
                     "hf_tokenizer_name": "owner/tiny-siglip", "no_causal_mask": True},
    }  # fmt: skip
    model = open_clip.CustomTextCLIP(**config).eval()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "size": [32, 32], "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config | {"custom_text": True}, "preprocess_cfg": preprocess})
    )
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
    monkeypatch.setenv("BENCH_MIRROR", str(tmp_path))
    images = scenes(3, 6, 32)
    with torch.inference_mode():
        expected = model.encode_image(torch.from_numpy(images).float() / 127.5 - 1).numpy()
    network = OpenClip(name="siglip", model="owner/tiny-siglip", device="cpu")
    np.testing.assert_allclose(network(images), expected, atol=1e-5)
    missing = OpenClip(name="siglip", model="owner/absent-siglip").missing()
    assert "owner/absent-siglip are not on this machine" in missing and "hf download owner/absent-siglip" in missing
