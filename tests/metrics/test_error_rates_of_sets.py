"""Numbers of whole sets of equal truth are rarely called different; untrained methods are among them."""

import math

import numpy as np
import pandas as pd
import pytest

from bench.analysis import statistics
from bench.analysis.pairing import Rows
from metrics.fid import frechet_distance
from metrics.jackknife import codes, per_prompt
from metrics.kid import added, mmd2_of
from metrics.vendi import vendi

PROMPTS, SHOTS, SIZE = 12, 2, 8


def features(rng, hard, training):
    """(N, D) of one training: what its prompts show, its own shift, and each image's noise."""
    shift = training * rng.normal(size=SIZE)
    return np.repeat(hard, SHOTS, axis=0) + shift + rng.normal(size=(PROMPTS * SHOTS, SIZE))


def line(x, reference, prompts, **about):
    """Lines of one training as a record keeps them: the values of its prompts, for each number."""
    groups = codes(prompts)
    kid = added(mmd2_of(x, reference, groups), groups, "kid")
    values = {"fid": frechet_distance(x, reference), "vendi": vendi(x)}
    more = per_prompt(
        values, prompts, lambda keep: {"fid": frechet_distance(x[keep], reference), "vendi": vendi(x[keep])}
    )
    return pd.DataFrame({"prompt": groups, "image_seed": np.tile(range(SHOTS), PROMPTS), **kid, **more, **about})


def table(rng, training=0.0, methods=4, untrained=2, seeds=3):
    """Equal methods; the last ones train nothing, so all their seeds have the same images."""
    hard, reference = rng.normal(size=(PROMPTS, SIZE)), rng.normal(size=(60, SIZE))
    prompts = [f"p{i}" for i in range(PROMPTS) for _ in range(SHOTS)]
    parts = []
    for method in range(methods):
        fixed, still = method >= methods - untrained, features(rng, hard, 0.0)
        for seed in range(seeds):
            x = still if fixed else features(rng, hard, training)
            parts.append(line(x, reference, prompts, method=method, seed=seed, trained=not fixed))
    return pd.concat(parts, ignore_index=True)


def false_alarms(tables, training, seed=0):
    """Shares of tables in which any two methods are called different, for kid, fid and vendi."""
    rng, wrong = np.random.default_rng(seed), np.zeros(3)
    for _ in range(tables):
        frame = table(rng, training, untrained=0 if training else 2)  # what trainings add is no equal truth
        for i, name in enumerate(("kid", "fid", "vendi")):
            pairs = statistics.compare_rows(Rows(statistics.split(frame, ["method"]), name))
            wrong[i] += (pairs.verdict != statistics.INCONCLUSIVE).any()
    return wrong / tables


def most(count):
    return 0.05 + 3 * math.sqrt(0.05 * 0.95 / count)


def test_equal_sets_are_rarely_called_different():
    assert (false_alarms(25, 0.0) <= most(25)).all()


def test_with_the_spread_over_trainings_alone_they_would_be():
    """The simulation can fail: numbers without their error over prompts, an untrained method counted three times."""
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(10):
        frame = table(rng, methods=2, seeds=3).groupby(["method", "seed"], as_index=False).fid.mean()
        pairs = statistics.compare_rows(Rows(statistics.split(frame, ["method"]), "fid", ("seed",)))
        wrong += (pairs.verdict != statistics.INCONCLUSIVE).any()
    assert wrong == 10


@pytest.mark.slow
@pytest.mark.parametrize("training", [0.0, 0.15])
def test_error_rates_of_sets_at_large(training):
    found = false_alarms(300, training, seed=2)
    print(f"sets | sd {training} | " + " | ".join(f"{100 * x:.1f}" for x in found))
    assert (found <= most(300)).all()
