"""Power against scipy's noncentral t and against simulated tests; advised seeds against the power that they reach."""

import math

import numpy as np
import pytest
from scipy import stats

from bench.analysis import power
from bench.analysis.resampling import Mean


def trainings(variance, units=4, degrees=None):
    return Mean(0.0, units, variance / units, 0.0, np.zeros(1), degrees=degrees)


@pytest.mark.parametrize("family", [1, 28])
def test_power_is_that_of_the_noncentral_t(family):
    made = trainings(2.0, 5, 1e9)  # the variance is known, but for the test that is to come
    for free, gap in ((3.0, 2.0), (14.0, 2.5)):
        known = Mean(0.0, 5, 0.4, 0.0, np.zeros(1), degrees=free)
        one = power._power(known, gap, family, np.array([5]), np.ones(1))[0]
        t = stats.t.ppf(1 - 0.025 / family, free)
        assert one == pytest.approx(stats.nct.sf(t, free, gap / math.sqrt(0.4)), abs=0.01)
    assert power.power(made, 2.0, family) == pytest.approx(
        stats.norm.sf(stats.norm.ppf(1 - 0.025 / family) - 2 / math.sqrt(0.4)), abs=0.01
    )


def test_a_detectable_gap_is_detected_in_80_percent():
    made = trainings(2.0, 5, 12.0)
    for family in (1, 10):
        gap = power.detectable(made, family)
        assert power.power(made, gap, family) == pytest.approx(0.8, abs=1e-3)
    assert power.detectable(made, 10) > power.detectable(made, 1)
    assert math.isnan(power.detectable(Mean(1.0, 1, 0.0, 0.0, np.zeros(1))))


def test_more_units_are_few_for_a_large_gap_and_a_range_for_a_middling_one():
    made = trainings(1.0, 3, 8.0)
    assert power.more_units(made, 50.0) == power.More(0, 0, 0)
    found = power.more_units(made, 0.8)
    assert found.low <= found.advised <= found.high and found.low < found.high
    assert power.power(made, 0.8, units=3 + found.advised) >= 0.8 > power.power(made, 0.8, units=2 + found.advised)


def test_prompts_bound_what_more_units_can_show():
    made = Mean(0.0, 3, 0.1, 0.0, np.linspace(-3, 3, 12) - 0.0, degrees=2.0)
    assert power.more_units(made, 0.5).advised is None


def test_advised_seeds_reach_the_power_that_was_asked_for():
    """Two methods, trainings alone; variances from 3 seeds and 8 methods. Reduced; test_error_rates.py has more."""
    draw, reached = np.random.default_rng(5), []
    for _ in range(150):
        estimate = 2 * draw.chisquare(16) / 16
        found = power.more_units(trainings(estimate, 3, 16.0), 1.2)
        units = 3 + found.advised
        ncp = 1.2 / math.sqrt(2 / units)
        reached.append(stats.nct.sf(stats.t.ppf(0.975, 16 + found.advised), 16 + found.advised, ncp))
    assert np.mean(reached) == pytest.approx(0.8, abs=0.08)
