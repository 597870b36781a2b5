"""Full fine-tuning: rows at a scale against merged weights, a backbone left as it was, resumed bits, the files."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny import TinyBackbone, tiny_dataset
from torch.nn.functional import mse_loss

from bench.adapters.bank import Bank
from bench.backbones import embedding
from bench.contracts import AdapterSpec, Ask, BenchError, FullSpec, Impossible, Loss, Method, Recipe, Text
from bench.seeding import generator
from bench.steps.costs import costs as costs_of
from bench.steps.job import save_adapters
from bench.steps.work import Work
from bench.training.latents import Latents
from bench.training.trainer import Job, train

RECIPE = Recipe(steps=6, lr=1e-3, batch_size=2, clip_norm=0.5)
PROMPTS = ["a cat", "a dog", "a red car"]


@dataclass
class Whole(Method):
    """Looks without gradients at scales 1 and 0, then learns; one row of three is the frozen network's."""

    strength_knob = "scale"
    text_encoder: bool = True

    def adapters(self, dataset):
        return {"style": FullSpec(self.text_encoder)}

    def step(self, data, k, rng):
        (z,), examples = data.draw(("style",), rng)
        eps, t = data.noise(z, rng)
        text = data.text([example.caption for example in examples])
        look = yield Ask(data.noisy(z, eps, t), t, text, {"style": torch.tensor([1.0, 0.0])}, frozenset({"style"}))
        assert not look.requires_grad
        on = torch.tensor([0.0, 1.0])
        out = yield Ask(data.noisy(z, eps, t), t, text, {"style": on})
        data.text([f"a photo of the {k}th cat"])  # read while a backward pass is pending: by the frozen encoder
        yield Loss(mse_loss(out, eps) + 0.01 * mse_loss(out, look))

    def prompts(self, prompt, dataset):
        return {"content": prompt, "negative": ""}

    def guide(self, z, t, texts, cfg, strength):
        return (yield Ask(z, t, texts["content"], {"style": strength}))


def rows(backbone, n=3):
    z = torch.randn(n, 4, 8, 8, generator=generator("z")).to(backbone.dtype)
    return z, torch.tensor([10, 400, 900][:n]), backbone.embed(PROMPTS[:n])


def moved(backbone, text_encoder=True, size=0.02):
    """A bank whose weights have left the backbone's."""
    bank = Bank(backbone, {"style": FullSpec(text_encoder)}, [None])
    noise = torch.randn(bank.row("style", 0).shape, generator=generator("w")).to(backbone.dtype)
    bank.row("style", 0).add_(size * noise)
    return bank


def merged(bank, scale, z, t, prompts):
    """The prediction with W0 + s (W - W0) in plain torch."""
    backbone, leaves = bank.backbone, bank.full["style"].leaves
    weights = {
        name: (1 - scale) * frozen + scale * leaves[f"unet.{name}"].detach()
        for name, frozen in backbone.network.named_parameters()
    }
    reader = backbone.reader.weight
    if "text_encoder.weight" in leaves:
        reader = (1 - scale) * reader + scale * leaves["text_encoder.weight"].detach()
    with torch.no_grad():
        args = (z, t, backbone.words(prompts) @ reader.T)
        return torch.func.functional_call(backbone.network, weights, args).sample


def job_of(backbone, method=None, **changes):
    recipe = replace(RECIPE, **changes)
    return Job(0, method or Whole(), Latents(tiny_dataset(), backbone, recipe), recipe, seed=3)


def trained(backbone, job):
    bank = Bank(backbone, job.method.adapters(tiny_dataset()), [generator("adapters", 3)])
    steps = list(train(bank, [job]))
    bank.close()
    return bank, steps


# --- forward passes


@pytest.mark.parametrize("text_encoder", [False, True])
def test_each_row_uses_its_own_scale(text_encoder):
    backbone = TinyBackbone(torch.float64)
    bank = moved(backbone, text_encoder)
    z, t, text = rows(backbone)
    with torch.no_grad():
        (out,) = bank.answer([(0, Ask(z, t, text, {"style": torch.tensor([0.5, 0.0, 1.0])}))])
        first, second = bank.answer([(0, Ask(z[:1], t[:1], text[:1], {"style": -0.7})), (0, Ask(z, t, text))])
    for i, scale in enumerate([0.5, 0.0, 1.0]):
        alone = slice(i, i + 1)
        expected = merged(bank, scale, z[alone], t[alone], PROMPTS[alone])
        torch.testing.assert_close(out[alone], expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(first, merged(bank, -0.7, z[:1], t[:1], PROMPTS[:1]), rtol=0, atol=1e-9)
    torch.testing.assert_close(second, merged(bank, 0.0, z, t, PROMPTS), rtol=0, atol=1e-9)
    assert not torch.allclose(out[:1], second[:1], atol=1e-4)


def test_scale_zero_is_the_backbone_bit_for_bit_and_scale_one_the_weights_themselves():
    backbone = TinyBackbone()
    bank = moved(backbone)
    z, t, text = rows(backbone)
    with torch.no_grad():
        base, (off,) = backbone.predict(z, t, text), bank.answer([(0, Ask(z, t, text, {"style": 0.0}))])
        (on,) = bank.answer([(0, Ask(z, t, text, {"style": 1.0}))])
        backbone.network.load_state_dict(
            {n: bank.full["style"].leaves[f"unet.{n}"] for n in backbone.network.state_dict()}
        )
        backbone.reader.weight.copy_(bank.full["style"].leaves["text_encoder.weight"])
        assert torch.equal(off, base) and torch.equal(on, backbone.predict(z, t, backbone.embed(PROMPTS)))
    assert not torch.equal(on, base)


def test_texts_are_read_again_when_the_weights_have_moved():
    backbone = TinyBackbone(torch.float64)
    bank = moved(backbone)
    z, t, text = rows(backbone)
    with torch.no_grad():
        for _ in range(2):
            (out,) = bank.answer([(0, Ask(z, t, text, {"style": 0.5}))])
            torch.testing.assert_close(out, merged(bank, 0.5, z, t, PROMPTS), rtol=0, atol=1e-9)
            bank.row("style", 0).mul_(1.1)


def test_training_at_another_scale_is_refused_with_a_sentence():
    backbone = TinyBackbone()
    bank = moved(backbone)
    z, t, text = rows(backbone)
    with pytest.raises(BenchError, match=r"trains the weights themselves, at scale 1; the scales \[0.5\]"):
        bank.answer([(0, Ask(z, t, text, {"style": 0.5}))])


def test_it_is_alone_in_its_cell_and_its_pack():
    backbone = TinyBackbone()
    with pytest.raises(Impossible, match="2 cells with 1 were requested; train each alone"):
        Bank(backbone, {"style": FullSpec()}, [None, None])
    with pytest.raises(Impossible, match="1 cells with 2 were requested"):
        Bank(backbone, {"style": FullSpec(), "content": AdapterSpec(2)}, [generator(0)])
    backbone.parts = lambda: {"unet": backbone.network}
    with pytest.raises(Impossible, match="type method.text_encoder=false"):
        Bank(backbone, {"style": FullSpec(text_encoder=True)}, [None])


# --- the backbone


def test_the_backbone_is_the_same_objects_with_the_same_bits_whatever_happened():
    backbone = TinyBackbone()
    parts = [*backbone.network.named_parameters(), *backbone.reader.named_parameters()]
    before = [(name, parameter, parameter.clone()) for name, parameter in parts]

    def unharmed():
        now = [*backbone.network.named_parameters(), *backbone.reader.named_parameters()]
        assert [name for name, _ in now] == [name for name, *_ in before]
        return all(a is b and torch.equal(a, bits) for (_, a), (_, b, bits) in zip(now, before, strict=True))

    bank, _ = trained(backbone, job_of(backbone))
    assert unharmed() and not torch.equal(
        bank.full["style"].leaves["unet.conv_in.weight"], backbone.network.conv_in.weight
    )
    z, t, text = rows(backbone)
    with pytest.raises(RuntimeError):
        bank.answer([(0, Ask(z[:, :3], t, text, {"style": 1.0}))])  # the network reads four channels
    assert unharmed()
    bank.close()
    assert unharmed() and all(parameter.grad is None and not parameter.requires_grad for _, parameter, _ in before)


def test_texts_embedded_between_answer_and_backward_are_the_frozen_encoder_s():
    backbone = TinyBackbone()
    job = job_of(backbone)
    trained(backbone, job)
    known = embedding._read[backbone]
    for prompt, text in known.items():
        assert torch.equal(text.states, backbone.words([prompt])) and not text.states.requires_grad
    assert "a photo of the 5th cat" in known


# --- training


def test_gradient_checkpointing_changes_nothing():
    backbone = TinyBackbone(torch.float64)
    plain, _ = trained(backbone, job_of(backbone))
    backbone.network.enable_gradient_checkpointing()
    again, _ = trained(backbone, job_of(backbone))
    assert (plain.row("style", 0) - moved(backbone, size=0).row("style", 0)).abs().max() > 1e-3
    torch.testing.assert_close(again.row("style", 0), plain.row("style", 0), rtol=0, atol=1e-10)


def test_without_the_text_encoder_it_is_not_trained():
    backbone = TinyBackbone()
    bank, _ = trained(backbone, job_of(backbone, Whole(text_encoder=False)))
    assert set(bank.full["style"].leaves) == {f"unet.{name}" for name, _ in backbone.network.named_parameters()}
    both, _ = trained(backbone, job_of(backbone))
    assert not torch.equal(both.full["style"].leaves["text_encoder.weight"], backbone.reader.weight)


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    backbone = TinyBackbone()
    calm, calm_steps = trained(backbone, job_of(backbone))
    monkeypatch.setattr("bench.training.trainer.CHECKPOINT_SHARE", 1e9)  # a checkpoint after every step
    job = replace(job_of(backbone), checkpoint=tmp_path / "checkpoint.safetensors")
    bank = Bank(backbone, job.method.adapters(tiny_dataset()), [None])
    for step in train(bank, [job]):
        if step.k == 4:  # this step is lost
            break
    bank.close()
    resumed, steps = trained(backbone, job)
    assert [step.losses for step in steps] == [step.losses for step in calm_steps[3:]]
    assert torch.equal(resumed.row("style", 0), calm.row("style", 0))


# --- files


def test_weights_are_kept_as_diffusers_names_them_and_read_back_to_the_same_bits(tmp_path):
    backbone = TinyBackbone()
    bank = moved(backbone)
    bank.save("style", 0, tmp_path)
    unet = tmp_path / "style" / "unet" / "diffusion_pytorch_model.safetensors"
    encoder = tmp_path / "style" / "text_encoder" / "model.safetensors"
    assert sorted(tmp_path.rglob("*.safetensors")) == sorted([unet, encoder])
    again = Bank(backbone, {"style": FullSpec(True)}, [None])
    again.read("style", 0, tmp_path)
    assert torch.equal(again.row("style", 0), bank.row("style", 0))
    z, t, text = rows(backbone)
    with torch.no_grad():
        (out,) = bank.answer([(0, Ask(z, t, text, {"style": 1.0}))])
        foreign = TinyBackbone()
        foreign.network.load_state_dict(load_file(unet), strict=True)
        foreign.reader.load_state_dict(load_file(encoder), strict=True)
        assert torch.equal(foreign.predict(z, t, foreign.embed(PROMPTS)), out)


def test_half_of_the_files_is_a_sentence_and_none_is_a_beginning(tmp_path):
    backbone = TinyBackbone()
    bank = Bank(backbone, {"style": FullSpec(True)}, [None])
    start = bank.row("style", 0).clone()
    bank.read("style", 0, tmp_path)
    assert torch.equal(bank.row("style", 0), start)
    bank.save("style", 0, tmp_path)
    (tmp_path / "style" / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(BenchError, match=r"expected \(16, 16\) for text_encoder.weight, found nothing"):
        bank.read("style", 0, tmp_path)


def test_the_record_counts_all_weights_and_the_bytes_of_all_files(tmp_path):
    backbone, work = TinyBackbone(), Work(None, tmp_path)
    bank = work.bank = moved(backbone)
    work.method = SimpleNamespace(recipe=RECIPE)
    save_adapters(work)
    costs = costs_of(work)
    parameters = [*backbone.network.parameters(), *backbone.reader.parameters()]
    assert costs["trainable_parameters"] == sum(parameter.numel() for parameter in parameters)
    assert costs["adapter_bytes"] == sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    assert costs["adapter_bytes"] > 4 * bank.theta["style"].numel()


# --- a text encoder of transformers


@pytest.fixture(scope="module")
def mini():
    from bench.backbones.stable_diffusion import StableDiffusion

    return StableDiffusion("bench/mini/weights/diffusion", 64, device="cpu")


def test_gradients_reach_every_layer_of_clip_and_the_answer_follows_it(mini):
    bank = Bank(mini, {"style": FullSpec(True)}, [None])
    weights, (c, h, w) = bank.full["style"], mini.latent_shape
    assert {key.split(".")[0] for key in weights.leaves} == {"unet", "text_encoder"}
    z, t = torch.randn(1, c, h, w, generator=generator("z")), torch.tensor([500])
    ask = Ask(z, t, mini.embed(["a photo of a red cat"]), {"style": 1.0})
    (out,) = bank.answer([(0, ask)])
    base = mini.predict(z, t, ask.text)
    assert torch.equal(out.detach(), base)  # nothing has moved yet
    bank.backward(out.square().mean())
    silent = [key for key, leaf in weights.leaves.items() if not leaf.grad.any()]
    assert silent == []
    key = next(name for name in weights.leaves if name.startswith("text_encoder") and name.endswith("mlp.fc1.weight"))
    place = weights.places[key]
    with torch.no_grad():
        weights.leaves[key].mul_(1.5)
        (after,) = bank.answer([(0, ask)])
        original = getattr(*place)
        bits = original.clone()
        original.mul_(1.5)
        expected = mini.predict(z, t, mini.embed(["a photo of a red cat"]))
        original.copy_(bits)
    bank.close()
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-6)
    assert not torch.equal(after, base)


def test_a_text_keeps_its_prompts_through_slices_and_joins(mini):
    text = mini.embed(["a", "b", "c"])
    assert text[1:].prompts == ("b", "c") and text[[2, 0]].prompts == ("c", "a")
    assert text[torch.tensor([True, False, True])].prompts == ("a", "c")
    assert Text.cat([text[:1], text[2:]]).prompts == ("a", "c") and text[:1].expand(3).prompts == ("a",) * 3
    assert Text.cat([text, Text(text.states)]).prompts == ()
