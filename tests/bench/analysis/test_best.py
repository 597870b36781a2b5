"""The comparison with the best against Dunnett's tables, its error rate, and orders that are plain to see."""

import numpy as np
import pandas as pd
import pytest

from bench.analysis import best, grids, statistics
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


# --- all rows at once, against each pair by itself


def random_rows(draw):
    """Rows of one style: some lack trainings, some train nothing, some lines are absent, some rows are equal."""
    count, seeds, prompts = int(draw.integers(2, 9)), int(draw.integers(1, 5)), int(draw.choice([1, 6, 24]))
    frames, levels = [], draw.normal(size=count).round(0)
    index = pd.MultiIndex.from_product([range(seeds), range(prompts), range(2)], names=["seed", "prompt", "image_seed"])
    for i, level in enumerate(levels):
        frame = pd.Series(level + draw.normal(size=len(index)) * draw.choice([0, 0.5]), index, name="x").reset_index()
        frame = frame.assign(method=i, trained=draw.random() < 0.9, x_se=draw.choice([np.nan, 0.2]))
        if draw.random() < 0.2:
            frame = frame[frame.seed > 0] if seeds > 2 else frame.iloc[1:]
        frames.append(frame)
    return Rows(dict(enumerate(frames)), "x")


def tails_by_pair(rows, count, up, target):
    found = np.ones((count, count))
    for i in range(count):
        for j in range(i):
            made = rows.pair(i, j)
            if made.general and target is None:
                found[i, j], found[j, i] = made.mean.tail(0.0, up=not up), made.mean.tail(0.0, up=up)
            elif made.general:
                found[j, i], found[i, j] = best.nearness(made.mean, rows.pair(i, j, sign=1).mean, target)
    return found


@pytest.mark.parametrize("up, target", [(True, None), (False, None), (False, 0.0), (False, 0.7)])
def test_rows_compared_at_once_are_compared_as_each_pair_is(up, target):
    draw, at_once = np.random.default_rng(3), 0
    for _ in range(60):
        rows = random_rows(draw)
        names = list(rows.lines)
        at_once += sum(map(len, grids.alike(rows, names)))
        expected = tails_by_pair(rows, len(names), up, target)
        np.testing.assert_allclose(best._tails(rows, names, up, target), expected, rtol=1e-9, atol=1e-12)
    assert at_once > 100  # rows that the arrays were about, not the pairs
