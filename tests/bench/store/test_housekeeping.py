"""Cells that leave a store or come into it: asked first, checked, and never while a process works on them."""

import json

import numpy as np
import pytest

from bench import merge, rm
from bench.contracts import BenchError
from bench.data.image_files import save_images
from bench.store import contents
from bench.store.record import Record, Store


def publish(root, run_id, method="pair", status="done", value=1.0):
    store = Store(root)
    folder = store.work(run_id)
    save_images(folder / "images" / "strength=1", np.full((2, 3, 4, 4), int(value), np.uint8), ["000-s0", "001-s0"])
    (folder / "adapters").mkdir()
    (folder / "adapters" / "style.safetensors").write_bytes(run_id.encode())
    config = {"method": {"name": method}, "dataset": {"name": "d"}, "backbone": {"name": "mini"}, "seed": 0}
    scores = [{"metric": "clip_t", "value": value, "strength": 1.0}]
    config |= {"scored": [], contents.KEY: contents.contents(folder)}
    return store.publish(Record(run_id, status, None if status == "done" else "why", config, scores=scores))


@pytest.fixture
def root(tmp_path):
    for run_id, method, status in (("a", "pair", "done"), ("b", "slider", "done"), ("c", "slider", "failed")):
        publish(tmp_path / "results", run_id, method, status)
    return tmp_path / "results"


def cells(root):
    return sorted(path.parent.name for path in root.glob("*/record.json"))


def files(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# --- rm


def answer(monkeypatch, text):
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or text)
    return asked


def test_it_lists_and_asks_and_deletes_after_a_yes_alone(root, monkeypatch, capsys):
    words = ["--results", str(root), "--where", "method=slider"]
    for text in ("", "n", "what"):
        assert answer(monkeypatch, text) is not None and rm.main(words) == 0
        assert cells(root) == ["a", "b", "c"]
    assert "b  done\nc  failed\n" in capsys.readouterr().out
    asked = answer(monkeypatch, "y")
    assert rm.main(words) == 0 and asked == ["Delete 2 cells? [y/N] "]
    assert cells(root) == ["a"] and not list((root / ".work").glob(".old-*"))


def test_yes_does_not_ask_and_several_conditions_must_all_hold(root, monkeypatch):
    asked = answer(monkeypatch, "n")
    rm.main(["--results", str(root), "--where", "method=slider", "status=failed", "--yes"])
    assert cells(root) == ["a", "b"] and not asked
    assert rm.main(["--results", str(root), "--where", "method=none", "--yes"]) == 0 and cells(root) == ["a", "b"]


def test_a_cell_that_is_worked_on_stays(root, capsys):
    lease = Store(root).reserve("b", 60)
    try:
        from bench.store import leases

        leases._reserved.pop(lease.path)  # as if another process held it
        assert rm.main(["--results", str(root), "--where", "method=slider", "--yes"]) == 1
    finally:
        lease.release()
    assert cells(root) == ["a", "b"] and "is being worked on by" in capsys.readouterr().err
    assert rm.main(["--results", str(root), "--where", "method=slider", "--yes"]) == 0 and cells(root) == ["a"]


def test_bad_input_of_rm(root, monkeypatch):
    with pytest.raises(BenchError, match="--where takes column=value"):
        rm.main(["--results", str(root), "--where", "colour=red"])
    with pytest.raises(SystemExit):
        rm.main(["--results", str(root)])

    def nobody(question):
        raise EOFError

    monkeypatch.setattr("builtins.input", nobody)
    with pytest.raises(BenchError, match="type --yes"):
        rm.main(["--results", str(root), "--where", "method=slider"])


# --- merge


def merging(root, other, *more):
    return merge.main([str(other), "--results", str(root), *more])


def test_cells_come_in_whole_and_once(root, tmp_path, capsys):
    new = publish(tmp_path / "other", "new")
    publish(tmp_path / "other", "a")
    assert merging(root, tmp_path / "other") == 0
    assert capsys.readouterr().out.startswith("1 taken in, 1 here already, 0 refused")
    assert cells(root) == ["a", "b", "c", "new"] and files(root / "new") == files(new)
    assert merging(root, tmp_path / "other") == 0 and capsys.readouterr().out.startswith("0 taken in, 2 here already")
    assert not list((root / ".work").glob(".merge-*")) and not list((root / ".work").glob(".*.lease"))


def test_one_run_id_with_other_content_is_kept_and_named(root, tmp_path, capsys):
    before = files(root)
    publish(tmp_path / "other", "a", value=2.0)
    publish(tmp_path / "other", "z")
    assert merging(root, tmp_path / "other") == 1
    assert "a is in" in capsys.readouterr().err
    assert {path: data for path, data in files(root).items() if path in before and path.parts[0] == "a"} == {
        path: data for path, data in before.items() if path.parts[0] == "a"
    }
    assert "z" in cells(root)


def damage(folder, how):
    if how == "changed":
        (folder / "adapters" / "style.safetensors").write_bytes(b"other")
    elif how == "missing":
        (folder / "images" / "strength=1" / "000-s0.png").unlink()
    elif how == "cut":
        (folder / "record.json").write_text((folder / "record.json").read_text()[:50])
    else:
        record = json.loads((folder / "record.json").read_text())
        (folder / "record.json").write_text(json.dumps(record | {"run_id": "other"}))


@pytest.mark.parametrize("how", ["changed", "missing", "cut", "renamed"])
def test_what_is_not_whole_stays_out(how, root, tmp_path, capsys):
    damage(publish(tmp_path / "other", "new"), how)
    assert merging(root, tmp_path / "other") == 1 and "0 taken in, 0 here already, 1 refused" in capsys.readouterr().out
    assert cells(root) == ["a", "b", "c"]


def test_images_of_backbones_come_in_where_there_are_none(root, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    publish(tmp_path / "other", "new")
    for folder, level in (("cache", 1), ("other-cache", 2)):
        save_images(tmp_path / folder / "baseline" / "x", np.full((1, 3, 4, 4), level, np.uint8), ["000-s0"])
    save_images(tmp_path / "other-cache" / "baseline" / "y", np.full((1, 3, 4, 4), 3, np.uint8), ["000-s0"])
    ours = files(tmp_path / "cache" / "baseline" / "x")
    assert merging(root, tmp_path / "other", "--cache", str(tmp_path / "other-cache")) == 0
    assert files(tmp_path / "cache" / "baseline" / "x") == ours
    assert files(tmp_path / "cache" / "baseline" / "y") == files(tmp_path / "other-cache" / "baseline" / "y")


@pytest.mark.parametrize(("other", "said"), [("none", "no folder"), ("results", "store itself"), ("", "no finished")])
def test_bad_input_of_merge(other, said, root, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchError, match=said):
        merging(root, tmp_path / (other or "empty"))
