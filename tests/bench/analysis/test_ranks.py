"""Ranks of other people's tables: against tables with a known truth, and the files that are read."""

import json

import numpy as np
import pandas as pd
import pytest

from bench import ranks
from bench.analysis.result_files import Named, read_results
from bench.contracts import BenchError


def table(levels, seeds=4, prompts=10, training=0.1, image=0.3, draw=None):
    """A line per run and prompt; methods "m0", "m1", ..."""
    draw = draw or np.random.default_rng(0)
    hard = draw.normal(size=prompts)
    lines = []
    for i, level in enumerate(levels):
        for seed in range(seeds):
            run = level + training * draw.normal() + hard + image * draw.normal(size=prompts)
            lines += [{"method": f"m{i}", "seed": seed, "prompt": j, "score": x} for j, x in enumerate(run)]
    return pd.DataFrame(lines)


def found(frame, folder, up=True, **named):
    frame.to_csv(folder / "table.csv", index=False)
    read = read_results([folder / "table.csv"], Named(**named))
    from bench.analysis.pairing import Rows
    from bench.analysis.statistics import compare_rows

    rows = Rows({key: part for key, part in read.groupby("row", sort=False)}, "value")
    return ranks.ranges(rows, compare_rows(rows), up), ranks.report(read, up)


def test_ranges_of_rows_that_are_far_apart_and_of_those_that_are_not(tmp_path):
    made, lines = found(table([0, 5, 5.01, 10]), tmp_path)
    assert made["m3"] == (1, 1) and made["m0"] == (4, 4)
    assert made["m1"] == made["m2"] == (2, 3)
    assert "5 of 6 pairs are told apart" in "\n".join(lines)
    (open_,) = [line for line in lines if line.startswith("not told apart")]
    assert "m1 and m2" in open_ and "more seeds of each would show" in open_ or "no number of seeds" in open_


def test_lower_is_better(tmp_path):
    made, _ = found(table([0, 5, 10]), tmp_path, up=False)
    assert made == {"m0": (1, 1), "m1": (2, 2), "m2": (3, 3)}


def test_the_ranges_hold_together_in_nearly_all_tables_of_equal_rows():
    """With no true difference a range that is not 1 to K is an error; at most 5 % of tables have one (here 200)."""
    from bench.analysis.pairing import Rows
    from bench.analysis.statistics import compare_rows

    draw, wrong = np.random.default_rng(5), 0
    for _ in range(200):
        rows = Rows(dict(iter(table([0] * 4, 3, 6, draw=draw).groupby("method"))), "score")
        wrong += any(made != (1, 4) for made in ranks.ranges(rows, compare_rows(rows), True).values())
    assert wrong <= 16  # 95th percentile of a binomial of 200 at 5 %


def test_runs_alone_are_compared_as_two_samples(tmp_path):
    """A line per run, without prompts: the difference of two rows has Welch's interval, but for moderation."""
    from scipy.stats import ttest_ind

    draw = np.random.default_rng(1)
    values = {"a": draw.normal(0, 1, 8), "b": draw.normal(0.9, 1, 8)}
    frame = pd.DataFrame([{"model": k, "run": i, "acc": x} for k, v in values.items() for i, x in enumerate(v)])
    from bench.analysis.pairing import Rows
    from bench.analysis.statistics import compare_rows

    frame.to_csv(tmp_path / "t.csv", index=False)
    read = read_results([tmp_path / "t.csv"], Named())
    (line,) = compare_rows(Rows({key: part for key, part in read.groupby("row")}, "value")).itertuples()
    assert line.difference == pytest.approx(values["a"].mean() - values["b"].mean())
    expected = ttest_ind(values["a"], values["b"], equal_var=False).pvalue
    assert line.p == pytest.approx(expected, rel=0.5)


def test_without_seeds_models_are_compared_over_prompts(tmp_path):
    frame = table([0, 2], seeds=1, prompts=30, training=0).drop(columns="seed")
    made, lines = found(frame, tmp_path)
    assert made == {"m1": (1, 1), "m0": (2, 2)}
    _, lines = found(table([0, 0.001], seeds=1, prompts=30, training=0).drop(columns="seed"), tmp_path)
    assert "one model each, so only more prompts can show it" in lines[-1]


def test_one_run_of_each_tells_nothing_apart(tmp_path):
    frame = pd.DataFrame({"method": ["a", "b", "c"], "seed": 0, "score": [1.0, 5.0, 9.0]})
    made, lines = found(frame, tmp_path)
    assert set(made.values()) == {(1, 3)}
    assert "0 of 3 pairs" in "\n".join(lines) and "give at least two" in lines[-1]


def peft(folder, name, seed, accuracy):
    metrics = [{"step": 250, "valid accuracy": 0.3}, {"step": 5000, "test accuracy": accuracy, "train loss": 0.6}]
    run = {
        "run_info": {"experiment_name": name, "train_config": {"seed": seed}},
        "train_info": {"metrics": metrics, "train_time": 1700.0 + seed},
    }
    (folder / f"{name.replace('/', '--')}-{seed}.json").write_text(json.dumps(run))


def test_results_of_peft_are_read(tmp_path):
    for name, level in (("lora/rank32", 0.48), ("ia3/default", 0.31)):
        for seed in range(3):
            peft(tmp_path, name, seed, level + 0.01 * seed)
    frame = read_results([tmp_path], Named())
    assert sorted(frame.value[frame.row == "lora/rank32"]) == pytest.approx([0.48, 0.49, 0.5])
    assert ranks.report(frame)[1].split()[2] == "lora/rank32"
    assert set(read_results([tmp_path], Named(value="train_time")).value) == {1700, 1701, 1702}
    with pytest.raises(BenchError, match="has no 'bleu'; type --value with one of step, test accuracy, train loss"):
        read_results([tmp_path], Named(value="bleu"))


@pytest.mark.parametrize(
    "text, named, message",
    [
        ("a,b\n1,2\n", {}, "names no rows; its columns are a, b; say which one with --row"),
        ("method,x,y\nm,1,2\n", {}, "columns with numbers are x, y; type --value COLUMN"),
        ("method,x\nm,1\n", {"value": "z"}, "--value z was requested; columns with numbers are x"),
        ("method,x\nm,1\n", {"seed": "z"}, "--seed z was requested; the columns of .* are method, x"),
        ("method,x\nm,1\nm,2\n", {}, "has several values of .*'row': 'm'.*--seed, --prompt"),
        ("", {}, "cannot be read as CSV"),
    ],
)
def test_what_cannot_be_read_is_told(text, named, message, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(BenchError, match=message):
        read_results([tmp_path / "t.csv"], Named(**named))


def test_files_and_rows_that_are_not_there_are_told(tmp_path):
    with pytest.raises(BenchError, match="neither a file nor a folder"):
        read_results([tmp_path / "no.csv"], Named())
    with pytest.raises(BenchError, match="holds neither .csv nor .json"):
        read_results([tmp_path], Named())
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(BenchError, match="no result of PEFT|not a result of PEFT"):
        read_results([tmp_path / "x.json"], Named())
    with pytest.raises(BenchError, match="Ranks need two rows or more, and the table has m0 alone"):
        found(table([0]), tmp_path)
