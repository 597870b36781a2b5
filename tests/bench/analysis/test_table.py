"""The table against double loops over the same records; unlike networks and unlike settings stay apart."""

import math
import statistics
import subprocess
import sys
import time

import pandas as pd
import pytest

from bench import table
from bench.analysis import frames, plain_text, shown_columns
from bench.contracts import BenchError
from bench.store.record import Record, Store


def score(strength, metric, value, network="net-a"):
    up = metric.startswith("up")
    return {"strength": strength, "group": "g", "metric": metric, "value": value, "higher_is_better": up,
            "network": network, "fingerprint": {}}  # fmt: skip


def done(method, dataset, seed, scores, **settings):
    config = {"method": {"name": method, **settings}, "dataset": {"name": dataset}, "backbone": {"name": "tiny"}}
    run_id = f"{method}-{dataset}-s{seed}" + "".join(f"-{value}" for value in settings.values())
    return Record(run_id, "done", None, config | {"seed": seed}, {"train_s": 10.0 + seed}, scores=scores)


def unhappy(status, method, dataset, seed, reason):
    config = {"method": {"name": method}, "dataset": {"name": dataset}, "backbone": {"name": "tiny"}, "seed": seed}
    return Record(f"{method}-{dataset}-s{seed}", status, reason, config)


@pytest.fixture
def records():
    """Two methods x two datasets x three seeds x two strengths, one failed, one skipped."""
    numbers = {
        (m, d, s, g): 100 * i + 10 * j + s**2 + g
        for i, m in enumerate(["one", "two"])
        for j, d in enumerate(["dots", "lines"])
        for s in range(3)
        for g in (0.5, 1.0)
    }
    cells = [
        done(m, d, s, [score(g, "up_a", numbers[m, d, s, g]) for g in (0.5, 1.0)])
        for m in ("one", "two") for d in ("dots", "lines") for s in range(3)
    ]  # fmt: skip
    odd = [unhappy("failed", "three", "dots", 0, "the loss was NaN at step 7")]
    odd += [unhappy("skipped", "three", "lines", s, "it needs pairs") for s in range(3)]
    return numbers, cells + odd


def test_mean_and_deviation_over_seeds_equal_a_double_loop(records):
    numbers, cells = records
    rows = frames.summary(frames.frame(cells))
    for (m, d, g), row in rows[rows.status == "done"].set_index(["method", "dataset", "strength"]).iterrows():
        values = [numbers[m, d, s, g] for s in range(3)]
        assert row["up_a [net-a]"] == pytest.approx(statistics.mean(values))
        assert row["up_a [net-a] sd"] == pytest.approx(statistics.stdev(values))
        assert row["n"] == 3 and row["train_s"] == pytest.approx(11.0)
    assert (rows.status == "done").sum() == 8


def test_each_run_has_its_own_line_per_strength(records):
    numbers, cells = records
    rows = frames.wide(frames.frame(cells))
    found = {(r.method, r.dataset, r.seed, r.strength): r._asdict() for r in rows[rows.status == "done"].itertuples()}
    values = dict(zip(found, rows.loc[rows.status == "done", "up_a [net-a]"], strict=True))
    assert values == numbers


def test_failed_and_skipped_cells_are_lines_with_their_reason(records):
    rows = frames.summary(frames.frame(records[1]))
    odd = {
        (row.method, row.dataset): (row.status, row.reason, row.n) for row in rows[rows.status != "done"].itertuples()
    }
    assert odd == {("three", "dots"): ("failed", "the loss was NaN at step 7", 1),
                   ("three", "lines"): ("skipped", "it needs pairs", 3)}  # fmt: skip
    text = plain_text.render(rows, ["up_a"])
    assert "failed: three on dots: the loss was NaN at step 7" in text
    assert "skipped: three on lines: it needs pairs" in text and text.count("it needs pairs") == 1


def test_only_unhappy_cells_still_make_a_table():
    rows = frames.summary(frames.frame([unhappy("failed", "three", "dots", 0, "no weights")]))
    assert "failed: three on dots: no weights" in plain_text.render(rows)
    assert plain_text.render(frames.summary(frames.frame([]))) == "No record."


def test_unlike_networks_never_share_a_column():
    cells = [
        done("one", "dots", 0, [score(1.0, "low_b", 1.0)]),
        done("two", "dots", 0, [score(1.0, "low_b", 9.0, "net-b")]),
    ]
    rows = frames.wide(frames.frame(cells)).set_index("method")
    assert rows.loc["one", "low_b [net-a]"] == 1.0 and math.isnan(rows.loc["one", "low_b [net-b]"])
    assert rows.loc["two", "low_b [net-b]"] == 9.0 and math.isnan(rows.loc["two", "low_b [net-a]"])
    assert len(shown_columns.choose(rows.reset_index(), ["low_b"])) == 2


def test_unlike_settings_are_not_averaged():
    cells = [done("one", "dots", seed, [score(1.0, "up_a", 10.0 * steps + seed)], steps=steps)
             for seed in (0, 1) for steps in (5, 50)]  # fmt: skip
    rows = frames.summary(frames.frame(cells))
    assert sorted(rows["up_a [net-a]"]) == [50.5, 500.5] and "settings" in plain_text.render(rows)


def test_missing_numbers_stay_missing():
    cells = [done("one", "dots", 0, [score(1.0, "up_a", math.nan), score(1.0, "low_b", -0.5)])]
    cells[0].scores.append({"strength": 1.0, "group": "left out", "metric": None, "value": None})
    rows = frames.summary(frames.frame(cells))
    assert math.isnan(rows.loc[0, "up_a [net-a]"]) and rows.loc[0, "low_b [net-a]"] == -0.5
    assert shown_columns.choose(rows, ["all"]) == ["low_b [net-a]", "train_s"]
    assert "-0.5" in plain_text.render(rows, ["low_b"]) and "nan" not in plain_text.render(rows, ["all"])


def test_where_takes_lists_and_patterns(records):
    frame = frames.frame(records[1])
    assert set(frames.where(frame, ["method=one,two", "dataset=d*"]).run_id.str[:4]) == {"one-", "two-"}
    assert set(frames.where(frame, ["strength=0.5"]).strength) == {0.5}
    half = records[1][0]
    half.config["requested"] = {"method": {"strength": 0.5}}
    assert set(frames.where(frames.frame([half]), ["default_strength=True"]).strength) == {0.5}
    assert set(frames.where(frame, ["default_strength=True"]).strength) == {1.0}  # one that names none
    with pytest.raises(BenchError, match="--where takes column=value"):
        frames.where(frame, ["mehtod=one"])


def test_an_unknown_metric_is_answered_with_those_there_are(records):
    with pytest.raises(BenchError, match=r"metric fdi; there are up_a \[net-a\], train_s"):
        plain_text.render(frames.summary(frames.frame(records[1])), ["fdi"])


def test_arrows_follow_the_direction(records):
    cells = [done("one", "dots", 0, [score(1.0, "up_a", 1.0), score(1.0, "low_b", 2.0)])]
    text = plain_text.render(frames.wide(frames.frame(cells)), ["all"])
    assert "up_a ↑" in text and "low_b ↓" in text


def test_numbers_have_the_figures_that_their_spread_warrants():
    def shown(value, spread):
        return plain_text._number({"a": value, "a sd": spread}, "a")

    assert [shown(23.8213, 2.81), shown(92.84, 11.2), shown(0.00978, 0.0014)] == [
        "23.8±2.8",
        "93±11",
        "0.0098±0.0014",
    ]
    assert [shown(1234.5, math.nan), shown(-0.5, 0.0), shown(math.nan, math.nan)] == ["1234", "-0.5", ""]


def test_the_headline_of_a_full_table_fits_130_columns(monkeypatch):
    names = ["clip_t", "fid", "fid_null", "kid", "lpips_leak", "gap_closed_lpips", "train_s"]
    monkeypatch.setattr(shown_columns, "headline", lambda: names)
    cells = [done("dreambooth", "stained_glass", seed, [score(1.0, name, 0.012345 * (seed + 1), "mini-perceptual")
             for name in names[:-1]]) for seed in range(3)]  # fmt: skip
    cells += [unhappy("skipped", "three", "lines", 0, "it needs pairs")]
    shown = plain_text.render(frames.summary(frames.frame(cells)))
    assert max(map(len, shown.splitlines())) <= 130 and shown.count("±") == 7 and "  skipped" in shown


def test_the_long_table_holds_only_numbers(records):
    frame = frames.long(records[1])
    assert list(frame) == frames.SCORE and len(frame) == len(records[0])


def test_command_writes_files_that_read_back(records, tmp_path, capsys):
    store = Store(tmp_path / "results")
    for record in records[1]:
        store.publish(record)
    files = {kind: tmp_path / f"t.{kind}" for kind in ("csv", "parquet", "markdown")}
    options = [part for kind, path in files.items() for part in (f"--{kind}", str(path))]
    table.main(["--results", str(store.root), "--metrics", "up_a", "--by", "runs", *options])
    shown = capsys.readouterr().out
    csv, parquet = pd.read_csv(files["csv"]), pd.read_parquet(files["parquet"])
    assert len(csv) == len(parquet) == 28
    assert csv["up_a [net-a]"].dropna().tolist() == parquet["up_a [net-a]"].dropna().tolist()
    assert files["markdown"].read_text().startswith("backbone tiny\n\n| Dataset | Method |")
    assert "it needs pairs" in shown and max(map(len, shown.splitlines())) <= 120


def test_command_writes_every_layout_and_format(records, tmp_path, capsys):
    store = Store(tmp_path / "results")
    for record in records[1]:
        store.publish(record)

    def command(*options):
        table.main(["--results", str(store.root), "--metrics", "up_a", *options])
        return capsys.readouterr().out

    shown = command("--latex", str(tmp_path / "t.tex"), "--html", str(tmp_path / "t.html"))
    assert "it needs pairs" in shown and r"\toprule" in (tmp_path / "t.tex").read_text()
    assert "<table>" in (tmp_path / "t.html").read_text()
    command("--shape", "long", "--csv", str(tmp_path / "long.csv"), "--where", "dataset=dots", "method=one")
    long = pd.read_csv(tmp_path / "long.csv").query("metric == 'up_a'").set_index("strength")
    values = [records[0]["one", "dots", s, 1.0] for s in range(3)]
    half = 4.302653 * statistics.stdev(values) / math.sqrt(3)  # Student's t, two degrees of freedom
    assert long.loc[1.0, ["mean", "low", "high"]].tolist() == pytest.approx(
        [statistics.mean(values), statistics.mean(values) - half, statistics.mean(values) + half], rel=2e-3
    )
    assert "all 2" in command("--layout", "styles", "--where", "strength=1")
    assert "up_a" in command("--layout", "sweep") and "dots" not in command("--pool", "--where", "method=one")
    with pytest.raises(BenchError, match="same settings"):
        command("--layout", "ablation")


def test_what_is_not_read_changes_nothing_that_is_shown(records, tmp_path, capsys):
    """The table at first reads only what it shows; with --metrics and --where all is read."""
    names = ["clip_t", "kid", "kid_se", "fid", "fid_null", "cmmd_u", "up_other"]
    store = Store(tmp_path / "results")
    for k, record in enumerate(records[1]):
        record.scores += [
            score(g, name, k + g + i) for i, name in enumerate(names) for g in (0.5, 1.0) if record.scores
        ]
        store.publish(record)
    first = shown_columns.headline()
    both = []
    for options in ((), ("--metrics", ",".join(name for name in first if name in (*names, "train_s")))):
        table.main(["--results", str(store.root), *options])
        both.append(capsys.readouterr().out)
    assert both[0] == both[1] and "KID x 1000" in both[0] and "up_other" not in both[0]


@pytest.mark.slow
def test_a_thousand_records_take_less_than_two_seconds(tmp_path):
    store = Store(tmp_path)
    for seed in range(1000):
        scores = [score(float(g), f"up_{i}", seed + i) for g in range(2) for i in range(20)]
        folder = store.folder(f"cell-{seed}")
        folder.mkdir()
        from bench.store.record import dumps

        (folder / "record.json").write_text(dumps(done("one", f"set{seed % 10}", seed, scores)))
    started = time.perf_counter()
    rows = frames.summary(frames.load(tmp_path))
    assert len(rows) == 20 and time.perf_counter() - started < 2


def test_the_table_needs_no_torch(tmp_path):
    code = (
        "import sys; from bench import table; table.main(['--results', sys.argv[1]]); assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert result.stdout == "No record.\n"
