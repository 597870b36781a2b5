"""What every method in conf/ promises, run over all of them on a tiny backbone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import save_file
from tiny import TinyBackbone, tiny_dataset, tiny_image_encoder

from bench.adapters.bank import Bank
from bench.contracts import Ask, CrossAttentionSpec, Loss, Method
from bench.sampling.sampler import Request, Sampler, sample, shots
from bench.seeding import generator
from bench.steps.work import LABELS

CONF = Path(__file__).parents[2] / "conf" / "method"


def settings(name):
    spec = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    for base in spec.pop("defaults", []):
        spec = {**yaml.safe_load((CONF / f"{base}.yaml").read_text()), **spec}
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
        spec["encoder"] = encoder(spec["encoder"], folder)
    if spec.get("file"):
        spec["file"] = random_weights(build(spec), folder)
    return build(spec)


def encoder(spec, folder):
    """A small image encoder of the same kind: `mini`'s CLIP has a text tower, the tiny one has patches."""
    if spec.get("features") == "patches":
        return {**spec, "path": str(tiny_image_encoder(folder / "tower"))}
    return {"_target_": spec["_target_"], "path": "bench/mini/weights/clip"}


def random_weights(made, folder):
    """A file, as the method would load it, that fits the tiny backbone."""
    ((name, spec),) = made.adapters(tiny_dataset()).items()
    if isinstance(spec, CrossAttentionSpec):
        spec = replace(spec, heads=1 if made.encoder.features == "patches" else 0)
    bank = Bank(TinyBackbone(), {name: replace(spec, file=None)}, [generator("weights")])
    save_file(bank.state(name, 0), folder / "weights.safetensors")
    return str(folder / "weights.safetensors")


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_it_names_its_knob_draws_images_and_trains_only_what_it_declares(name, tmp_path):
    made, data, backbone = method(name, tmp_path), tiny_dataset(), TinyBackbone()
    assert made.strength_knob and made.lacks(data) is None and made.missing() is None
    assert made.start_t == settings(name).get("start_t", Method.start_t), "the late start stands in the yaml"
    assert all(isinstance(value, (int, float)) for value in settings(name)["strength_sweep"]), (
        "strength=sweep has no values"
    )
    assert {"content", "negative"} <= set(made.prompts("a photo of a cat", data))
    bank = Bank(backbone, made.adapters(data), [generator("adapters", 0)])
    request = Request(0, made, data, shots(data), made.strength)
    (chunk,) = sample(bank, [request], Sampler(steps=2, cfg=3.0))
    assert chunk[0].shape == (4, 3, 64, 64)
    if made.recipe is None:
        assert all(spec.file for spec in bank.specs.values())
        return
    from bench.training.latents import Latents

    role = [pair.content for pair in data.pairs]
    step = made.step(Latents(data, backbone, made.recipe, role), made.recipe.steps - 1, generator("step"))
    answer, losses = None, 0
    while True:
        try:
            said = step.send(answer)
        except StopIteration:
            break
        assert isinstance(said, (Ask, Loss))
        losses += isinstance(said, Loss)
        assert not isinstance(said, Ask) or set(said.adapters) <= set(bank.specs)
        answer = bank.answer([(0, said)])[0] if isinstance(said, Ask) else None
        assert not isinstance(said, Loss) or torch.isfinite(said.value)
    assert losses
