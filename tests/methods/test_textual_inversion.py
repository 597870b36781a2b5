"""Textual Inversion: diffusers' scripts restated on tiny Stable Diffusion and SDXL, its files, and its packs."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_replays_with_diffusers import P, families, made
from tiny import tiny_dataset
from torch.nn.functional import mse_loss

from bench.adapters.bank import Bank
from bench.adapters.embedding_files import read_embeddings
from bench.contracts import Ask, BenchError, Impossible, Recipe, TokenSpec
from bench.seeding import generator
from bench.training.latents import Latents
from bench.training.trainer import Job, train
from methods.textual_inversion import TextualInversion

torch.set_num_threads(1)
RECIPE = Recipe(steps=3, lr=1e-2, weight_decay=1e-2, batch_size=2)
TEMPLATES = ("a {}", "it is {}")
WORD = "z"  # one piece of the tiny tokenizer, whose pieces are letters


def learner(vectors, **options):
    options = {"start": "d", "recipe": RECIPE, **options}
    return TextualInversion(TEMPLATES, TEMPLATES, token=WORD, vectors=vectors, **options)


def trained(backbone, method, seeds=(7,)):
    """A bank after training, a cell for each seed, and the steps of all."""
    data = tiny_dataset()
    bank = Bank(backbone, method.adapters(data), [generator("adapters", seed) for seed in seeds])
    jobs = [Job(i, method, Latents(data, backbone, RECIPE), RECIPE, seed) for i, seed in enumerate(seeds)]
    steps = list(train(bank, jobs))
    bank.close()
    return bank, steps


class Script:
    """The text encoders of a pipeline with new tokens at the end of their tables, which AdamW trains as a whole."""

    def __init__(self, pipeline, vectors):
        self.pipeline, self.names = pipeline, [f"<new>_{i}" if i else "<new>" for i in range(vectors)]
        parts = ("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")
        self.parts = [
            (copy.deepcopy(getattr(pipeline, a)), copy.deepcopy(getattr(pipeline, b)))
            for a, b in parts
            if getattr(pipeline, a, None) is not None
        ]
        for tokenizer, encoder in self.parts:
            assert tokenizer.add_tokens(self.names) == vectors
            (start,) = tokenizer.encode("d", add_special_tokens=False)
            encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            table = encoder.get_input_embeddings().weight
            table.data[-vectors:] = table.data[start]
            table.requires_grad_()
        self.tables = [encoder.get_input_embeddings().weight for _, encoder in self.parts]
        self.originals = [table.detach().clone() for table in self.tables]
        self.optimizer = torch.optim.AdamW(self.tables, lr=RECIPE.lr, weight_decay=RECIPE.weight_decay)

    def read(self, prompts):
        prompts = [prompt.replace("{}", " ".join(self.names)) for prompt in prompts]
        states, pooled = [], None
        for tokenizer, encoder in self.parts:
            options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
            ids = tokenizer(prompts, max_length=tokenizer.model_max_length, **options).input_ids
            out = encoder(ids, output_hidden_states=True)
            states.append(out.last_hidden_state if len(self.parts) == 1 else out.hidden_states[-2])
            pooled = out[0]
        sizes = torch.tensor([[P, P, 0, 0, P, P]] * len(prompts)).double()
        added = {"text_embeds": pooled, "time_ids": sizes} if len(self.parts) == 2 else None
        return torch.cat(states, -1), added

    def step(self, z, eps, t, prompts):
        alphas = self.pipeline.scheduler.alphas_cumprod.double()[t].view(-1, 1, 1, 1)
        states, added = self.read(prompts)
        noisy = alphas**0.5 * z + (1 - alphas) ** 0.5 * eps
        out = self.pipeline.unet(noisy, t, encoder_hidden_states=states, added_cond_kwargs=added).sample
        loss = mse_loss(out, eps)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for table, original in zip(self.tables, self.originals, strict=True):
                table[: -len(self.names)] = original[: -len(self.names)]
        return loss.item()


@families
@pytest.mark.parametrize("vectors", [1, 3])
def test_the_update_of_the_script(family, vectors):
    pipeline, backbone = made(family)
    before = {name: value.clone() for part in backbone.parts().values() for name, value in part.state_dict().items()}
    bank, steps = trained(backbone, learner(vectors))
    script, latents = Script(pipeline, vectors), Latents(tiny_dataset(), backbone, RECIPE)
    for k in range(RECIPE.steps):
        rng = generator("train", 7, k)
        (z,), _ = latents.draw(("style",), rng)
        drawn = torch.randint(len(TEMPLATES), (2,), generator=rng).tolist()
        eps, t = latents.noise(z, rng)
        assert steps[k].losses[0] == pytest.approx(script.step(z, eps, t, [TEMPLATES[i] for i in drawn]), abs=1e-9)
    learned = bank.words["style"].weights.values()
    for value, table, original in zip(learned, script.tables, script.originals, strict=True):
        torch.testing.assert_close(value[0].detach(), table[-vectors:].detach(), rtol=0, atol=1e-9)
        assert (value[0] - original[-vectors:]).abs().mean() > 1e-3
    after = {name: value for part in backbone.parts().values() for name, value in part.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())


@families
def test_diffusers_reads_the_files_as_we_do(family, tmp_path):
    pipeline, backbone = made(family)
    bank, _ = trained(backbone, learner(3))
    bank.save("style", 0, tmp_path)
    pipeline = copy.deepcopy(pipeline)
    numbers = ("", "_2") if family == "sdxl" else ("",)
    assert sorted(path.name for path in (tmp_path / "style").iterdir()) == [
        f"learned_embeds{n}.safetensors" for n in numbers
    ]
    for n in numbers:
        pipeline.load_textual_inversion(
            str(tmp_path / "style" / f"learned_embeds{n}.safetensors"),
            text_encoder=getattr(pipeline, f"text_encoder{n}"), tokenizer=getattr(pipeline, f"tokenizer{n}"),
        )  # fmt: skip
    theirs = pipeline.encode_prompt("it <z>", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    ours = read(bank, backbone, "it z z z", 1.0)
    torch.testing.assert_close(ours.states, theirs[0].double(), rtol=0, atol=1e-6)  # files are float32


def read(bank, backbone, prompt, scale, cell=0):
    """What the network is given for a prompt."""
    seen = []
    real = backbone.predict
    backbone.predict = lambda z, t, text: seen.append(text) or z
    try:
        z = torch.zeros(1, *backbone.latent_shape, dtype=torch.float64)
        bank.answer(
            [(cell, Ask(z, torch.tensor([5]), backbone.embed([prompt]), {"style": scale}, frozenset(["style"])))]
        )
    finally:
        del backbone.predict
    assert backbone.predict == real
    return seen[0]


@families
def test_a_scale_goes_from_the_embedding_of_the_word_itself_to_the_learned_one(family):
    """Without gradients texts are kept: they are read anew when the vectors move."""
    _, backbone = made(family)
    bank, _ = trained(backbone, learner(1))
    plain = backbone.embed(["a z"]).states
    assert torch.equal(read(bank, backbone, "a z", 0.0).states, plain)
    torch.testing.assert_close(read(bank, backbone, "a z", 1e-9).states, plain, rtol=0, atol=1e-6)
    assert torch.equal(read(bank, backbone, "a d", 1.0).states, backbone.embed(["a d"]).states), "no such word in it"
    learned = read(bank, backbone, "a z", 1.0).states
    assert (learned - plain).abs().max() > 1e-3
    bank.row("style", 0).mul_(2)
    assert (read(bank, backbone, "a z", 1.0).states - learned).abs().max() > 1e-3


@families
def test_cells_of_a_pack_learn_what_they_learn_alone(family):
    _, backbone = made(family)
    together, _ = trained(backbone, learner(2, start=None), seeds=(1, 2, 3))
    for cell, seed in enumerate((1, 2, 3)):
        alone, _ = trained(backbone, learner(2, start=None), seeds=(seed,))
        torch.testing.assert_close(together.theta["style"][cell], alone.theta["style"][0], rtol=0, atol=1e-10)
    assert (together.theta["style"][0] - together.theta["style"][1]).abs().max() > 0.01


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_random_start_is_as_wide_as_the_table():
    _, backbone = made("sd")
    bank = Bank(backbone, {"style": TokenSpec(WORD, 400)}, [generator("adapters", 0)])
    bank.close()
    table = backbone.token_tables()["text_encoder"][0].weight
    assert bank.theta["style"].std().item() == pytest.approx(table.std().item(), rel=0.05)


def public(kind, folder):
    """A file in each public format, and what it holds by text encoder."""
    rng = torch.Generator().manual_seed(3)
    first, second = torch.randn(2, 32, generator=rng), torch.randn(2, 40, generator=rng)
    if kind == "A1111":
        torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": {"*": first}}, folder / "a.pt")
        return folder / "a.pt", {"text_encoder": first}
    if kind == "clip_l and clip_g":
        save_file({"clip_g": second, "clip_l": first}, folder / "a.safetensors")
        return folder / "a.safetensors", {"text_encoder": first, "text_encoder_2": second}
    if kind == "folder":
        save_file({"<x>": first}, folder / "learned_embeds.safetensors")
        save_file({"<x>": second}, folder / "learned_embeds_2.safetensors")
        return folder, {"text_encoder": first, "text_encoder_2": second}
    save_file({"<x>": first if kind == "diffusers" else first[0]}, folder / "a.safetensors")
    return folder / "a.safetensors", {"text_encoder": first if kind == "diffusers" else first[:1]}


@pytest.mark.parametrize("kind", ["diffusers", "one vector", "A1111", "clip_l and clip_g", "folder"])
def test_public_files_are_read(kind, tmp_path):
    path, expected = public(kind, tmp_path)
    found = read_embeddings(str(path), list(expected))
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    family = "sd" if len(expected) == 1 else "sdxl"
    bank = Bank(made(family)[1], {"style": TokenSpec(WORD, file=str(path))}, [None])
    bank.close()
    for encoder, value in expected.items():
        torch.testing.assert_close(bank.words["style"].weights[f"{encoder}.<z>"][0].float(), value)
    bank.save("style", 0, tmp_path / "again")
    again = load_file(tmp_path / "again" / "style" / "learned_embeds.safetensors")
    assert torch.equal(again["<z>"], expected["text_encoder"])


def test_other_files_and_words_are_refused_in_a_sentence(tmp_path):
    _, backbone = made("sd")
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)}, tmp_path / "two.safetensors")
    with pytest.raises(BenchError, match="2 tensors where one word was expected, first a; give a file of one word"):
        read_embeddings(str(tmp_path / "two.safetensors"), ["text_encoder"])
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "narrow.safetensors")
    with pytest.raises(BenchError, match=r"holds vectors \(2, 3\), and this backbone needs .*text_encoder_2; give"):
        read_embeddings(str(tmp_path / "narrow.safetensors"), ["text_encoder", "text_encoder_2"])
    with pytest.raises(Impossible, match=r"sd needs .*\(2, 32\).*found .*\(2, 3\).*method.file"):
        Bank(backbone, {"style": TokenSpec(WORD, file=str(tmp_path / "narrow.safetensors"))}, [None])
    with pytest.raises(BenchError, match="absent.safetensors is not a file; give learned_embeds.safetensors"):
        read_embeddings(str(tmp_path / "absent.safetensors"), ["text_encoder"])
    with pytest.raises(BenchError, match="'sks' was to be one token and is 3 on this backbone; python -m bench.tokens"):
        Bank(backbone, {"style": TokenSpec("sks")}, [generator("adapters", 0)])
    with pytest.raises(BenchError, match="read from method.file or learned by method.recipe; give one"):
        learner(1, recipe=None)
