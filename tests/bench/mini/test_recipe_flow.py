"""The recipe of `mini_flow` on a narrow transformer: loss, resumption, the exported folder, what is refused."""

import time

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from bench import backbones
from bench.backbones.mini_flow import MiniFlow
from bench.errors import Unavailable
from bench.mini.recipe import export_flow, flow, state, tokenizer, unet, vae
from bench.mini.recipe.training import Fit, OutOfTime, Run
from bench.paths import CONF

STEPS, WORDS = 3, 40
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # autocast in RMSNorm


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """A width of 32, batches of 4; the shapes of latents and text stay."""
    for name, value in {"WIDTH": 32, "HEADS": 1, "BATCH": 4, "LR": 2e-2}.items():
        monkeypatch.setattr(flow, name, value)


@pytest.fixture(scope="module")
def world():
    """Latents (5, 20, 16, 16), token ids (5, 2, 32), and a text tower."""
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(5, 20, 16, 16, generator=draw).half()
    tokens = torch.randint(0, WORDS - 2, (5, 2, 32), generator=draw)
    tokens[..., 0], tokens[..., -1] = WORDS - 2, WORDS - 1
    torch.manual_seed(1)
    return latents, tokens, unet.build_text(WORDS).eval().requires_grad_(False)


def trained(world, folder, steps=STEPS, until=float("inf"), start=None):
    folder.mkdir(exist_ok=True)
    flow.train(*world, Run(folder, steps, 0, "cpu", until), start)
    return folder / "flow.checkpoint.safetensors"


def losses(monkeypatch, world, folder, steps):
    """The losses that `Fit` is given, in order."""
    seen, update = [], Fit._update

    def watched(self, loss_at, parameters):
        seen.append(update(self, loss_at, parameters))
        return seen[-1]

    monkeypatch.setattr(Fit, "_update", watched)
    trained(world, folder, steps)
    return seen


def test_the_first_loss_is_that_of_a_network_that_predicts_zero_and_it_falls(world, tmp_path, monkeypatch):
    """Before training the network's answer is zero, so the loss is the mean of (eps - z)^2 over weighted channels."""
    found = losses(monkeypatch, world, tmp_path / "run", 40)
    z, _, draw = unet.Batches(world[0], world[1], WORDS, 0, 4).at(0)
    flows = torch.randn(z.shape, generator=draw) - z
    spread = world[0].float().std((0, 2, 3))
    expected = (flows.square().mean((0, 2, 3)) * spread / spread.mean()).mean()
    assert found[0] == pytest.approx(float(expected), rel=1e-4)
    assert np.mean(found[-5:]) < 0.97 * np.mean(found[:5])


def test_a_training_in_parts_ends_at_the_same_weights_and_leaves_the_tower_alone(world, tmp_path):
    whole = load_file(trained(world, tmp_path / "whole"))
    for _ in range(STEPS - 1):
        with pytest.raises(OutOfTime):
            trained(world, tmp_path / "parts", until=time.time() - 1)
    parts = load_file(trained(world, tmp_path / "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    for name, value in world[2].state_dict().items():
        assert torch.equal(whole[f"averages.text.{name}"], value)
    assert whole["modules.transformer.proj_out.weight"].abs().max() > 0


def test_noise_levels_are_logit_normal_with_a_quarter_uniform():
    s = torch.cat([unet.times(32, torch.Generator().manual_seed(k), *flow.TIMES) for k in range(300)])
    inside = ((s > 0.25) & (s < 0.75)).float().mean()
    normal = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(3.0).log()) * 2 - 1  # of logit(s)
    assert float(inside) == pytest.approx(0.25 * 0.5 + 0.75 * float(normal), abs=0.01)


@pytest.fixture
def made(world, tmp_path, monkeypatch):
    """A training folder with a tokenizer, a basis, an autoencoder with its exact encoder, and a kept training."""
    tokenizer.build(tmp_path / "tokenizer")
    names = len(CLIPTokenizer.from_pretrained(tmp_path / "tokenizer"))
    rng = np.random.default_rng(0)
    images = np.repeat(np.repeat(rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8), 4, 1), 4, 2)
    images = np.clip(images + rng.integers(-30, 30, images.shape), 0, 255).astype(np.uint8)
    basis, mean = vae.principal(images)
    save_file({"basis": basis.contiguous(), "mean": mean}, tmp_path / "basis.safetensors")
    model = vae.build()
    vae.write_encoder(model, basis, mean)
    model.save_pretrained(tmp_path / "vae")
    text = unet.build_text(names).eval().requires_grad_(False)
    trained((world[0], world[1], text), tmp_path, steps=1)
    return tmp_path, basis, mean


def test_the_exported_folder_opens_in_diffusers_and_as_a_backbone(made):
    from diffusers import FluxPipeline

    folder, basis, mean = made
    model = export_flow.autoencoder(folder / "vae", basis, mean)
    pipe = export_flow.pipeline(folder / "flow.checkpoint.safetensors", folder / "tokenizer", model)
    expected = {name: value.half().float() for name, value in pipe.transformer.state_dict().items()}
    export_flow.export(pipe, folder / "tokenizer", folder / "staging", folder / "flow_weights")
    opened = FluxPipeline.from_pretrained(folder / "flow_weights")
    opened.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 20, 16, 16, generator=torch.Generator().manual_seed(0))
    drawn = opened(
        "a dog", negative_prompt="", true_cfg_scale=2.0, height=64, width=64, num_inference_steps=2, output_type="np",
        max_sequence_length=32, latents=opened._pack_latents(noise, 1, 20, 16, 16),
    ).images  # fmt: skip
    assert drawn.shape == (1, 64, 64, 3) and np.isfinite(drawn).all()
    backbone = MiniFlow(str(folder / "flow_weights"), 64, device="cpu", name="mini_flow")
    assert backbone.latent_shape == (20, 16, 16)
    assert all(torch.equal(value, expected[name]) for name, value in backbone.network.state_dict().items())


def test_an_autoencoder_with_other_latents_is_refused(made):
    folder, basis, mean = made
    with pytest.raises(ValueError, match="has other latents than the flow's"):
        export_flow.autoencoder(folder / "vae", basis.flip(0), mean)


def test_a_kept_state_with_another_basis_is_refused(made, tmp_path):
    folder, basis, mean = made
    state.keep(folder / "flow.checkpoint.safetensors", folder / "basis.safetensors", folder / "tokenizer",
               tmp_path / "kept")  # fmt: skip
    assert (tmp_path / "kept" / "flow.safetensors").is_file()
    state.check_latents(folder / "basis.safetensors", tmp_path / "kept")
    save_file({"basis": basis.flip(0).contiguous(), "mean": mean}, folder / "other.safetensors")
    with pytest.raises(ValueError, match="another basis"):
        state.check_latents(folder / "other.safetensors", tmp_path / "kept")


def test_the_published_shapes_fit_into_16_mb(monkeypatch):
    monkeypatch.undo()
    with torch.device("meta"):
        parts = [flow.build(), vae.build(), *(unet.build_text(2900) for _ in range(2))]
    assert 2 * sum(p.numel() for part in parts for p in part.parameters()) < export_flow.LIMIT_BYTES - 400_000


def test_absent_weights_are_one_sentence_with_the_command_of_the_recipe(tmp_path):
    spec = yaml.safe_load((CONF / "backbone" / "mini_flow.yaml").read_text())
    spec |= {"path": str(tmp_path / "flow_weights")}
    words = "trained by this project, about 16 MB.*make them with python -m bench.mini.recipe"
    with pytest.raises(Unavailable, match=words):
        backbones.identity(spec)
    with pytest.raises(Unavailable, match=words):
        backbones.resolve(spec["path"], None, spec["download_gb"], spec["recipe"])
    (tmp_path / "flow_weights").mkdir()
    assert backbones.missing(spec) is None
