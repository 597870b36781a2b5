"""The metric of docs/extending.md is a real one: its blocks pass the tests that all metrics inherit, and
mistakes planted into it are caught by them.
"""

import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import test_metric_contract as contract
import yaml

GUIDE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
SECTION = GUIDE[GUIDE.index("## Add a metric") : GUIDE.index("## Add a layout")]
BLOCKS = dict(re.findall(r"```(python|yaml)\n(.*?)```", SECTION, re.S))
INHERITED = [test for name, test in vars(contract).items() if name.startswith("test_")]


@pytest.fixture
def install(monkeypatch):
    """Its module where an import finds it; returns the case that the inherited tests take."""

    def installed(code):
        ((_, spec),) = yaml.safe_load(BLOCKS["yaml"]).items()
        name = spec["_target_"].rpartition(".")[0]
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(code, name, "exec"), module.__dict__)
        contract.built.cache_clear()
        return json.dumps(spec)

    yield installed
    contract.built.cache_clear()


@pytest.mark.parametrize("test", INHERITED, ids=lambda test: test.__name__)
def test_the_metric_of_the_walkthrough_keeps_the_contract(install, test):
    test(install(BLOCKS["python"]))


def test_it_is_a_double_loop(install):
    metric = contract.built(install(BLOCKS["python"]))
    case = contract.evaluation(contract.sets(False)["right"])
    x, y = (metric.network(np.asarray(images)) for images in (case.images, case.dataset.reference_set()))
    cosines = [max(float(a @ b / np.sqrt((a @ a) * (b @ b))) for b in y) for a in x]
    np.testing.assert_allclose(metric.score(case).per_image["nearest_style"], cosines, rtol=1e-4)


PLANTED = {  # mistake: what is replaced, by what, and who catches it
    "direction": ('"nearest_style": True', '"nearest_style": False', "directions"),
    "sign": ("cosines = (", "cosines = -(", "directions"),
    "order": (".max(axis=1)", "[range(len(x)), range(len(x))]", "order"),
    "per image in another order": ("}, {", '}, {"nearest_style": cosines[::-1]}, made) or ({', "order"),
    "a random half of the images": (
        "float(cosines.mean())", "float(__import__('numpy').random.choice(cosines, 5).mean())", "random_state"
    ),
    "the baseline in place of the images": (
        "points(evaluation,", "points(__import__('dataclasses').replace(evaluation, images=evaluation.baseline),",
        "shifted"
    ),
    "a name that is not declared": ('Score({"nearest_style"', 'Score({"nearest"', "declared_names"),
    "an undefined number": ("float(cosines.mean())", "float('nan')", "declared_names"),
    "a version that is not told": ("nearest_style {self.version}", "nearest_style", "declared_names"),
    "NaN where there is no reference set": (
        "reference = reference_images(",
        "if evaluation.dataset.reference_set is None:\n"
        "            return Score({'nearest_style': float('nan')})\n"
        "        reference = reference_images(", "lacks"
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_mistake_in_it_is_caught(mistake, install):
    right, wrong, catches = PLANTED[mistake]
    assert BLOCKS["python"].count(right) == 1
    case, failed = install(BLOCKS["python"].replace(right, wrong)), set()
    for test in INHERITED:
        try:
            test(case)
        except AssertionError:
            failed.add(test.__name__)
    assert any(catches in name for name in failed), failed
