"""What a paper's table needs: full names, scales, digits, bounds below a rule, and a width that is kept."""

import math

import pandas as pd
import pytest
import yaml

from bench.analysis import digits, formats, frames, layouts, method_titles, quantities, settings_in_words, shown_cells
from bench.analysis.table_model import Column, Row, TableModel, Value
from bench.listing import main as listing
from bench.paths import CONF
from bench.settings import class_of
from bench.store.record import Record

NONE = pd.DataFrame(columns=["run_id", "strength", "prompt", "image_seed"])
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))


def record(method, dataset="dots", seed=0, **settings):
    config = {"method": {"name": method, **settings}, "dataset": {"name": dataset}, "seed": seed}
    scores = [{"strength": 1.0, "metric": name, "value": seed + len(method) / 7, "higher_is_better": False,
               "network": "net", "fingerprint": {}} for name in ("kid", "clip_t", "lpips_leak", "fid")]  # fmt: skip
    run_id = "-".join([method, dataset, str(seed), *map(str, settings.values())])
    return Record(run_id, "done", None, {**config, "backbone": {"name": "tiny"}}, {"train_s": 9.0}, scores=scores)


def source(records, configs=True):
    made = {r.run_id: r.config for r in records}
    return layouts.Source(frames.frame(records), NONE, configs=(lambda: made) if configs else dict)


@pytest.fixture(scope="module")
def model():
    names = ("zero_shot", "pair", "copy", "dreambooth", "oracle")
    records = [record(m, d, s) for m in names for d in ("dots", "lines") for s in range(2)]
    return layouts.metrics(source(records), None)


# --- names and headings


@pytest.mark.parametrize("name", METHODS)
def test_each_method_has_a_title_of_its_own_and_the_bound_of_its_class(name):
    titles = [method_titles.title(other) for other in METHODS]
    assert titles.count(method_titles.title(name)) == 1 and method_titles.title(name) != name
    target = method_titles._settings_with_base(name)["_target_"]
    assert method_titles.bound(name) == class_of(target).bound


def test_a_name_that_is_no_name_reads_no_file(tmp_path):
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"title": "stolen"}))
    assert method_titles.title(f"../../..{tmp_path}/x") == f"../../..{tmp_path}/x"
    assert method_titles.bound("nobody") == ""


def test_headings_have_scale_and_unit_and_ids_are_listed(model):
    assert [(column.title, column.network) for column in model.columns] == [
        ("CLIP-T x 100", "net"), ("KID x 1000", "net"), ("FID", "net"), ("LPIPS leak", "net"), ("Training (s)", None),
    ]  # fmt: skip
    assert any("clip_t, kid, fid, lpips_leak, train_s" in line for line in model.legend)
    assert quantities.heading("of_a_user").text == "of_a_user"


def test_every_quantity_has_a_heading_of_its_own_and_a_group():
    found = [quantities.heading(name) for name in quantities.quantities()]
    texts = [heading.text for heading in found]
    assert len(set(texts)) == len(texts) and all(heading.group for heading in found)
    scaled = {name: about for name, about in quantities.quantities().items() if " x " in about.unit}
    assert scaled and all(
        f" x {about.unit.split(' x ')[0]}" in quantities.heading(n).text for n, about in scaled.items()
    )


def test_a_target_stands_in_place_of_the_arrow():
    leak = Column("lpips_leak", None, False, ideal=0.0)
    made = TableModel(["method"], [leak], [Row({"method": "a"}, ("a",), (Value(0.1),))])
    assert "leak → 0" in formats.text(made) and r"$\rightarrow$ 0" in formats.latex(made)
    assert "leak → 0" in formats.markdown(made) and "↓" not in formats.html(made)


def test_the_listing_defines_every_column(capsys):
    listing(["metrics"])
    shown = capsys.readouterr().out
    for name in [*quantities.quantities(), *quantities.COSTS]:
        assert f"\n  {name} " in shown


def test_settings_are_words_and_the_fewest():
    records = [record("pair", rank=r, lr=lr, text=r) for r, lr in ((4, 0.1), (8, 0.1), (8, 0.2))]
    labels = [row.labels[0] for row in layouts.metrics(source(records), ["kid"]).rows]
    told = ("rank=4, lr=0.1, 1 more", "rank=8, lr=0.1, 1 more", "rank=8, lr=0.2, 1 more")
    assert sorted(labels) == [f"Pair Customization ({words})" for words in told]
    unknown = [row.labels[0] for row in layouts.metrics(source(records, False), ["kid"]).rows]
    hashes = {settings_in_words.frames.settings_hash(r.config) for r in records}
    assert {label.split("(")[1].rstrip(")") for label in unknown} == hashes


def test_paths_are_as_short_as_tells_them_apart():
    assert settings_in_words.short(["a.b.lr", "a.c.lr", "x.rank", "top"]) == ["b.lr", "c.lr", "rank", "top"]


# --- bounds


def test_bounds_stand_below_a_rule_and_win_nothing(model):
    for dataset in ("dots", "lines"):
        rows = [row for row in model.rows if row.key["dataset"] == dataset]
        assert [row.bound for row in rows] == ["", "", "floor", "ceiling", "floor"]
    assert not any(value.bold for row in model.rows if row.bound for value in row.values)
    assert [separator for separator, _ in shown_cells.before(model)].count(shown_cells.RULE) == 2
    shown = formats.text(model, 200).splitlines()
    assert sum(set(line) == {"-", " "} for line in shown) == 3  # below the headings, and above each group of bounds
    assert formats.latex(model).count(r"\cmidrule{1-") == 2 and formats.html(model).count('class="rule"') == 2


# --- digits


@pytest.mark.parametrize(("error", "places"), [(0.3, 1), (0.13, 2), (0.2, 1), (1.9, 1), (2.0, 0), (12, 0), (0.0014, 4)])
def test_one_digit_of_the_standard_error_two_after_a_one(error, places):
    value = Value(5.0, 5.0 - 1.96 * error, 5.0 + 1.96 * error)
    assert digits.of_error(value) == places == digits.of_column([value, Value(7.0)])


def test_a_column_has_the_same_places_and_no_negative_zero():
    values = [Value(23.8213, 21.0, 26.6), Value(-0.04, -2.4, 2.3), Value(4.0)]
    places = digits.of_column(values)
    assert [digits.figures(value, places)[0] for value in values] == ["23.8", "0.0", "4.0"]
    assert digits.figures(Value(0.0003), 2) == ("0.0003", "") and digits.figures(Value(math.nan), 2) == ("", "")
    assert digits.of_column([Value(146.13), Value(150.0)]) == 0 and digits.of_column([Value(0.3161)]) == 3


# --- width


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_lost(model, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    shown = formats.text(model)
    assert max(map(len, shown.splitlines())) <= width
    whole = formats.text(model, 10_000)
    numbers = [word for word in whole.split() if word[0].isdigit() and "." in word]
    assert sorted(word for word in shown.split() if word in numbers) == sorted(numbers)


def test_wide_tables_are_split_between_groups():
    columns = [Column(f"c{i}", group="AAABBBBBBCCC"[i]) for i in range(12)]
    made = TableModel(["method"], columns, [Row({"method": "m"}, ("m",), tuple(Value(float(i)) for i in range(12)))])
    parts = shown_cells.split(made, [1] * 12, 6)
    assert ["".join(column.group for column in part.columns) for part in parts] == ["AAA", "BBBBBB", "CCC"]
    assert [value.mean for part in parts for value in part.rows[0].values] == list(range(12))
    assert shown_cells.split(made, [1] * 12, 12) == [made]
    few = shown_cells.split(made, [1] * 12, 2)
    assert max(len(part.columns) for part in few) == 2 and sum(len(part.columns) for part in few) == 12


def test_a_skipped_row_says_so_in_each_part():
    columns = [Column("a", group="A"), Column("b", group="B")]
    made = TableModel(["method"], columns, [Row({"method": "m"}, ("m",), (Value(text="skipped"), Value()))])
    assert [part.rows[0].values[0].text for part in shown_cells.split(made, [1, 1], 1)] == ["skipped"] * 2
