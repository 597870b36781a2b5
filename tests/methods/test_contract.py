"""What every method in conf/ promises, run over all of them on a tiny backbone and on one in closed form.

What a method has no part in is skipped with its reason. `test_planted_mistakes.py` shows that each test can fail.
"""

import functools
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from analytic import shares
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file
from tiny import picture, tiny, tiny_dataset, tiny_image_encoder
from training_steps import global_random, walk, walk_on

from bench.adapters.bank import Bank
from bench.contracts import CrossAttentionSpec, Method
from bench.sampling.sampler import Request, Sampler, sample, shots
from bench.seeding import generator
from bench.steps.work import LABELS
from bench.training.latents import Latents

CONF = Path(__file__).parents[2] / "conf" / "method"
SAMPLER = Sampler(steps=2, cfg=3.0, start_t=1000)
ROUNDING = 1e-6  # of shares
methods = pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))


@functools.cache
def written(path):
    return yaml.safe_load(path.read_text())


def settings(name):
    spec = dict(written(CONF / f"{name}.yaml"))
    for base in spec.pop("defaults", []):
        spec = {**written(CONF / f"{base}.yaml"), **spec}
    return OmegaConf.to_container(OmegaConf.create({"method": spec, "sampler": {"steps": 4}}), resolve=True)["method"]


def method(name, folder):
    """The method of conf/, its settings fitted to the tiny backbone: narrow, with other blocks, and without weights."""
    from bench.settings import build

    spec = {key: value for key, value in settings(name).items() if key not in LABELS}
    if "rank" in spec:
        spec["rank"] = 4
    if "scales" in spec:
        spec["scales"] = {"up": 0.7}
    if "encoder" in spec:
        spec["encoder"] = encoder(spec["encoder"]["_target_"], spec["encoder"].get("features", "pooled"))
    if name == "external_adapter":
        spec["file"] = "a file"
    if name == "external_images":
        spec["path"] = pictures(folder)
    if spec.get("file"):
        spec["file"] = random_weights(build(spec), folder)
    made = build(spec)
    if made.missing():
        pytest.skip(f"{name} needs weights that are not here: {made.missing()}")
    return made


@functools.cache
def encoder(target, features):
    """A small image encoder of the same kind: `mini`'s CLIP has a text tower, the tiny one has patches."""
    from bench.cell import build

    tower = Path(os.environ["BENCH_CACHE"]) / "tower"
    path = str(tiny_image_encoder(tower)) if features == "patches" else "bench/mini/weights/clip"
    return build({"_target_": target, "path": path, "features": features})


def random_weights(made, folder):
    """A file, as the method would load it, that fits the tiny backbone."""
    ((name, spec),) = made.adapters(tiny_dataset()).items()
    if isinstance(spec, CrossAttentionSpec):
        spec = replace(spec, heads=1 if made.encoder.features == "patches" else 0)
    bank = Bank(tiny(), {name: replace(spec, file=None)}, [generator("weights")])
    save_file(bank.state(name, 0), folder / "weights.safetensors")
    bank.close()
    return str(folder / "weights.safetensors")


def pictures(folder):
    """A folder with a picture for each evaluation image of the tiny dataset."""
    for shot in shots(tiny_dataset()):
        Image.fromarray(picture(shot.seed).transpose(1, 2, 0)).save(folder / f"{shot.index:03d}-s{shot.seed}.png")
    return str(folder)


def training_data(made, backbone):
    """What the method draws from in training; skipped when there is none."""
    if made.recipe is None:
        pytest.skip("nothing to train: the method has no recipe")
    data = tiny_dataset()
    return Latents(data, backbone, made.recipe, [pair.content for pair in data.pairs] if made.prior(data) else [])


def drawing(name, folder):
    """The method, skipped when it draws no image of its own."""
    made = method(name, folder)
    if type(made).from_baseline is not Method.from_baseline:
        pytest.skip("it draws nothing: its images are made from the baseline's")
    return made


def turned(name, folder):
    """The method with the lowest and the highest strength that it names; skipped when it has no knob."""
    made = drawing(name, folder)
    if made.strength_knob == "none":
        pytest.skip("it has no strength to turn (strength_knob is none)")
    named = {*map(float, settings(name)["strength_sweep"]), float(made.strength)}
    if len(named) == 1:
        named.add(0.0)
    return made, min(named), max(named)


def learned(made):
    """Adapters that the method trains, those that it does not read from a file."""
    return {name for name, spec in made.adapters(tiny_dataset()).items() if getattr(spec, "file", None) is None}


def images(bank, made, strength):
    data = tiny_dataset()
    (chunk,) = sample(bank, [Request(0, made, data, shots(data)[:1], strength)], SAMPLER)
    return chunk[0]


# --- what it declares --------------------------------------------------------------------------------------------


@methods
def test_it_names_its_knob_and_draws_images(name, tmp_path, banks):
    made, data = method(name, tmp_path), tiny_dataset()
    assert made.strength_knob and made.lacks(data) is None
    assert made.start_t == settings(name).get("start_t", Method.start_t), "the late start stands in the yaml"
    assert all(isinstance(value, (int, float)) for value in settings(name)["strength_sweep"]), (
        "strength=sweep has no values"
    )
    assert {"content", "negative"} <= set(made.prompts("a photo of a cat", data))
    assert made.recipe is not None or not learned(made), "without a recipe all adapters are read from files"
    request = Request(0, made, data, shots(data), made.strength)
    (chunk,) = sample(banks(made), [request], Sampler(steps=2, cfg=3.0))
    assert chunk[0].shape == (4, 3, 64, 64)


# --- training ----------------------------------------------------------------------------------------------------


@methods
def test_its_steps_train_every_adapter_that_it_declares_and_no_other(name, tmp_path, banks):
    """Five steps spread over the recipe; each of their losses must train something."""
    made = method(name, tmp_path)
    data, bank, seen = training_data(made, tiny()), banks(made, filled=0), set()
    for k in sorted({round(part * (made.recipe.steps - 1) / 4) for part in range(5)}):
        walked = walk_on(bank, made, data, k)
        assert walked.losses and all(map(torch.isfinite, map(torch.tensor, walked.losses)))
        assert all(set(ask.adapters) <= set(bank.specs) for ask in walked.asks), "an adapter that is not declared"
        moved = [{adapter for adapter, gradient in found.items() if gradient.any()} for found in walked.gradients]
        assert all(moved), f"a loss of step {k} trains no adapter: all are off or frozen in the ask before it"
        seen |= set().union(*moved)
    assert seen == learned(made), f"never trained in these steps: {sorted(learned(made) - seen)}"


@methods
def test_a_step_depends_on_its_seed_and_number_alone(name, tmp_path, banks):
    """Two fresh instances do the same steps in another order, under other global random states."""
    walks = []
    for seed, backwards in ((1, False), (2, True)):
        made = method(name, tmp_path)
        data, bank = training_data(made, tiny()), banks(made, filled=0)
        steps = sorted({0, made.recipe.steps - 1}, reverse=backwards)
        walk_on(bank, made, data, steps[0])  # weights are loaded, latents and prompts are kept
        with global_random(seed):
            walks.append({k: walk_on(bank, made, data, k) for k in steps})
    for k, first in walks[0].items():
        assert first.losses == walks[1][k].losses, f"step {k} has another loss after other steps"
        for ours, theirs in zip(first.gradients, walks[1][k].gradients, strict=True):
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@methods
def test_descending_its_loss_brings_the_prediction_nearer(name, tmp_path, banks):
    """A small step against the gradient lowers the loss on the same batch, and a prediction that is far off costs more.

    The second says that the sign of the loss is right: whatever is descended gets lower.
    """
    made, backbone = method(name, tmp_path), tiny(torch.float64)
    data, bank, k = training_data(made, backbone), banks(made, filled=0, backbone=backbone), made.recipe.steps - 1
    walked = walk_on(bank, made, data, k)
    start = {adapter: theta.clone() for adapter, theta in bank.theta.items()}
    for i, (value, gradients) in enumerate(zip(walked.losses, walked.gradients, strict=True)):
        assert any(gradient.any() for gradient in gradients.values()), f"loss {i} of step {k} trains no adapter"
        descend(bank, start, gradients, by=1e-4 * abs(value))
        again = walk_on(bank, made, data, k, replayed=walked)
        assert again.losses[i] < value, f"loss {i} of step {k} does not fall along its gradient"
        costs = [lost.losses[i] for lost in far_off(made, data, k, walked, walked.trained_by[i])]
        assert min(costs) >= value and max(costs) > value, (
            f"loss {i} of step {k} falls from {value:.3g} to {min(costs):.3g} when a row of the prediction is far off; "
            "is its sign right?"
        )


def descend(bank, start, gradients, by):
    """Go so far from `start` along the gradients that a loss falls by `by` if it is linear."""
    square = sum(float(gradient.square().sum()) for gradient in gradients.values())
    for adapter, theta in start.items():
        moved = gradients[adapter] * (by / square) if adapter in gradients else 0
        bank.row(adapter, 0).copy_(theta[0] - moved)


def far_off(made, data, k, walked, place):
    """The step with the recorded answers, one row of the answer at `place` far from what it was, row by row."""
    right = walked.answers[place]
    for row in range(len(right)):
        wrong = right.clone()
        noise = torch.randn(right.shape[1:], generator=generator("far off", row), dtype=right.dtype)
        wrong[row] += 100 * right.abs().max() * noise
        answers = [wrong if i == place else answer for i, answer in enumerate(walked.answers)]
        yield walk(made, data, k, lambda i, ask, answers=answers: answers[i])


# --- drawing -----------------------------------------------------------------------------------------------------


@methods
def test_its_images_depend_on_no_global_random_state_and_on_no_earlier_image(name, tmp_path, banks):
    made = drawing(name, tmp_path)
    bank = banks(made, filled=0)
    first = images(bank, made, made.strength)  # weights are loaded, prompts are kept
    for seed in (1, 2):
        with global_random(seed):
            images(bank, made, made.strength / 2)
            assert (images(bank, made, made.strength) == first).all(), "the same image is another one the second time"


@methods
def test_strength_turns_what_was_learned(name, tmp_path, banks):
    """Lowest and highest strength draw other images; at the neutral one the weights do not matter."""
    made, low, high = turned(name, tmp_path)
    one, other = banks(made, filled=0), banks(made, filled=1)
    assert (images(one, made, low) != images(one, made, high)).any(), "strength changes no image"
    if made.neutral_strength is not None:
        same = images(one, made, made.neutral_strength) == images(other, made, made.neutral_strength)
        assert same.all(), f"at strength {made.neutral_strength:g} the images depend on what was learned"


@methods
def test_strength_moves_a_sample_towards_what_was_learned(name, tmp_path):
    """On the backbone in closed form: more strength, more of the adapters, and never less."""
    made, low, high = turned(name, tmp_path)
    data = tiny_dataset()
    less, more = shares(made, data, 3.0, low), shares(made, data, 3.0, high)
    gain = {label: more.get(label, 0) - less.get(label, 0) for label in {**less, **more}}
    adapters = {label: value for label, value in gain.items() if label[0] == "adapter"}
    assert all(value > -ROUNDING for value in adapters.values()), f"more strength, less of {adapters}"
    shown = {label[1] for label, value in adapters.items() if value > ROUNDING}
    if specs := set(made.adapters(data)):
        assert shown, "strength turns no adapter"
        assert "style" not in specs or "style" in shown, "strength does not turn the adapter style"
    else:
        assert gain[("prompt", made.prompts(data.prompts[0], data)["style"])] > ROUNDING, "strength turns nothing"


@methods
def test_at_its_neutral_strength_it_draws_what_the_backbone_draws(name, tmp_path):
    """On the backbone in closed form: ordinary guidance on one of its prompts, without adapters."""
    made, _, _ = turned(name, tmp_path)
    if made.neutral_strength is None:
        pytest.skip("it names no neutral strength (neutral_strength is None)")
    data = tiny_dataset()
    texts = made.prompts(data.prompts[0], data)
    found = shares(made, data, 3.0, made.neutral_strength)
    plain = [
        {("prompt", texts["negative"]): -2.0, ("prompt", texts[role]): 3.0}
        for role in ("content", "style")
        if role in texts
    ]
    assert any(found == pytest.approx(one, abs=ROUNDING) for one in plain), (
        f"it ends at {found}, the backbone at {plain}"
    )


@methods
def test_guidance_moves_a_sample_towards_the_prompt_and_away_from_the_negative_one(name, tmp_path):
    """On the backbone in closed form, when the guidance scale is raised."""
    made, data = drawing(name, tmp_path), tiny_dataset()
    texts = made.prompts(data.prompts[0], data)
    less, more = (shares(made, data, cfg, made.strength) for cfg in (2.0, 5.0))
    gain = {label: more.get(label, 0) - less.get(label, 0) for label in {**less, **more}}
    wanted = {("prompt", text) for text in texts.values() if text != texts["negative"]}
    away = ("prompt", texts["negative"])
    assert max(gain.get(label, 0) for label in wanted) > ROUNDING, "more guidance, no more of the prompt"
    assert min(gain.get(label, 0) for label in wanted) > -ROUNDING, "more guidance, less of a prompt"
    assert away in wanted or gain.get(away, 0) < -ROUNDING, "more guidance, no less of the negative prompt"
