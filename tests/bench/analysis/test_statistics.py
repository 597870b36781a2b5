"""Intervals and comparisons against scipy, closed forms, double loops and a bootstrap written a second time."""

import itertools
import math
import random

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench.analysis import pairing, resampling, statistics
from bench.analysis.pairing import Rows
from bench.contracts import BenchError


def images(methods=("a",), styles=("dots",), seeds=3, prompts=12, shots=2, draw=None):
    """A line per image; draw(method, style, seed, prompt, shot) is its value."""
    keys = itertools.product(methods, styles, range(seeds), range(prompts), range(shots))
    lines = [(m, d, s, f"p{p}", e, draw(m, d, s, p, e)) for m, d, s, p, e in keys]
    return pd.DataFrame(lines, columns=["method", "dataset", "seed", "prompt", "image_seed", "x"])


def noise(seed=0, training=0.0, prompt=1.0, image=1.0):
    """Random effects: of a training, of a prompt in all trainings, of an image."""
    rng = np.random.default_rng(seed)
    t, p, e = rng.normal(size=(9, 9)), rng.normal(size=99), rng.normal(size=(9, 9, 99, 9))
    return lambda m, d, s, i, k: training * t[len(m), s] + prompt * p[i] + image * e[len(m), s, i, k]


def textbook(frame):
    """B, P and I of a two-way layout from its sums of squares, in loops; lists of cell means by training and prompt."""
    cells = frame.groupby(["seed", "prompt"]).x.mean()
    seeds, prompts = sorted(set(frame.seed)), sorted(set(frame.prompt))
    k, n, grand = len(seeds), len(prompts), cells.mean()
    row = {s: sum(cells[s, p] for p in prompts) / n for s in seeds}
    column = {p: sum(cells[s, p] for s in seeds) / k for p in prompts}
    between = sum((row[s] - grand) ** 2 for s in seeds) / (k - 1) / k
    over = sum((column[p] - grand) ** 2 for p in prompts) / (n - 1) / n
    rest = sum((cells[s, p] - row[s] - column[p] + grand) ** 2 for s in seeds for p in prompts)
    return between, over, rest / ((k - 1) * (n - 1)) / (k * n)


def test_the_variances_are_those_of_a_two_way_layout():
    frame = images(draw=noise(training=0.5))
    found = Rows({"": frame}, "x").row("")
    made, units, covers = found.mean, found.units, found.covers
    assert (made.between, made.prompt_variance, made.counted) == pytest.approx(textbook(frame))
    assert units == {"dataset": 1, "seed": 3, "prompt": 12} and covers == ("seed", "prompt")
    assert made.value == pytest.approx(frame.x.mean())


def test_an_interval_over_prompts_is_that_of_a_bootstrap_written_a_second_time():
    frame = images(seeds=1, prompts=10, shots=1, draw=lambda m, d, s, p, e: math.exp(p / 3))
    found, x = statistics.interval(frame, "x"), frame.x.tolist()
    draw = random.Random(1)

    def pivot(sample):
        mean = sum(sample) / len(sample)
        sd = math.sqrt(sum((v - mean) ** 2 for v in sample) / (len(sample) - 1))
        return mean, sd / math.sqrt(len(sample))

    mean, se = pivot(x)
    pivots = sorted((m - mean) / s for m, s in (pivot(draw.choices(x, k=len(x))) for _ in range(40000)))
    expected = mean - se * pivots[39000], mean - se * pivots[1000]
    assert found.mean == pytest.approx(mean) and found.covers == ("prompt",)
    assert (found.low, found.high) == pytest.approx(expected, rel=0.06)
    assert found.high - mean > 2 * (mean - found.low)  # skewed to the right, as the values are


@pytest.mark.parametrize("count", [2, 3, 10, 9999])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.025, 0.3, 0.975, 1.0])
def test_quantiles_are_those_of_numpy(count, share):
    errors = np.random.default_rng(count).normal(size=count)
    expected = np.quantile(errors, share, method="hazen")
    assert resampling._quantile(np.sort(errors), share) == pytest.approx(expected, rel=0, abs=1e-15)


def test_an_interval_over_runs_is_students():
    frame = pd.DataFrame({"seed": range(4), "x": [1.0, 2.0, 4.0, 3.0]})
    assert_students(statistics.interval(frame, "x"), frame.x)
    assert statistics.interval(frame, "x").covers == ("seed",)


def assert_students(found, x):
    low, high = stats.t.interval(0.95, len(x) - 1, np.mean(x), stats.sem(x))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-3 * (high - low)) and found.n == len(x)


def test_the_error_that_a_number_came_with_is_not_divided_by_the_trainings():
    frame = pd.DataFrame({"seed": range(5), "x": 2.0, "x_se": 0.1})
    found = statistics.interval(frame, "x")
    assert (found.low, found.high) == pytest.approx((2 - 0.196, 2 + 0.196), abs=1e-3)


def test_few_prompts_get_students_interval():
    frame = images(seeds=1, prompts=5, shots=1, draw=noise(3))
    assert_students(statistics.interval(frame, "x"), frame.x)


def test_one_value_among_equal_ones_gives_students_interval():
    frame = images(seeds=1, prompts=24, shots=1, draw=lambda m, d, s, p, e: 2.0 * (p == 0))
    assert_students(statistics.interval(frame, "x"), frame.x)


def test_one_of_everything_has_no_interval():
    found = statistics.interval(pd.DataFrame({"seed": [0], "x": [3.0]}), "x")
    assert found.mean == 3.0 and math.isnan(found.low) and math.isnan(found.high) and found.covers == ()
    nothing = statistics.interval(pd.DataFrame({"seed": [0], "x": [math.nan]}), "x")
    assert math.isnan(nothing.mean) and nothing.n == 0


def test_intervals_follow_a_change_of_units():
    frame = images(draw=noise(4, training=0.3))
    plain, other = statistics.interval(frame, "x"), statistics.interval(frame.assign(x=5 - 2 * frame.x), "x")
    expected = 5 - 2 * plain.mean, 5 - 2 * plain.high, 5 - 2 * plain.low
    assert (other.mean, other.low, other.high) == pytest.approx(expected, abs=0.05)
    assert statistics.interval(frame.sample(frac=1, random_state=0), "x").mean == pytest.approx(plain.mean)


def test_more_images_of_the_same_prompts_do_not_shrink_what_prompts_differ_by():
    """The nesting: copies of each image are not new information."""
    few = images(shots=1, draw=noise(5))
    many = images(shots=8, draw=lambda m, d, s, p, e: noise(5)(m, d, s, p, 0))
    one, eight = statistics.interval(few, "x"), statistics.interval(many, "x")
    assert (one.low, one.high) == pytest.approx((eight.low, eight.high)) and eight.n == 8 * one.n


def test_prompts_of_their_own_in_each_style_are_counted_once():
    shared = noise(6)
    frame = images(styles=("dots", "lines", "ink"), seeds=2, draw=lambda *key: 3 * len(key[1]) + shared(*key))
    own = frame.assign(prompt=frame.dataset + frame.prompt)
    found = Rows({"": own}, "x").row("")
    made, covers = found.mean, found.covers
    means = own.groupby("dataset").x.mean()
    assert made.outer_variance + made.prompt_variance == pytest.approx(means.var() / 3)
    assert covers == ("dataset", "seed", "prompt")


def test_several_units_of_a_level_that_was_not_asked_for_are_refused():
    frame = images(styles=("dots", "lines"), draw=noise())
    with pytest.raises(BenchError, match="several units of 'dataset'"):
        statistics.interval(frame, "x", ("seed", "prompt"))


# --- comparisons


def test_a_constant_gap_is_found_through_what_prompts_and_images_share():
    shared = noise(7, training=0, prompt=5, image=2)
    frame = images(("a", "b"), draw=lambda m, d, s, p, e: shared("a", d, 0, p, e) + (m == "a") * 0.25)
    found = statistics.compare(frame, "x", "a", "b")
    assert (found.difference, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25)) and found.verdict == "higher"
    assert found.p < 1e-6 and found.n == 3 * 12 * 2
    assert statistics.compare(frame, "x", "b", {"method": "a"}).verdict == "lower"


def test_trainings_of_two_methods_are_independent_although_they_share_a_seed():
    """A training effect that is the same in both by chance does not vanish: three seeds cannot show a correlation."""
    draw = noise(7, training=3, prompt=0, image=0.1)
    frame = images(("a", "b"), draw=lambda m, d, s, p, e: draw("a", d, s, p, e) + (m == "a") * 0.25)
    means = frame[frame.method == "a"].groupby("seed").x.mean()
    made = Rows(statistics.split(frame, ["method"]), "x").pair(("a",), ("b",))
    assert made.mean.between == pytest.approx(2 * means.var() / 3) and made.mean.free == 2
    assert statistics.compare(frame, "x", "a", "b").verdict == "inconclusive"


def test_only_what_both_have_is_compared():
    frame = images(("a", "bb"), draw=noise(8))
    part = frame[(frame.method == "a") | ((frame.seed < 2) & (frame.prompt != "p3"))]
    found = statistics.compare(part, "x", "a", "bb")
    wide = part.pivot(index=["seed", "prompt", "image_seed"], columns="method", values="x").dropna()
    gaps = wide.a - wide.bb
    assert (found.difference, found.n) == (pytest.approx(gaps.mean()), 2 * 11 * 2)
    assert found.effect == pytest.approx(gaps.mean() / gaps.std())


def test_the_prompts_part_of_a_comparison_is_that_of_the_differences():
    frame = images(("a", "bb"), draw=noise(9, training=0.2))
    gaps = frame[frame.method == "a"].assign(
        x=frame.x[frame.method == "a"].values - frame.x[frame.method == "bb"].values
    )
    found, expected = statistics.compare(frame, "x", "a", "bb"), Rows({"": gaps}, "x").row("").mean
    made = Rows(statistics.split(frame, ["method"]), "x").pair(("a",), ("bb",)).mean
    assert found.difference == pytest.approx(expected.value)
    assert (made.prompt_variance, made.counted) == pytest.approx((expected.prompt_variance, expected.counted))
    assert found.p >= 0.05 or not found.low < 0 < found.high  # the test is the stricter one


def test_p_is_students_where_one_source_of_error_is_there():
    """scipy's test of the differences over prompts, and Welch's of two methods' trainings; far out, too."""
    draw = np.random.default_rng(1)
    prompts = pd.DataFrame({"seed": 0, "prompt": range(12), "x": draw.normal(2, 0.1, 12)})
    found = Rows({"": prompts}, "x").row("").mean.p_value()
    assert found == pytest.approx(stats.ttest_1samp(prompts.x, 0).pvalue) and found < 1e-10
    runs = pd.DataFrame({"method": ["a"] * 4 + ["b"] * 4, "seed": [*range(4)] * 2, "x": draw.normal(size=8)})
    a, b = runs.x[:4], runs.x[4:]
    t = (a.mean() - b.mean()) / math.sqrt(a.var() / 4 + b.var() / 4)
    assert statistics.compare(runs, "x", "a", "b").p == pytest.approx(2 * stats.t.sf(abs(t), 3))


def test_an_untrained_method_has_one_training_whatever_its_seeds():
    """Three seeds of the same images: the interval, the difference and n are those of one."""
    draw = noise(3, training=0.5)
    frame = images(("a", "bb"), draw=lambda m, d, s, p, e: draw(m, d, s if m == "a" else 0, p, e))
    frame["trained"] = frame.method == "a"
    one = frame[(frame.method == "a") | (frame.seed == 2)]
    for part in (frame, one):
        rows = Rows(statistics.split(part, ["method"]), "x")
        mean = rows.row(("bb",))
        assert mean.covers == ("untrained", "prompt") and mean.general and mean.mean.between == 0
        assert mean.n == 24
        made = rows.pair(("a",), ("bb",))
        assert made.mean.between == pytest.approx(frame[frame.method == "a"].groupby("seed").x.mean().var() / 3)
        assert made.mean.value == pytest.approx(frame.groupby("method").x.mean().diff().iloc[-1] * -1)
        turned = rows.pair(("bb",), ("a",)).mean
        assert turned.value == pytest.approx(-made.mean.value) and turned.variance == made.mean.variance
    both = frame.assign(trained=False)
    found = statistics.compare(both, "x", "a", "bb")
    assert found.covers == ("untrained", "prompt") and found.n == 24


def test_one_training_says_nothing_about_the_next():
    frame = images(("a", "b"), seeds=1, draw=lambda m, d, s, p, e: p + 10.0 * (m == "a"))
    found = statistics.compare(frame, "x", "a", "b")
    assert found.p < 0.05 and found.covers == ("prompt",) and found.verdict == "inconclusive"
    pairs = statistics.compare_all(frame, "x", ["method"])
    assert pairs.verdict.tolist() == ["inconclusive"] and pairs.p_holm.isna().all()


def test_rows_that_are_not_told_apart_are_refused():
    frame = pd.concat([images(("a", "b"), draw=noise(i)).assign(strength=float(i)) for i in (1, 2)])
    with pytest.raises(BenchError, match="tell its lines apart"):
        statistics.compare(frame, "x", "a", "b")
    with pytest.raises(BenchError, match="no values of"):
        statistics.compare(frame, "x", "a", "c")
    assert statistics.compare(frame, "x", {"method": "a", "strength": 1.0}, {"method": "b", "strength": 2.0}).n == 72


def test_holm_is_closed_testing_with_bonferroni():
    p = [0.01, 0.04, 0.03, 0.005, 0.6]
    subsets = [s for size in range(1, 6) for s in itertools.combinations(range(5), size)]
    expected = [max(min(1.0, len(s) * min(p[i] for i in s)) for s in subsets if j in s) for j in range(5)]
    assert statistics.holm(p) == pytest.approx(expected)
    assert statistics.holm([math.nan, 0.02]) == [pytest.approx(math.nan, nan_ok=True), 0.04]


def test_no_number_of_seeds_resolves_what_few_prompts_hide():
    frame = images(("a", "b"), draw=lambda m, d, s, p, e: (m == "a") * (p % 4) + 0.01 * ((s * 7 + p) % 3))
    assert statistics.more_seeds(frame, "x", "a", "b", 0.1).advised is None
    with pytest.raises(BenchError, match="at least two"):
        statistics.more_seeds(frame[frame.seed == 0], "x", "a", "b", 0.1)


# --- ranks


def test_the_critical_difference_is_the_published_one():
    """Demsar 2006: q for 3 to 10 rows (table 5a), and 1.25 for 4 rows on 14 sets (section 3.2.4)."""
    for k, n, expected in ((4, 14, 1.25), *((k, 6, q * math.sqrt(k * (k + 1) / 36)) for k, q in Q.items())):
        scores = pd.DataFrame(np.random.default_rng(0).normal(size=(n, k)))
        assert statistics.ranks(scores, True).critical_difference == pytest.approx(expected, rel=3e-3)


Q = {3: 2.343, 4: 2.569, 5: 2.728, 10: 3.164}


def test_ranks_and_p_are_those_of_a_permutation_test():
    scores = pd.DataFrame({"a": [5, 6, 7, 9.0], "b": [4, 7, 6, 8], "c": [1, 2, 3, 4]})
    found = statistics.ranks(scores, True)
    assert found.mean == {"a": 1.25, "b": 1.75, "c": 3.0} and found.styles == 4
    assert statistics.ranks(scores, False).mean["c"] == 1.0

    def spread(rows):
        return sum(sum(column) ** 2 for column in zip(*rows, strict=True))

    observed = spread([(1, 2, 3), (2, 1, 3), (1, 2, 3), (1, 2, 3)])
    orders = itertools.product(itertools.permutations((1, 2, 3)), repeat=4)
    exact = sum(spread(rows) >= observed for rows in orders) / 6**4
    assert found.p == pytest.approx(exact)


def test_the_same_order_in_all_styles_has_its_exact_p():
    scores = pd.DataFrame([[1.0, 2.0, 3.0]] * 3)
    assert statistics.ranks(scores, True).p == pytest.approx(1 / 36)
    with pytest.raises(BenchError, match="3 rows and 2 styles"):
        statistics.ranks(scores[[0, 1]], True)
    assert statistics.ranks(pd.DataFrame([[1.0, 1.0, 1.0]] * 3), True).p == 1.0


def test_rows_as_columns_are_the_rows_as_frames():
    draw = np.random.default_rng(0)
    names = pd.Categorical(draw.choice(["b", "a", None], 200), ["a", "b", "unused"])
    frame = pd.DataFrame({"method": names, "strength": draw.choice([1.0, 2.0, np.nan], 200), "seed": range(200)})
    frame = frame.assign(dataset=pd.Categorical(draw.choice(["y", "x"], 200)), x=draw.normal(size=200))
    by = ["method", "dataset", "strength"]
    frames, found = statistics.split(frame, by), pairing.by_columns(frame, by)
    assert list(map(str, found)) == list(map(str, frames)) and len(found) > 12
    for part, made in zip(frames.values(), found.values(), strict=True):
        assert set(made) == {"dataset", "seed", "x"}
        assert made["seed"].tolist() == part.seed.tolist() and made["x"].tolist() == part.x.tolist()
        assert len(set(made["dataset"])) == 1
