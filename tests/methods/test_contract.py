"""What every method in conf/ promises, run over all of them on a tiny backbone."""

from pathlib import Path

import pytest
import torch
import yaml
from tiny import TinyBackbone, tiny_dataset

from bench.adapters import Bank
from bench.contracts import Ask, Loss, Method
from bench.sampling import Request, Sampler, sample, shots
from bench.trainer import generator
from bench.work import LABELS

CONF = Path(__file__).parents[2] / "conf" / "method"


def settings(name):
    spec = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    for base in spec.pop("defaults", []):
        spec = {**yaml.safe_load((CONF / f"{base}.yaml").read_text()), **spec}
    return spec


def method(name):
    from bench.cell import build

    spec = settings(name)
    if "rank" in spec:
        spec["rank"] = 4  # the tiny backbone is narrow
    return build({key: value for key, value in spec.items() if key not in LABELS})


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_it_names_its_knob_draws_images_and_trains_only_what_it_declares(name):
    made, data, backbone = method(name), tiny_dataset(), TinyBackbone()
    assert made.strength_knob and made.lacks(data) is None
    assert made.start_t == settings(name).get("start_t", Method.start_t), "the late start stands in the yaml"
    assert all(isinstance(value, (int, float)) for value in settings(name)["curve"]), "strength=curve has no values"
    assert {"content", "negative"} <= set(made.prompts("a photo of a cat", data))
    bank = Bank(backbone, made.adapters(data), [generator("adapters", 0)])
    request = Request(0, made, data, shots(data), made.strength)
    (chunk,) = sample(bank, [request], Sampler(steps=2, cfg=3.0))
    assert chunk[0].shape == (4, 3, 64, 64)
    if made.recipe is None:
        assert not bank.specs
        return
    from bench.latents import Latents

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
