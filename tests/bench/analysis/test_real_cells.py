"""Errors of numbers of whole sets on records of real cells, against a jackknife by hand: each prompt left out and all
metrics computed again."""

import dataclasses

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from bench.analysis import best, frames, layouts, statistics
from bench.analysis.pairing import Rows
from bench.analysis.table_model import numbers
from bench.compose import cell, register_datasets
from bench.paths import CONF
from bench.run import run
from bench.steps.score import _evaluation
from bench.steps.work import Work

NAMES = {"kid": "kid", "cmmd": "cmmd_u", "fid": "fid", "oracle": "gap_closed_lpips"}
SETTINGS = ["tracker=none", "dataset=halftone", "backbone=mini"]


def made(results, *overrides):
    register_datasets()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return cell(compose("config", [*SETTINGS, f"results={results}", *overrides]))


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Two seeds of the words alone and one of the ground truth: all three train nothing."""
    results = tmp_path_factory.mktemp("real")
    found = [made(results, f"method={m}", f"seed={s}") for m, s in (("zero_shot", 0), ("zero_shot", 1), ("oracle", 0))]
    assert [run(one).status for one in found] == ["done"] * 3
    return found


def by_hand(one, prompts):
    """id -> the number without each prompt (n,), from the stored images."""
    work = Work(one, one.results / one.run_id)
    strength = one.strengths[0]
    whole = _evaluation(work, strength)
    left = {name: [] for name in NAMES.values()}
    for prompt in prompts:
        rows = [i for i, own in enumerate(whole.prompts) if own != prompt]
        lists = {name: [getattr(whole, name)[i] for i in rows] for name in ("prompts", "full_prompts", "seeds")}
        images = {name: np.asarray(getattr(whole, name))[rows] for name in ("images", "baseline")}
        part = dataclasses.replace(whole, **lists, **images)
        for metric, name in NAMES.items():
            left[name].append(work.metrics[metric].score(part).values[name])
    return {name: np.array(values) for name, values in left.items()}


def jackknife(left):
    n = len(left)
    return np.sqrt((n - 1) / n * np.square(left - left.mean()).sum())


@pytest.mark.slow
def test_errors_of_sets_are_those_of_a_jackknife_by_hand(cells):
    words, _, truth = cells
    scores, images = frames.load(words.results), frames.images(words.results)
    prompts = list(dict.fromkeys(images.prompt))
    hand = {one.run_id: by_hand(one, prompts) for one in (words, truth)}
    source = layouts.Source(scores, images)
    for name in NAMES.values():
        (column,) = source.columns([name])
        found = numbers(scores, images, column)
        assert found.judged and not found.of_sets and not found.frame.trained.any()
        rows = Rows(statistics.split(found.frame, ["method"]), "value", found.levels)
        single, pair = rows.row(("zero_shot",)).mean, rows.pair(("zero_shot",), ("oracle",)).mean
        a, b = hand[words.run_id][name], hand[truth.run_id][name]
        for mine, left in ((single, a), (pair, a - b)):
            print(f"{name}: {np.sqrt(mine.variance):.5g} against {jackknife(left):.5g} by hand")
            assert np.sqrt(mine.variance) == pytest.approx(jackknife(left), rel=0.1)
        assert rows.row(("zero_shot",)).covers == ("untrained", "prompt") and single.between == 0
        assert best.best(rows, list(rows.lines), bool(found.up)) is not None
