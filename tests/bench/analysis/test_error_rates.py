"""Error rates, power and coverage of the tables' and the claims' statements, on tables with a known truth.

docs/statistics.md reports the full run:

    .venv/bin/python -m pytest -n 0 -s -m slow tests/bench/analysis/test_error_rates.py
"""

import itertools
import math

import numpy as np
import pytest
from known_truth import SHAPES, Scene, rows

from bench.analysis import best, power, statistics

FAMILIES = (1, 4, 10)


def most(share, count):
    """The largest share of `count` tables that is no more than `share` but for the simulation's own error."""
    return share + 3 * math.sqrt(share * (1 - share) / count)


def claims_of(found, rng, family):
    """The smallest Holm p of a family of pairs drawn at random: any of them is declared before the numbers are seen."""
    pairs = list(itertools.combinations(found.lines, 2))
    chosen = rng.permutation(len(pairs))[:family]
    return min(statistics.holm([found.pair(*pairs[i]).mean.p_value() for i in chosen]))


def errors(scene, tables, seed=0):
    """Shares of tables of equal methods with a false claim, by family, and with the best one (any) left behind."""
    rng, wrong = np.random.default_rng([seed, tables]), np.zeros(len(FAMILIES) + 1)
    for _ in range(tables):
        found = rows(scene.table(rng))
        wrong[:-1] += [claims_of(found, rng, family) < 0.05 for family in FAMILIES]
        chosen = best.best(found, list(found.lines), True)
        wrong[-1] += 0 in chosen.separated
    return wrong / tables


def shown(scene, tables, family, seed=0):
    """The share of tables in which the first method, the better one, is shown to be better than another one."""
    rng, found = np.random.default_rng([seed, tables]), 0
    for _ in range(tables):
        p = rows(scene.table(rng)).pair(0, 1).mean
        found += p.value > 0 and family * p.p_value() < 0.05
    return found / tables


def covered(scene, tables, seed=0):
    """Shares of intervals that hold the truth: of single methods, and of differences of two."""
    rng, held = np.random.default_rng([seed, tables]), np.zeros(2)
    for _ in range(tables):
        found = rows(scene.table(rng))
        for i, made in enumerate((found.row(0), found.pair(0, 1))):
            low, high = made.mean.limits()
            held[i] += low <= 0 <= high
    return held / tables


# --- in the ordinary suite


def test_false_claims_and_a_lost_best_row_are_rare():
    for scene in (Scene(4, 3, 12, 0.15, "normal", 16), Scene(8, 3, 12, 0.0, "rare")):
        assert (errors(scene, 80) <= most(0.05, 80)).all()


def test_a_gap_of_one_image_sd_is_found():
    assert shown(Scene(8, 3, 24, 0.15, gap=1.0), 60, 4) >= 0.8


def test_without_moderation_it_would_not_be_found(monkeypatch):
    """The simulation can fail: each pair by itself, as before."""
    monkeypatch.setattr("bench.analysis.moderation.FEWEST", 10**6)
    assert shown(Scene(8, 3, 24, 0.15, gap=1.0), 60, 28) < 0.7


def test_thirty_methods_can_be_told_apart():
    """435 comparisons: gaps of 1000 with noise 0.01 (no p value could be below 0.05 with 9,999 draws)."""
    values = 1000.0 * np.arange(30)[:, None, None, None] + 0.01 * np.random.default_rng(0).normal(size=(30, 3, 12, 2))
    found = rows(values)
    p = [found.pair(a, b).mean.p_value() for a, b in itertools.combinations(found.lines, 2)]
    assert max(statistics.holm(p)) < 0.001


# --- at large


@pytest.mark.slow
@pytest.mark.parametrize("methods, tables", [(2, 400), (4, 400), (8, 400), (30, 10)])
@pytest.mark.parametrize("trainings", [3, 5])
def test_error_rates_at_large(methods, tables, trainings):
    total = []
    for training, ratio in ((0.0, 1), (0.15, 1), (0.5, 1), (0.15, 16), (0.5, 16)):
        parts = []
        for prompts, shape in itertools.product((12, 24), SHAPES):
            scene = Scene(methods, trainings, prompts, training, shape, ratio)
            parts.append(errors(scene, tables, prompts))
            assert (parts[-1] <= most(0.05, tables)).all(), scene
        mean = np.mean(parts, axis=0)
        total.append(mean)
        print(
            f"errors | {methods} methods, {trainings} trainings, sd {training}, variances 1 : {ratio} | "
            + " | ".join(f"{100 * x:.1f}" for x in mean)
            + f" | worst {100 * np.max(parts):.1f}",
            flush=True,
        )
    assert (np.array(total) <= most(0.05, 8 * tables)).all()


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [12, 24])
@pytest.mark.parametrize("training, least", [(0.0, 0.9), (0.15, 0.8)])
def test_power_at_large(prompts, training, least):
    found = {f: shown(Scene(8, 3, prompts, training, gap=1.0), 600, f) for f in (1, 4, 10, 28)}
    print(f"power | {prompts} prompts, sd {training} | " + " | ".join(f"{100 * x:.0f}" for x in found.values()))
    assert found[1] >= least and found[4] >= least - 0.15


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("trainings", [3, 5])
def test_coverage_at_large(shape, trainings):
    for prompts, training, ratio in itertools.product((12, 24), (0.0, 0.15, 0.5), (1, 16)):
        row, pair = covered(Scene(8, trainings, prompts, training, shape, ratio), 500, prompts)
        print(
            f"coverage | {trainings} trainings, {prompts} prompts, sd {training}, 1 : {ratio}, {shape} | "
            f"{100 * row:.1f} | {100 * pair:.1f}",
            flush=True,
        )
        assert min(row, pair) >= 0.88


@pytest.mark.slow
@pytest.mark.parametrize("training", [0.15, 0.5])
@pytest.mark.parametrize("family", [1, 10])
def test_advised_seeds_reach_80_percent(training, family):
    """Seeds are advised from a table of 3; the power that they have is counted in tables with so many seeds."""
    rng, advised, gap = np.random.default_rng(1), [], 0.6 if training < 0.3 else 1.0
    for _ in range(150):
        mean = rows(Scene(8, 3, 24, training).table(rng)).pair(0, 1).mean
        advised.append(power.more_units(mean, gap, family).advised)
    counts = [3 + more for more in advised if more is not None]
    reached = {k: shown(Scene(8, k, 24, training, gap=gap), 150, family, k) for k in sorted(set(counts))}
    mean = float(np.mean([reached[k] for k in counts]))
    print(f"advised | sd {training}, family {family}, gap {gap} | {np.median(counts):.0f} seeds | {100 * mean:.0f}")
    assert mean == pytest.approx(0.8, abs=0.12)
