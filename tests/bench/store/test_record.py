"""Records survive SIGKILL, a full disk, broken files and a second process; no finished one is lost or read in half."""

import errno
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from bench import files
from bench.contracts import BenchError
from bench.data import image_files
from bench.data.image_files import save_images
from bench.data.images import stored
from bench.files import atomic_write
from bench.reading import MOST_NAMED
from bench.store.provenance import provenance
from bench.store.record import Record, Store, dumps, loads, read_record

ROOT = Path(__file__).parents[3]


def cell(run_id="one-dots-s0", **changes):
    scores = [{"strength": 3.0, "group": "a", "metric": "a", "value": 1.5, "network": None, "fingerprint": {"n": 4}}]
    config = {"method": {"name": "one"}, "seed": 0}
    return Record(run_id, **{"status": "done", "config": config, "cost": {"train_s": 2.0}, "scores": scores} | changes)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def child(code, *arguments, **options):
    """A second Python process running code that may import bench."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


# --- the ordinary way


def test_what_is_published_is_read_back(store):
    work = store.work("one-dots-s0")
    (work / "checkpoint.safetensors").write_bytes(b"state")
    (work / "checkpoints").mkdir()
    (work / "adapter.safetensors").write_bytes(b"weights")
    assert store.read("one-dots-s0") is None and not list(store.records())
    folder = store.publish(cell())
    assert store.read("one-dots-s0") == cell() and list(store.records()) == [cell()]
    assert sorted(path.name for path in folder.iterdir()) == ["adapter.safetensors", "config.yaml", "record.json"]
    assert not any((store.root / ".work").iterdir())


def test_numbers_of_numpy_and_torch_become_plain_and_nan_stays_missing(store):
    odd = cell(cost={"a": np.float32(0.5), "b": np.int64(3), "c": np.arange(2), "p": Path("x"), "d": math.inf})
    odd.scores[0]["value"] = np.float64("nan")
    text = dumps(odd)
    assert json.loads(text)["cost"] == {"a": 0.5, "b": 3, "c": [0, 1], "p": "x", "d": None} and "NaN" not in text
    assert math.isnan(loads(text).scores[0]["value"])


def test_a_failed_cell_is_replaced_and_a_finished_one_updated(store):
    store.publish(cell(status="failed", reason="the loss was NaN", config={}))
    (store.folder("one-dots-s0") / "leftover").write_text("")
    store.publish(cell())
    assert store.read("one-dots-s0").status == "done" and not (store.folder("one-dots-s0") / "leftover").exists()
    store.update(cell(notes=["a new metric"]))
    assert store.read("one-dots-s0").notes == ["a new metric"]
    with pytest.raises(BenchError, match="no finished cell to update"):
        store.update(cell("two-dots-s0"))


@pytest.mark.parametrize(
    "run_id", ["", ".", "..", "a/b", "a\\b", "../x", "a..b", ".work", "-x", "a b", "a\n", "x" * 201]
)
def test_a_run_id_is_a_plain_folder_name(store, run_id):
    for use in (store.work, store.read, store.folder, lambda run_id: cell(run_id)):
        with pytest.raises(BenchError, match="A run id is"):
            use(run_id)


def test_an_unknown_status_is_refused():
    with pytest.raises(BenchError, match="done, failed, skipped"):
        cell(status="finished")


# --- broken files


@pytest.mark.parametrize("text", ["", "{", dumps(cell())[:-20], "[]", '{"format": 99}', '{"a": 1}', "\x00\x01", "null"])
def test_a_record_that_is_not_whole_is_no_record(store, caplog, text):
    folder = store.publish(cell("broken"))
    store.publish(cell("whole"))
    (folder / "record.json").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert [record.run_id for record in store.records()] == ["whole"]
    assert len(caplog.records) == 1 and "broken" in caplog.records[0].getMessage()
    assert store.read("broken") is None
    store.publish(cell("broken"))
    assert store.read("broken") == cell("broken")


def test_a_record_with_one_changed_letter_is_no_record():
    """Each letter and digit in turn becomes another one; what can still be read is what was written."""
    text, read = dumps(cell()), []
    for i, letter in enumerate(text):
        if letter.isalnum():
            changed = text[:i] + ("7" if letter != "7" else "1") + text[i + 1 :]
            try:
                read.append(loads(changed))
            except BenchError:
                pass
    assert read == [] and loads(text) == cell()


def test_a_record_without_a_checksum_is_read_as_before():
    """Records of older versions have none. The order of the keys and the spaces do not count."""
    content = json.loads(dumps(cell()))
    assert loads(json.dumps(dict(reversed(content.items())))) == cell()
    del content["checksum"]
    assert loads(json.dumps(content)) == cell()
    content["cost"] = {"train_s": 1.0}
    assert loads(json.dumps(content)).cost == {"train_s": 1.0}


def test_folders_without_a_record_are_no_cells(store):
    (store.root / "tables").mkdir(parents=True)
    store.work("unfinished")
    assert list(store.records()) == []


# --- killed processes

PUBLISH = """
import sys
from bench.store.record import Record, Store
store = Store(sys.argv[1])
for i in range(int(sys.argv[2]), 10**6):
    name = f"cell-{i % 50}"
    work = store.work(name)
    (work / "adapter.safetensors").write_bytes(b"w" * 1000)
    store.publish(Record(name, "done", None, {"round": i}, {"fill": "x" * 20000}))
    print(i, flush=True)
"""


def test_killing_a_publisher_loses_nothing_finished_and_shows_nothing_half(store):
    """A child publishes and replaces 50 cells in a loop and is killed at random moments; what it reported is there."""
    rng, start, finished = np.random.default_rng(0), 0, {}
    for _ in range(6):
        process = child(PUBLISH, store.root, start)
        seen = [process.stdout.readline() for _ in range(rng.integers(5, 15))]
        time.sleep(rng.uniform(0, 0.01))
        os.kill(process.pid, signal.SIGKILL)
        reported = [int(line) for line in [*seen, *process.communicate()[0].splitlines()]]
        finished |= {i % 50: i for i in reported}
        for name, i in finished.items():
            found = store.read(f"cell-{name}")
            assert found is not None and found.config["round"] >= i and len(found.cost["fill"]) == 20000
            assert (store.folder(f"cell-{name}") / "adapter.safetensors").stat().st_size == 1000
        assert len(list(store.records())) in (len(finished), len(finished) + 1)
        start = max(finished.values()) + 1
    assert start >= 30


@pytest.mark.parametrize("after", ["os.replace", "os.rename"])
@pytest.mark.parametrize("calls", [1, 2, 3, 4])
def test_killed_between_any_two_steps_of_a_publication(store, after, calls):
    """The publication stops dead after the n-th rename: the record is whole, old or new, and the files fit it."""
    store.publish(cell(notes=["old"]))
    (store.folder("one-dots-s0") / "files").write_text("old")
    code = f"""
import os, sys
from bench.store.record import Record, Store, loads
real, left = {after}, [{calls}]
def dying(*arguments):
    real(*arguments)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), 9)
{after} = dying
store = Store(sys.argv[1])
(store.work("one-dots-s0") / "files").write_text("new")
store.publish(loads(sys.argv[2]))
"""
    child(code, store.root, dumps(cell(notes=["new"]))).communicate()
    found = store.read("one-dots-s0")
    assert found is not None and found.notes == [(store.folder("one-dots-s0") / "files").read_text()]
    if found.notes == ["new"]:  # the publication was completed: nothing is left of it
        assert [path.name for path in (store.root / ".work").iterdir()] == []
        assert not list(store.folder("one-dots-s0").glob(".*"))
    assert store.work("one-dots-s0").is_dir()


def test_the_work_of_a_killed_process_is_found_by_the_next(store):
    code = (
        "import os, sys; from bench.store.record import Store; work = Store(sys.argv[1]).work('x');"
        "(work / 'checkpoint.safetensors').write_bytes(b'step 7'); os.kill(os.getpid(), 9)"
    )
    child(code, store.root).communicate()
    assert (store.work("x") / "checkpoint.safetensors").read_bytes() == b"step 7"


# --- two processes

HOLD = "import sys; from bench.store.record import Store; "
HOLD += "Store(sys.argv[1]).work('x'); print('held', flush=True); input()"


def test_two_processes_never_work_on_one_cell(store):
    process = child(HOLD, store.root, stdin=subprocess.PIPE)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(BenchError, match=f"Cell x is being worked on by process {process.pid} on"):
        store.work("x")
    store.work("y")
    process.communicate("\n")
    assert store.work("x").is_dir() and store.work("x").is_dir()


def test_a_released_cell_is_free_for_another_store(store):
    other = Store(store.root)
    store.work("x")
    with pytest.raises(BenchError, match="being worked on"):
        other.work("x")
    store.release("x")
    store.release("x")
    assert other.work("x").is_dir()


# --- no space left


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path, monkeypatch):
    atomic_write(tmp_path / "file", b"old")
    for module in (files, image_files):
        monkeypatch.setattr(module, "write_through", no_space)
    with pytest.raises(BenchError, match=rf"No space left in {tmp_path}: 1,000 bytes had to be written"):
        atomic_write(tmp_path / "file", b"n" * 1000)
    with pytest.raises(BenchError, match="No space left in"):
        save_images(tmp_path / "images", np.zeros((1, 3, 8, 8), np.uint8), ["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_bytes() == b"old"


def test_a_publication_on_a_full_disk_keeps_the_work(store, monkeypatch):
    (store.work("one-dots-s0") / "adapter.safetensors").write_bytes(b"weights")
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_through", no_space)
        with pytest.raises(BenchError, match="No space left"):
            store.publish(cell())
    assert store.read("one-dots-s0") is None
    assert (store.publish(cell()) / "adapter.safetensors").read_bytes() == b"weights"


def test_a_real_limit_of_the_kernel_is_the_same_sentence(tmp_path):
    """RLIMIT_FSIZE stops the write in the kernel, as a full disk does."""
    code = (
        "import resource, sys; from bench.files import atomic_write;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); atomic_write(sys.argv[1], b'x' * 2000)"
    )
    error = child(code, tmp_path / "file").communicate()[1]
    assert error.splitlines()[-1].startswith("bench.errors.Unavailable: No space left in")
    assert not list(tmp_path.iterdir())


def test_other_errors_of_the_system_keep_their_name(tmp_path):
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "missing" / "file", b"")


# --- files


def test_images_come_back_without_loss_and_sets_are_whole(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16), dtype=np.uint8)
    names = [image_files.image_name(prompt, 1_000_000) for prompt in range(3)]
    folder = tmp_path / image_files.strength_folder(3.0)
    save_images(folder, images, names)
    assert folder.name == "strength=3" and (folder / "002-s1000000.png").is_file()
    assert (stored(folder, names[::-1])[:] == images[::-1]).all()
    with pytest.raises(ValueError):
        save_images(folder, images, names[:2])
    assert (stored(folder, names)[:] == images).all() and len(list(tmp_path.iterdir())) == 1
    save_images(folder, images[:1], names[:1])
    assert [path.name for path in folder.iterdir()] == ["000-s1000000.png"]


@pytest.mark.parametrize("keep", [0, 50, 300])
def test_a_truncated_or_missing_image_is_named(tmp_path, keep):
    save_images(tmp_path / "s", np.random.default_rng(0).integers(0, 256, (1, 3, 16, 16), dtype=np.uint8), ["a"])
    data = (tmp_path / "s" / "a.png").read_bytes()
    (tmp_path / "s" / "a.png").write_bytes(data[:keep])
    for name in ("a", "b"):
        with pytest.raises(BenchError, match=f"The image .*{name}.png cannot be read"):
            stored(tmp_path / "s", [name])[:]


# --- provenance


def test_provenance_names_code_versions_machine_and_hashes():
    started = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    found = provenance("d1", "w1", started)
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert found["commit"] == (git.stdout.strip() or None)
    assert (found["diff_hash"] is None) == (not found["dirty"])
    assert found["versions"]["numpy"] == np.__version__ and found["started"] == "2026-01-02T03:04:05+00:00"
    assert (found["dataset_hash"], found["weights_hash"]) == ("d1", "w1")
    assert found["cores"] >= 1 and found["cpu"] and found["python"].startswith("3.")
    assert datetime.fromisoformat(found["ended"]) > started


def test_records_need_no_torch_and_no_git(tmp_path):
    code = (
        "import sys; from datetime import UTC, datetime; from bench.store.provenance import provenance;"
        "print(provenance('', '', datetime.now(UTC))['commit']); assert 'torch' not in sys.modules"
    )
    environment = {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    assert child(code, env=environment).communicate()[0] == "None\n"


def test_of_very_many_damaged_records_the_first_are_named(tmp_path, caplog):
    for k in range(50):
        (tmp_path / f"{k:02d}").mkdir()
        (tmp_path / f"{k:02d}" / "record.json").write_text("{")
        assert read_record(tmp_path / f"{k:02d}" / "record.json") is None
    assert len(caplog.messages) == MOST_NAMED + 1
    assert "19/record.json was left out: it is not whole JSON" in caplog.messages[-2]
    assert caplog.messages[-1] == f"More files of {tmp_path} were left out; they are not named."
