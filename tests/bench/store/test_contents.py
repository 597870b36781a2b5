"""Every part of a finished cell that is used again is as its record says, or nothing is drawn or scored with it."""

import json
import shutil

import pytest
from test_run import PAIR, composed, values

from bench.contracts import BenchError
from bench.run import run
from bench.steps.reopen import reopen
from bench.store.contents import KEY, check, contents
from bench.store.record import Store, dumps

MORE = "strength=[3,1]"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("finished")
    record = run(composed(root, *PAIR))
    assert record.status == "done", record.reason
    return root


@pytest.fixture
def results(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "results")
    return tmp_path / "results"


def folder(results):
    (found,) = results.glob("pair-*")
    return found


def test_the_record_lists_what_the_cell_holds(finished):
    (record,) = Store(finished).records()
    assert set(record.config[KEY]) == {
        "adapters/content.safetensors", "adapters/style.safetensors", "images/strength=3", "per_image.csv",
    }  # fmt: skip
    assert record.config[KEY] == contents(folder(finished))
    for path in record.config[KEY]:
        check(folder(finished), record.config, path)


def emptied(path):
    path.write_bytes(b"")


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def gone(path):
    path.unlink()


def swapped(path):
    """Another adapter that is whole."""
    other = next(file for file in sorted(path.parent.iterdir()) if file != path)
    path.write_bytes(other.read_bytes())


HARMS = [(harm, True) for harm in (gone, emptied, flipped, swapped)] + [(gone, False), (emptied, False)]


@pytest.mark.parametrize("harm, recorded", HARMS)
@pytest.mark.parametrize("name", ["style", "content"])
def test_a_strength_is_not_drawn_with_another_adapter(results, name, harm, recorded, monkeypatch):
    """Also of a record of an older version that lists nothing, where names and shapes tell it."""
    if not recorded:
        forget(results)
    before = (folder(results) / "record.json").read_bytes()
    harm(folder(results) / "adapters" / f"{name}.safetensors")
    monkeypatch.setattr("bench.steps.sample.drawn", lambda *args: pytest.fail("images were drawn"))
    with pytest.raises(BenchError, match=f"{name}.safetensors .*(put it back|stage it again)"):
        run(composed(results, *PAIR, MORE))
    assert (folder(results) / "record.json").read_bytes() == before
    with pytest.raises(BenchError, match=f"{name}.safetensors"):
        _ = reopen(folder(results)).bank


def forget(results):
    """Make the record one of a version that listed no files."""
    store = Store(results)
    (record,) = store.records()
    del record.config[KEY]
    (folder(results) / "record.json").write_text(dumps(record))


def test_no_adapters_at_all_is_not_the_baseline(results):
    forget(results)
    shutil.rmtree(folder(results) / "adapters")
    with pytest.raises(BenchError, match="is missing; put it back or run the cell again with mode=force"):
        run(composed(results, *PAIR, MORE))


@pytest.mark.parametrize("harm", [gone, flipped, swapped])
def test_images_are_not_scored_when_they_changed(results, harm):
    harm(folder(results) / "images" / "strength=3" / "000-s0.png")
    with pytest.raises(BenchError, match="strength=3 is not as it was when the cell was recorded"):
        run(composed(results, *PAIR, "+metrics.again=${metrics.clip_score}"))


def test_images_that_were_deleted_are_drawn_again_from_the_adapter(results):
    (before,) = Store(results).records()
    shutil.rmtree(folder(results) / "images" / "strength=3")
    after = run(composed(results, *PAIR, "+metrics.again=${metrics.clip_score}"))
    assert after.config[KEY] == before.config[KEY]


def test_values_per_image_are_not_lost(results):
    (folder(results) / "per_image.csv").unlink()
    with pytest.raises(BenchError, match="per_image.csv is missing"):
        run(composed(results, *PAIR, MORE))


def test_what_is_added_is_listed_and_what_was_known_stays(results):
    (before,) = Store(results).records()
    after = run(composed(results, *PAIR, MORE))
    assert set(values(after, 1.0)) == set(values(before))
    assert set(after.config[KEY]) - set(before.config[KEY]) == {"images/strength=1"}
    assert {key: after.config[KEY][key] for key in before.config[KEY]} == before.config[KEY]
    stored = json.loads((folder(results) / "record.json").read_text())
    assert stored["config"][KEY] == after.config[KEY] == contents(folder(results))
    flipped(folder(results) / "images" / "strength=1" / "001-s1.png")
    with pytest.raises(BenchError, match="strength=1 is not as it was"):
        run(composed(results, *PAIR, MORE, "+metrics.again=${metrics.clip_score}"))
