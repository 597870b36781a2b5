"""Rows are keyed by content: equal names never join unlike data, and a hint that is followed ends the problem."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bench import table
from bench.analysis import comparisons, frames, layouts, variants
from bench.contracts import BenchError
from bench.data import identity, schema
from bench.report.gallery import galleries
from bench.store.record import Record, Store

OLD = Path(__file__).parents[2] / "assets" / "old_records"


def record(method, spec, seed=0, value=1.0, about=None, content=None):
    """A finished cell whose spec is as Hydra composes it."""
    requested = {"method": {"name": method}, "dataset": spec}
    content = content or identity.identity(spec)
    config = {"method": {"name": method}, "dataset": {"name": spec["name"], "content": content}, "seed": seed,
              "backbone": {"name": "tiny"}, "requested": requested}  # fmt: skip
    scores = [{"strength": 1.0, "metric": "up_a", "value": value, "higher_is_better": True, "network": "net",
               "fingerprint": {"metric": "up_a 1", "n": 2} | (about or {})}]  # fmt: skip
    return Record(f"{method}-{content}-s{seed}", "done", None, config, {"train_s": 1.0}, scores=scores)


def spec_of(name, **changes):
    return schema.describe(name) | changes


def rendered(**changes):
    known = schema.describe("halftone")["rendered"]
    return spec_of("halftone", rendered={**known, **changes})


def pictures(folder, colour):
    """A pair of pictures in a folder of its own, always under the same file names."""
    folder.mkdir(parents=True)
    names = []
    for k, name in enumerate(("plain.png", "ink.png")):
        Image.new("RGB", (8, 8), (colour, 90 * k, 0)).save(folder / name)
        names.append(str(folder / name))
    return spec_of("folder", pair=names, style_words="in ink style", controls=[])


def stored(root, records):
    store = Store(root)
    for one in records:
        store.publish(one)
    return root


def shown(root, capsys, *options):
    table.main(["--results", str(root), *options])
    return capsys.readouterr().out


def sweep(value=5.0):
    draw = np.random.default_rng(0)
    return [
        record(m, spec_of("halftone"), seed, value * (m == "one") + draw.normal(), content="aaaaaaaaaaaa")
        for m in ("one", "two")
        for seed in range(3)
    ]


def trial(**changes):
    spec = spec_of("halftone", prompts=["a photo of a cup"], seeds=[0], **changes)
    return record("one", spec, 0, 1000.0, content="bbbbbbbbbbbb")


# --- rows ---


def test_a_name_with_two_contents_is_two_rows(tmp_path, capsys):
    specs = [pictures(tmp_path / "cats", 10), pictures(tmp_path / "dogs", 200)]
    root = stored(tmp_path / "results", [record("one", spec, 0, 10.0 * i) for i, spec in enumerate(specs)])
    found = frames.load(root)
    assert sorted(found.dataset.unique()) == ["folder (cats/plain)", "folder (dogs/plain)"]
    rows = frames.summary(found)
    assert rows.n.tolist() == [1, 1] and rows["up_a [net]"].tolist() == [0.0, 10.0]
    out = shown(root, capsys, "--metrics", "up_a")
    assert "cats/plain" in out and "dogs/plain" in out


def test_the_same_pictures_in_another_folder_are_the_same_row(tmp_path):
    specs = [pictures(tmp_path / "here", 10), pictures(tmp_path / "there", 10)]
    cells = [record("one", spec, seed) for seed, spec in enumerate(specs)]
    assert frames.summary(frames.frame(cells)).n.tolist() == [2]
    assert len(set(variants.labels(cells).values())) == 1


def test_a_trial_with_other_prompts_leaves_the_table_of_a_sweep_as_it_was(tmp_path, capsys):
    alone, both = stored(tmp_path / "a", sweep()), stored(tmp_path / "b", [*sweep(), trial()])
    for options in (
        (),
        ("--metrics", "all"),
        ("--by", "runs"),
        ("--pool",),
        ("--layout", "styles", "--metrics", "up_a"),
        ("--compare", "up_a"),
    ):
        before, after = (shown(root, capsys, *options) for root in (alone, both))
        assert after.startswith(before.rstrip("\n"))
    assert shown(both, capsys, "--where", "evaluation=default") == shown(alone, capsys)
    other = shown(both, capsys, "--where", "evaluation=1 prompt, 1 seed", "--metrics", "up_a")
    assert "halftone (1 prompt, 1 seed)" in other and "1000" in other
    files = [tmp_path / f"t{i}.csv" for i in range(2)]
    for root, file in zip((alone, both), files, strict=True):
        shown(root, capsys, "--csv", str(file))
    first, second = (pd.read_csv(file) for file in files)
    pd.testing.assert_frame_equal(second.iloc[: len(first)], first)
    assert len(second) == len(first) + 1


def test_what_differs_is_said_in_words():
    cases = {
        "halftone": spec_of("halftone"),
        "halftone (3 pairs)": rendered(pairs=3),
        "halftone (reference set of 64)": rendered(reference_set=64),
        "halftone (2 prompts)": spec_of("halftone", prompts=["a photo of a cup", "a photo of a car"]),
        "halftone (3 pairs, 1 seed)": rendered(pairs=3) | {"seeds": [7]},
        "halftone (2 other seeds)": spec_of("halftone", seeds=[5, 6]),
        "halftone (version 9)": spec_of("halftone", version=9),
    }
    cells = [record("one", spec) for spec in cases.values()]
    assert list(variants.labels(cells).values()) == list(cases)
    assert frames.frame(cells).dataset.tolist() == list(cases)


def test_the_same_files_described_otherwise_are_told_apart_in_words(tmp_path):
    spec = pictures(tmp_path / "cats", 10)
    cells = [record("one", spec | {"style_words": words}) for words in ("in ink style", "in blue style")]
    assert list(variants.labels(cells).values()) == [
        f"folder (plain, style words 'in {colour} style', other controls)" for colour in ("ink", "blue")
    ]


def test_contents_that_no_word_tells_apart_get_their_hash():
    cells = [record("one", spec_of("halftone"), content=c * 12) for c in "ab"]
    assert list(variants.labels(cells).values()) == ["halftone (content aaaaaa)", "halftone (content bbbbbb)"]
    prompts = [spec_of("halftone", prompts=[text]) for text in ("a photo of a cup", "a photo of a car")]
    found = frames.frame([record("one", spec) for spec in prompts])
    assert found.evaluation.nunique() == 2 and all(re.fullmatch(r"1 prompt, set \w{6}", x) for x in found.evaluation)


def test_old_records_without_today_s_keys_have_a_row(tmp_path):
    root = Path(shutil.copytree(OLD, tmp_path / "old"))
    found = frames.load(root)
    assert set(found.base) == {"halftone"} and set(found.evaluation) == {"1 prompt, 1 seed"}
    made = layouts.metrics(layouts.Source(found, frames.images(root)), ["clip_t"])
    assert len(made.rows) == 2
    bare = Record("bare", "done", None, {"method": {"name": "one"}, "dataset": "dots", "seed": 0})
    assert frames.frame([bare])[["dataset", "form", "evaluation"]].iloc[0].tolist() == ["dots", "default", "default"]


def test_the_last_word_of_a_label_chooses_too():
    table_ = frames.frame([record("one", spec_of("halftone")), record("one", rendered(pairs=3)), trial()])
    assert len(frames.where(table_, ["dataset=halftone"])) == 3
    assert len(frames.where(table_, ["form=3 pairs"])) == 1 == len(frames.where(table_, ["dataset=halftone (3 pairs)"]))
    assert len(frames.where(table_, ["evaluation!=default"])) == 1
    assert len(frames.where(table_, ["dataset=halftone (1 prompt, 1 seed)"])) == 1
    assert len(frames.where(table_, ["form=default,evaluation=default"])) == 1


# --- layouts that join datasets ---


def test_pooling_never_joins_forms(tmp_path):
    cells = [record(m, spec, seed, seed, content=f"{i}" * 12) for m in ("one", "two") for seed in range(2)
             for i, spec in enumerate((spec_of("halftone"), spec_of("ink"), rendered(pairs=3)))]  # fmt: skip
    source = layouts.Source(frames.frame(cells), pd.DataFrame(columns=["run_id", "strength", "prompt", "image_seed"]))
    rows = layouts.metrics(source, ["up_a"], pool=True).rows
    assert sorted((row.key["method"], row.key["form"], row.runs) for row in rows) == [
        (m, form, n) for m in ("one", "two") for form, n in (("3 pairs", 2), ("default", 4))
    ]
    styles = layouts.styles(source, ["up_a"])
    assert [column.name for column in styles.columns[:3]] == ["halftone", "ink", "all 2"] and len(styles.rows) == 4
    asked = comparisons.requested(source, {c.run_id: c.config for c in cells}, "up_a")
    pooled = asked.frame().query("dataset == 'all 2'")
    assert len(pooled) == 1 and pooled.n.iloc[0] == 4  # two styles x two seeds, without the three pairs


def test_galleries_have_the_labels_of_the_table(tmp_path):
    cells = [record("one", spec_of("halftone"), content="a" * 12), trial()]
    store = Store(tmp_path)
    for one in cells:
        folder = store.work(one.run_id) / "images" / "strength=1"
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "000-s0.png")
        store.publish(one)
    shown_ = galleries(list(store.records()), tmp_path, [])
    assert {gallery.dataset for gallery in shown_} == set(frames.load(tmp_path).dataset)


# --- hints ---


def hint(error, pattern):
    (found,) = re.findall(pattern, str(error.value))
    return found


@pytest.mark.parametrize("about", [{"versions": {"torch": "1"}}, {"weights": "x"}, {"reference": "other"}])
def test_each_hint_about_unlike_fingerprints_ends_the_refusal(about, tmp_path, capsys):
    cells = sweep()
    cells[-1].scores[0]["fingerprint"] |= about
    root = stored(tmp_path, cells)
    with pytest.raises(BenchError, match="unlike fingerprints") as error:
        table.main(["--results", str(root), "--metrics", "up_a"])
    assert "which measures them anew" not in str(error.value)  # no rerun would: the metric is the same
    out = shown(root, capsys, "--metrics", "up_a", "--where", hint(error, r"--where '([^']+)'"))
    assert out.count("\n") > 5 and " 2" in out
    assert "unlike numbers" in shown(root, capsys, "--metrics", "up_a", "--mix")


def test_a_rerun_is_advised_where_the_metric_has_a_new_version(tmp_path):
    cells = sweep()
    cells[-1].scores[0]["fingerprint"] |= {"metric": "up_a 2"}
    with pytest.raises(BenchError, match="which measures them anew"):
        table.main(["--results", str(stored(tmp_path, cells)), "--metrics", "up_a"])


def test_the_hint_of_a_column_of_several_networks_ends_the_refusal(tmp_path, capsys):
    cells = sweep()
    for one in cells:
        one.scores.append({**json.loads(json.dumps(one.scores[0])), "network": "other"})
    root = stored(tmp_path, cells)
    with pytest.raises(BenchError, match="several networks") as error:
        table.main(["--results", str(root), "--compare", "up_a"])
    for name in hint(error, r"name one of (.+)\.").split(", "):
        assert name in shown(root, capsys, "--compare", name)


def test_mixing_does_not_meet_several_values(tmp_path, capsys):
    root = stored(tmp_path, [*sweep(), trial()])
    assert "halftone" in shown(root, capsys, "--mix", "--compare", "up_a")
