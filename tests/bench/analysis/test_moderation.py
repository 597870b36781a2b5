"""Moderated variances against their definition, the distribution that they assume, and scipy's trigamma."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import special

from bench.analysis import moderation, statistics
from bench.analysis.pairing import Rows


def test_the_inverse_of_trigamma():
    for x in (0.01, 0.4, 3.0, 500.0):
        assert moderation.inverse_trigamma(float(special.polygamma(1, x))) == pytest.approx(x, rel=1e-6)


def test_the_prior_is_found_from_many_variances():
    """Variances drawn as Smyth 2004 assumes: s0^2 = 2 with d0 = 6, each estimated with 4 degrees of freedom."""
    draw = np.random.default_rng(0)
    true = 2 * 6 / draw.chisquare(6, 20000)
    found = moderation.fit(list(true * draw.chisquare(4, 20000) / 4), [4] * 20000)
    assert (found.variance, found.degrees) == pytest.approx((2, 6), rel=0.1)


def test_a_moderated_variance_is_the_weighted_mean_but_never_below_its_own():
    prior = moderation.Prior(variance=3.0, degrees=4.0, pooled=16.0)
    assert prior.moderate(0.6, 2.0) == pytest.approx(((4 * 3 + 2 * 0.6) / 6, 6.0))
    assert prior.moderate(9.0, 2.0) == (9.0, 6.0)
    assert moderation.Prior(3.0, math.inf, 16.0).moderate(0.6, 2.0) == (3.0, 16.0)
    assert moderation.Prior().moderate(0.6, 2.0) == (0.6, 2.0)


def test_two_methods_and_methods_without_spread_share_nothing():
    assert moderation.fit([1.0, 2.0], [2, 2]) == moderation.Prior()
    assert moderation.fit([0.0] * 5, [2] * 5) == moderation.Prior()
    assert moderation.fit([1.0, 2.0, 0.0, 0.0], [2, 2, 0, 0]) == moderation.Prior()


def table(variances, seeds=3, draw=None):
    draw = draw or np.random.default_rng(1)
    lines = [(f"m{i}", s, draw.normal(0, math.sqrt(v))) for i, v in enumerate(variances) for s in range(seeds)]
    return pd.DataFrame(lines, columns=["method", "seed", "x"])


def test_the_methods_of_a_block_moderate_each_other_and_untrained_ones_do_not():
    frame = table([1.0] * 6 + [0.0] * 20).assign(trained=lambda f: f.method.isin([f"m{i}" for i in range(6)]))
    rows = Rows(statistics.split(frame, ["method"]), "x")
    own = frame[frame.trained].groupby("method").x.var()
    assert rows.prior == moderation.fit(list(own), [2] * 6) and rows.prior.degrees > 0
    made = rows.pair(("m0",), ("m1",)).mean
    expected = [rows.prior.moderate(own[name], 2) for name in ("m0", "m1")]
    assert (made.between, made.free) == pytest.approx((sum(v for v, _ in expected) / 3, expected[0][1]))


def test_strengths_of_one_training_count_once():
    """Copies of a method at other strengths are no further trainings."""
    frame = table([1.0, 4.0, 2.0]).assign(run_id=lambda f: f.method + f.seed.astype(str))
    copies = pd.concat([frame.assign(strength=s) for s in range(4)])
    rows = Rows(statistics.split(copies, ["method", "strength"]), "x")
    assert rows.prior == Rows(statistics.split(frame, ["method"]), "x").prior


def test_what_all_methods_find_hard_in_a_style_is_no_part_of_a_difference():
    draw = np.random.default_rng(2)
    styles = {d: draw.normal(0, 50) for d in "abcd"}
    lines = [(f"m{i}", d, styles[d] + draw.normal()) for i in range(5) for d in styles]
    frame = pd.DataFrame(lines, columns=["method", "dataset", "x"])
    moved = frame.assign(x=frame.x + frame.dataset.map({"a": 900.0, "b": 0.0, "c": -3.0, "d": 7.0}))
    made, same = (Rows(statistics.split(f, ["method"]), "x").pair(("m0",), ("m1",)).mean for f in (frame, moved))
    assert made.variance < 10 and made.variance == pytest.approx(same.variance) and made.free > 3
    wide = frame[frame.method.isin(["m0", "m1"])]
    two = Rows(statistics.split(wide, ["method"]), "x").pair(("m0",), ("m1",)).mean
    gaps = wide.pivot(index="dataset", columns="method", values="x")
    assert two.variance == pytest.approx((gaps.m0 - gaps.m1).var() / 4) and two.free == 3


def test_rows_of_other_styles_have_no_part_in_it():
    draw = np.random.default_rng(3)
    kinds = {"m0": "abc", "m1": "abc", "m2": "abc", "m3": "abd"}
    frame = pd.DataFrame(
        [(m, d, 9.0 * "abcd".index(d) + draw.normal()) for m, own in kinds.items() for d in own],
        columns=["method", "dataset", "x"],
    )
    made, alone = (
        Rows(statistics.split(part, ["method"]), "x").pair(("m0",), ("m1",)).mean
        for part in (frame, frame[frame.method != "m3"])
    )
    assert made.variance == alone.variance and made.free == alone.free
