"""Declared claims against scipy's tests, against each other, and against a truth that is plain to see."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench.analysis import matched
from bench.analysis.contrasts import Contrast, answers, matched_estimates
from bench.analysis.matched import Pair, StrengthSweep
from bench.contracts import BenchError

PROMPTS = 24


def lines(level=0.0, seeds=3, noise=0.3, strengths=(1.0,), slope=0.0, seed=0):
    draw = np.random.default_rng(seed)
    parts = []
    for strength in strengths:
        values = level + slope * strength + noise * draw.normal(size=(seeds, PROMPTS))
        index = pd.MultiIndex.from_product([range(seeds), range(PROMPTS)], names=["seed", "prompt"])
        parts.append(pd.Series(values.ravel(), index, name="value").reset_index().assign(strength=strength))
    return pd.concat(parts)


def one(kind, *frames, **more):
    (found,) = answers([Contrast(kind, *frames, **more)])
    return found


def test_a_difference_is_shown_in_its_direction_and_the_opposite_in_the_other():
    a, b = lines(1, seed=1), lines(0, seed=2)
    higher, lower = one("difference", a, b), one("difference", a, b, direction="lower")
    assert (higher.status, lower.status) == ("shown", "opposite shown") and higher.p == lower.p < 1e-6
    assert higher.low < 1 < higher.high and higher.n == 3 * PROMPTS and higher.units["seed"] == 3
    same = one("difference", lines(0, seed=1), b)
    assert same.status == "not shown" and 0 < same.detectable < 0.5


def test_holm_is_over_the_contrasts_of_one_call_alone():
    pairs = [(lines(0.1 * i, seed=i), lines(0, seed=9 + i)) for i in range(4)]
    together = answers([Contrast("difference", a, b) for a, b in pairs])
    alone = [one("difference", a, b) for a, b in pairs]
    assert [x.p for x in together] == [x.p for x in alone]
    order = np.argsort([x.p for x in alone])
    assert together[order[0]].p_holm == pytest.approx(min(1, 4 * alone[order[0]].p))
    assert all(t.detectable >= x.detectable for t, x in zip(together, alone, strict=True))


def test_less_leakage_is_a_smaller_distance_to_the_ideal():
    """-0.056 is not less leakage than 0.001."""
    far, near = lines(-0.56, noise=0.1, seed=1), lines(0.01, noise=0.1, seed=2)
    assert one("difference", near, far, direction="nearer").status == "shown"
    found = one("difference", far, near, direction="nearer")
    assert found.status == "opposite shown" and found.estimate == pytest.approx(0.55, abs=0.05)
    assert found.low < 0.55 < found.high
    mirrored = one("difference", lines(-1, noise=0.1, seed=1), lines(1, noise=0.1, seed=2), direction="nearer")
    assert mirrored.status == "not shown" and abs(mirrored.estimate) < 0.1
    moved = [part.assign(value=part.value + 7) for part in (far, near)]
    assert one("difference", *moved, direction="nearer", ideal=7).p == pytest.approx(found.p)


def test_equivalence_is_shown_by_the_interval_and_not_by_a_large_p():
    a, b = lines(0, seed=1), lines(0, seed=2)
    assert one("equivalence", a, b, margin=0.5).status == "shown"
    assert one("equivalence", a, b, margin=0.01).status == "not shown"
    assert one("equivalence", lines(3), b, margin=0.5).status == "opposite shown"
    assert one("equivalence", lines(-2, seed=3), lines(2, seed=4), margin=0.5, near=True).status == "shown"
    assert one("equivalence", lines(-2, seed=3), lines(1, seed=4), margin=0.5, near=True).status == "opposite shown"


def test_a_bound_is_students_one_sample_test():
    frame = lines(0.3, seeds=1).drop(columns=["seed", "strength"]).assign(trained=False)
    found = one("bound", frame, margin=0.2, levels=("prompt",))
    assert found.p == pytest.approx(stats.ttest_1samp(frame.value, 0.2).pvalue)
    assert found.estimate == pytest.approx(frame.value.mean() - 0.2)


def test_a_slope_is_that_of_least_squares():
    sweep = lines(strengths=(0.0, 1.0, 2.0, 4.0), slope=0.5, seed=5)
    found = one("slope", sweep)
    assert found.estimate == pytest.approx(stats.linregress(sweep.strength, sweep.value).slope)
    assert found.status == "shown" and one("slope", sweep, direction="lower").status == "opposite shown"
    other = one("slope", sweep, lines(strengths=(0.0, 2.0), slope=0.1, seed=6))
    assert other.status == "shown" and other.estimate == pytest.approx(0.4, abs=0.1)


def test_monotone_needs_every_step():
    strengths = (0.0, 1.0, 2.0)
    assert one("monotone", lines(strengths=strengths, slope=1.0)).status == "shown"
    bent = lines(strengths=strengths, slope=1.0)
    bent.loc[bent.strength == 2.0, "value"] -= 1.0
    assert one("slope", bent).status == "shown" and one("monotone", bent).status == "not shown"


def test_at_equal_closeness_the_answer_is_that_of_the_matched_comparison():
    draw = np.random.default_rng(7)
    x = np.array([0.0, 1.0, 2.0]) + np.zeros((3, 12, 1))
    y = 0.4 * x + 0.05 * draw.normal(size=x.shape)
    point = 1.5 + 0.02 * draw.normal(size=(3, 12, 1))
    pair = Pair(StrengthSweep(x, y), StrengthSweep(point, 0.2 + 0.05 * draw.normal(size=(3, 12, 1))))
    made = matched.of_pair(pair)
    found = one("difference", None, estimates=matched_estimates(made))
    assert (found.estimate, found.p) == (made.difference, pytest.approx(made.p)) and found.status == "shown"
    assert made.plus.value == pytest.approx(made.difference + 2 * pair.b.y.mean())
    nearer = one("difference", None, estimates=matched_estimates(made), direction="nearer")
    assert nearer.status == "opposite shown"


def test_what_cannot_be_answered_says_why():
    single = one("difference", lines(seeds=1), lines(1, seeds=1))
    assert single.status == "not shown" and math.isnan(single.p) and "one training" in single.reason
    apart = one("difference", lines(), lines().assign(prompt=lambda f: f.prompt + 100))
    assert "in common" in apart.reason
    with pytest.raises(BenchError, match="give one of difference"):
        Contrast("bigger", lines())
    with pytest.raises(BenchError, match="margin"):
        Contrast("equivalence", lines(), lines())
    with pytest.raises(BenchError, match="strength=sweep"):
        one("slope", lines())
