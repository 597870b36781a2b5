"""Mistakes planted into methods: the tests that all methods inherit catch each of them.

The first are planted into the method of docs/extending.md, as its author could make them; the others into
methods with several adapters or with several terms in their loss.
"""

from pathlib import Path

import pytest
from worked_method import BLOCKS, INHERITED, call, install

ROOT = Path(__file__).parents[2]
TRAINS = "test_its_steps_train_every_adapter_that_it_declares_and_no_other"
SEEDED = "test_a_step_depends_on_its_seed_and_number_alone"
NEARER = "test_descending_its_loss_brings_the_prediction_nearer"
STRENGTH = "test_strength_turns_what_was_learned"
TOWARDS = "test_strength_moves_a_sample_towards_what_was_learned"
GUIDED = "test_guidance_moves_a_sample_towards_the_prompt_and_away_from_the_negative_one"

ASK = 'out = yield Ask(data.noisy(z, eps, t), t, text, {"style": 1.0})'
GUIDE = 'return (yield from plain_guidance(z, t, texts, cfg, "style", {"style": strength}))'
STEP = "(z,), examples = data.draw"
OWN_GUIDANCE = """import torch
        from bench.contracts import Text
        text = Text.cat([texts["negative"], texts["style"]])
        out = yield Ask(torch.cat([z, z]), torch.cat([t, t]), text, {"style": strength})
        away, towards = out.chunk(2)
        return away - cfg * (towards - away)"""
IN_STEPS = """self.done = getattr(self, "done", 0) + 1
        rng.manual_seed(self.done)
        (z,), examples = data.draw"""

WALKTHROUGH = {  # mistake: what is replaced, by what, and who catches it at least
    "guidance sign": (GUIDE, OWN_GUIDANCE, {GUIDED}),
    "strength ignored": (GUIDE, GUIDE.replace("strength}", "1.0}"), {STRENGTH, TOWARDS}),
    "adapter never on": (ASK, ASK.replace('{"style": 1.0}', "{}"), {TRAINS}),
    "mutable state": (STEP, IN_STEPS, {SEEDED}),
    "global random state": ("eps, t = data.noise(z, rng)", "eps, t = data.noise(z, None)", {SEEDED}),
    "style half frozen": (
        ASK, ASK.replace("1.0})", '1.0}, frozenset(["style"] if 2 * k > self.recipe.steps else []))'), {TRAINS}
    ),
    "loss sign": ("Loss(data.loss", "Loss(-data.loss", {NEARER}),
    "adapter never on in sampling": (GUIDE, GUIDE.replace(', {"style": strength}', ""), {STRENGTH, TOWARDS}),
    "strength backwards": (GUIDE, GUIDE.replace("strength}", "-strength}"), {TOWARDS}),
}  # fmt: skip
OTHERS = {
    "style half of a pair frozen": ("pair", "frozen=frozenset(own))", "frozen=frozenset(both))", {TRAINS}),
    "style loss trains the content adapter alone": ("pair", "frozen=frozenset(own))", 'frozen={"style"})', {TRAINS}),
    "style guidance sign": ("pair", "g * (prediction - content)", "g * (content - prediction)", {TOWARDS}),
    "prior sign": ("dreambooth", "loss + self.prior_weight", "loss - self.prior_weight", {NEARER}),
    "one side of a slider": ("slider", "+ data.loss(below", "- data.loss(below", {NEARER}),
    "dropping by global random numbers": (
        "ip_adapter_train", "u = torch.rand(n, generator=rng)", "u = torch.rand(n)", {SEEDED}
    ),
    "the first strength is remembered": (
        "dreambooth", '{"style": strength}', '{"style": vars(self).setdefault("first", strength)}', {STRENGTH}
    ),
}  # fmt: skip


def planted(code, right, wrong):
    assert code.count(right) == 1, f"the method no longer holds {right!r}, exactly once"
    return code.replace(right, wrong)


def missed_by(catches, code, settings, folder, monkeypatch, banks):
    """Names of those among the inherited tests named `catches` that pass or are skipped."""
    path, missed = install(code, settings, folder, monkeypatch), set(catches)
    for test in INHERITED:
        if test.__name__ in catches:
            try:
                call(test, path.stem, folder, banks)
            except AssertionError:
                missed.remove(test.__name__)
            except pytest.skip.Exception:
                pass
    return missed


@pytest.mark.parametrize("mistake", WALKTHROUGH)
def test_a_mistake_in_the_method_of_the_walkthrough_is_caught(mistake, tmp_path, monkeypatch, banks):
    right, wrong, catches = WALKTHROUGH[mistake]
    code = planted(BLOCKS["python"], right, wrong)
    assert not missed_by(catches, code, BLOCKS["yaml"], tmp_path, monkeypatch, banks)


@pytest.mark.parametrize("mistake", OTHERS)
def test_a_mistake_in_a_method_with_several_parts_is_caught(mistake, tmp_path, monkeypatch, banks):
    name, right, wrong, catches = OTHERS[mistake]
    settings = (ROOT / "conf" / "method" / f"{name}.yaml").read_text()
    module = settings.partition("_target_: ")[2].split()[0].rpartition(".")[0]
    code = planted((ROOT / f"{module.replace('.', '/')}.py").read_text(), right, wrong)
    assert not missed_by(catches, code, settings, tmp_path, monkeypatch, banks)
