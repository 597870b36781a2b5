"""The comparison with the best against Dunnett's tables, its error rate, and orders that are plain to see."""

import numpy as np
import pandas as pd
import pytest

from bench.analysis import best, statistics
from bench.analysis.pairing import Rows
from bench.analysis.resampling import Mean


def table(levels, seeds=3, prompts=24, training=0.1, image=0.5, draw=None):
    draw = draw or np.random.default_rng(0)
    shared = draw.normal(size=prompts)
    parts = []
    for i, level in enumerate(levels):
        values = level + shared + training * draw.normal(size=(seeds, 1)) + image * draw.normal(size=(seeds, prompts))
        index = pd.MultiIndex.from_product([range(seeds), range(prompts)], names=["seed", "prompt"])
        parts.append(pd.Series(values.ravel(), index, name="x").reset_index().assign(method=i))
    return Rows(dict(enumerate(parts)), "x")


def found(levels, up=True, target=None, **more):
    return best.best(table(levels, **more), range(len(levels)), up, target)


def test_the_best_is_bold_and_those_near_it_are_with_it():
    made = found([5, 4.99, 0, 0])
    assert {made.best} | made.with_best == {0, 1} and made.separated == {2, 3} and made.bold == made.best
    made = found([5, 0, 0])
    assert (made.bold, made.with_best, made.separated) == (0, frozenset(), {1, 2})
    made = found([5, 0, 0], up=False)
    assert {made.best} | made.with_best == {1, 2} and made.bold is None  # most of the rows


def test_nothing_is_bold_where_most_rows_cannot_be_separated():
    made = found([0, 0, 0, 0])
    assert made.bold is None and not made.separated


def test_with_a_target_the_nearest_is_the_best():
    made = found([-3, 0.02, 2, 5], up=False, target=0.0)
    assert made.bold == 1 and made.separated == {0, 2, 3}
    assert found([-3, 0.02, 2, 5], up=False).best == 0
    made = found([-2, 2.01, 9, 9], up=False, target=0.0)
    assert {made.best} | made.with_best == {0, 1}  # equally far, on both sides


def test_one_row_and_rows_of_one_training_are_no_contest():
    assert found([3]) is None
    assert found([3, 0], seeds=1) is None


@pytest.mark.parametrize("count, critical", [(2, 1.92), (5, 2.23), (9, 2.42)])
def test_the_joint_quantile_is_dunnetts(count, critical):
    """One-sided 5 % points for many-to-one comparisons, correlation 0.5, infinite degrees (Dunnett 1955, table 1a)."""
    from scipy.special import ndtr

    tails = np.full((count + 1, count + 1), ndtr(-critical))
    assert best._joint(tails, np.eye(count + 1), 0) == pytest.approx(0.05, abs=0.005)


def test_nearness_is_the_order_of_squares():
    """b^2 - a^2 = (b - a)(b + a): with tiny errors one of both p values is 0 and the other 1."""
    for a, b in ((1, 2), (-1, 2), (1, -2), (-1, -2)):
        minus, plus = (Mean(x, 2, 1e-6, 0.0, np.zeros(1), degrees=9.0) for x in (a - b, a + b))
        near, far = best.nearness(minus, plus, 0.0)
        assert near < 1e-6 and far > 0.999


def test_the_best_of_equal_rows_is_rarely_left_behind():
    """Reduced; test_error_rates.py holds more scenes."""
    draw = np.random.default_rng(3)
    wrong = [0 in found([0.0] * 4, draw=draw, prompts=12).separated for _ in range(60)]
    assert np.mean(wrong) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 60)
    assert statistics.ALPHA == best.ALPHA
