"""The index beside the records against reading them all, whatever happened to them in between."""

import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from bench.analysis import frames, stored_rows
from bench.store import index
from bench.store.record import Record, Store, dumps


def record(name, value, seed=0):
    config = {"method": {"name": "one"}, "dataset": {"name": "dots"}, "backbone": {"name": "tiny"}, "seed": seed}
    score = {"strength": 1.0, "metric": "up_a", "value": value, "network": None, "higher_is_better": True}
    return Record(name, "done", config=config, scores=[score | {"fingerprint": {"metric": "up_a 1"}}])


def put(root: Path, name: str, value: float, seed: int = 0) -> None:
    (root / name).mkdir(exist_ok=True)
    (root / name / "record.json").write_text(dumps(record(name, value, seed)))
    (root / name / "per_image.csv").write_text(f"strength,prompt,seed,up_a\n1.0,a cat,{seed},{value}\n")


def assert_whole(root):
    """The same as without an index."""
    pd.testing.assert_frame_equal(
        frames.load(root), frames.frame(Store(root).records()), check_dtype=False, check_categorical=False
    )
    lines = [f"{root / name}/per_image.csv" for name in sorted(os.listdir(root)) if not name.startswith(".")]
    found = frames.images(root)
    assert found.up_a.tolist() == [pd.read_csv(line).up_a[0] for line in lines if os.path.exists(line)]


def test_new_changed_and_removed_records_are_noticed(tmp_path):
    for i in range(5):
        put(tmp_path, f"cell-{i}", i / 10)
    assert_whole(tmp_path)
    put(tmp_path, "cell-3", 7.5)
    put(tmp_path, "cell-9", 9.5)
    os.rename(tmp_path / "cell-1", tmp_path / ".gone")
    assert_whole(tmp_path)
    assert frames.load(tmp_path).set_index("run_id").value.to_dict() == {
        "cell-0": 0.0,
        "cell-2": 0.2,
        "cell-3": 7.5,
        "cell-4": 0.4,
        "cell-9": 9.5,
    }


def test_a_file_of_the_same_size_and_time_but_written_anew_is_noticed(tmp_path):
    put(tmp_path, "cell", 0.5)
    path = tmp_path / "cell" / "record.json"
    before = path.stat()
    assert frames.load(tmp_path).value.tolist() == [0.5]
    (tmp_path / "cell" / "new").write_text(path.read_text().replace("0.5", "0.7"))
    os.replace(tmp_path / "cell" / "new", path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and frames.load(tmp_path).value.tolist() == [0.7]


def test_what_is_known_is_not_read_again(tmp_path, monkeypatch):
    for i in range(4):
        put(tmp_path, f"cell-{i}", float(i))
    frames.load(tmp_path)
    put(tmp_path, "cell-2", 5.0)
    requested = []
    monkeypatch.setattr(stored_rows, "read_record", lambda path: requested.append(path.parent.name))
    frames.load(tmp_path)
    assert requested == ["cell-2"]


@pytest.mark.parametrize("damage", [b"", b"PAR1 no parquet", None])
def test_a_broken_or_older_index_is_made_again(tmp_path, damage, monkeypatch):
    put(tmp_path, "cell", 0.5)
    frames.load(tmp_path)
    if damage is None:
        monkeypatch.setattr(stored_rows, "VERSION", "2")
        made = stored_rows.frame
        monkeypatch.setattr(stored_rows, "frame", lambda *some: made(*some).assign(value=9.0))
        assert frames.load(tmp_path).value.tolist() == [9.0]
    else:
        (tmp_path / ".index" / "scores.parquet").write_bytes(damage)
        assert_whole(tmp_path)


def test_prompts_of_any_kind_come_back_as_they_were(tmp_path):
    for name, prompts in (("a", ["1", "2"]), ("b", ['a "cat", and\na dog', "null"])):
        put(tmp_path, name, 0.5)
        lines = pd.DataFrame({"strength": 1, "prompt": prompts, "seed": 0, f"only_{name}": [0.5, None]})
        lines.to_csv(tmp_path / name / "per_image.csv", index=False)
    found = frames.images(tmp_path)
    assert found.prompt.tolist() == ["1", "2", 'a "cat", and\na dog', "null"] and found.run_id.tolist() == list("aabb")
    assert found.only_a.notna().tolist() == [True, False, False, False] and found.only_b.tolist()[2] == 0.5


def test_a_record_that_cannot_be_read_is_told_each_time(tmp_path, caplog):
    put(tmp_path, "cell", 0.5)
    put(tmp_path, "torn", 0.5)
    (tmp_path / "torn" / "record.json").write_text("{")
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            assert frames.load(tmp_path).run_id.tolist() == ["cell"]
        assert "torn" in caplog.text
        caplog.clear()


def test_nothing_is_written_for_nothing(tmp_path):
    assert frames.load(tmp_path / "absent").empty and frames.images(tmp_path / "absent").empty
    assert not (tmp_path / "absent").exists()
    put(tmp_path, "cell", 0.5)
    frames.load(tmp_path)
    before = (tmp_path / ".index" / "scores.parquet").stat().st_mtime_ns
    frames.load(tmp_path)
    assert (tmp_path / ".index" / "scores.parquet").stat().st_mtime_ns == before


def test_a_folder_that_cannot_be_written_is_read_all_the_same(tmp_path):
    put(tmp_path, "cell", 0.5)
    (tmp_path / ".index").write_text("in the way")
    assert_whole(tmp_path)


def test_several_writers_lose_nothing(tmp_path):
    def write(who):
        for i in range(4):
            put(tmp_path, f"cell-{who}-{i}", who + i / 10, seed=i)
            assert f"cell-{who}-{i}" in set(frames.load(tmp_path).run_id)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    assert len(frames.load(tmp_path)) == 12
    assert_whole(tmp_path)
    assert sorted(path.name for path in (tmp_path / ".index").iterdir()) == ["images.parquet", "scores.parquet"]


def test_stamps_leave_hidden_folders_and_files_out(tmp_path):
    put(tmp_path, "cell", 0.5)
    shutil.copytree(tmp_path / "cell", tmp_path / ".work")
    (tmp_path / "LOG.md").write_text("x")
    (tmp_path / "tables").mkdir()
    assert list(index.stamps(tmp_path, "record.json")) == ["cell"]


def test_some_columns_and_metrics_are_those_of_the_whole(tmp_path):
    for i in range(4):
        put(tmp_path, f"cell-{i}", float(i), seed=i)
        made = record(f"cell-{i}", float(i), seed=i)
        made.scores += [dict(made.scores[0], metric=name, value=i + 0.5) for name in ("up_b", "up_c")]
        made.cost = {"train_s": 2.0 * i, "peak_gb": 1.0}
        (tmp_path / f"cell-{i}" / "record.json").write_text(dumps(made))
        lines = pd.DataFrame({"strength": [1.0], "prompt": "a", "seed": 0, "up_b [net]": 0.5, "up_c": 0.5})
        lines.to_csv(tmp_path / f"cell-{i}" / "per_image.csv", index=False)
    for known in (False, True):  # read now, and from the index
        some, whole = frames.load(tmp_path, ["up_b", "train_s"]), frames.load(tmp_path)
        assert some[some.metric == "up_b"].value.tolist() == whole[whole.metric == "up_b"].value.tolist()
        assert "peak_gb" not in some and some.drop_duplicates("run_id").train_s.tolist() == [0.0, 2.0, 4.0, 6.0], known
        assert set(some.run_id) == set(whole.run_id) and "up_c" not in set(some.metric)
        assert set(frames.images(tmp_path, ["up_b"])) == {"strength", "prompt", "image_seed", "run_id", "up_b [net]"}


@pytest.mark.parametrize(
    "odd",
    ['1.0,"a, cat",0,0.5\n', "1.0,a cat,0,0.5", "1.0,a cat,0,\n", "\n1.0,a cat,0,0.5\n", "1.0,b,0\n", "1,b,0,x\n"],
)
def test_files_read_together_are_as_read_alone(tmp_path, odd, caplog):
    for i in range(3):
        put(tmp_path, f"cell-{i}", float(i))
    (tmp_path / "cell-1" / "per_image.csv").write_text(f"strength,prompt,seed,up_a\n{odd}")
    folders = sorted(tmp_path.glob("cell-*"))
    together = stored_rows.per_image(folders).to_pandas()
    each = [stored_rows.per_image([folder]).to_pandas() for folder in folders]
    alone = pd.concat(each, ignore_index=True).astype({"up_a": float})
    pd.testing.assert_frame_equal(together, alone, check_dtype=False, check_categorical=False)


def test_an_index_in_whose_place_a_pipe_stands_makes_nobody_wait(tmp_path):
    put(tmp_path, "cell", 0.5)
    (tmp_path / ".index").mkdir()
    os.mkfifo(tmp_path / ".index" / "scores.parquet")
    assert frames.load(tmp_path).value.tolist() == [0.5]
