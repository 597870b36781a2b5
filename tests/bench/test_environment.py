"""What the environment does is no result of a cell: every errno, at every place where a cell writes or reads."""

import errno
import os
import subprocess
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from test_run import PAIR, composed

from bench import environment, files
from bench.errors import BenchError, Impossible, Unavailable
from bench.files import atomic_write
from bench.run import run
from bench.runs import report
from bench.steps.work import Work
from bench.store.record import Record, Store
from bench.store.stored_status import is_stored, line
from bench.sweeps.packs import run_pack

ERRNOS = sorted(environment.KNOWN)
NAMED = [errno.errorcode[number] for number in ERRNOS]
OWN = [errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL]  # what a cell or its user did


def raised(error, cause=None):
    try:
        raise error from cause
    except BaseException as found:
        return found


@pytest.mark.parametrize("number", ERRNOS, ids=NAMED)
def test_every_errno_is_one_sentence_however_deep_it_lies(number):
    root = OSError(number, os.strerror(number), "/somewhere/file")
    rust = SafetensorError(f"I/O error: failed (os error {number})")
    for error in (root, raised(BenchError("x"), root), raised(RuntimeError("x"), raised(ValueError("y"), root)), rust):
        told = str(environment.failure(error))
        assert os.strerror(number) in told and "type the same command again" in told and "\n" not in told
    with pytest.raises(Unavailable, match="/a/folder"), environment.using(Path("/a/folder"), 12):
        raise root


@pytest.mark.parametrize("number", OWN, ids=lambda number: errno.errorcode[number])
def test_an_error_of_the_cell_is_none_of_the_environment(number):
    assert environment.failure(OSError(number, "x", "/somewhere")) is None
    with pytest.raises(OSError), environment.using(Path("/a")):
        raise OSError(number, "x")


@pytest.mark.parametrize("error", [None, ValueError("x"), BenchError("x"), Impossible("x"), RuntimeError("os error 2")])
def test_other_errors_are_left_alone(error):
    assert environment.failure(error) is None


@pytest.mark.parametrize(
    "error", [ConnectionResetError("x"), TimeoutError("x"), urllib.error.URLError("no route"), ConnectionRefusedError()]
)
def test_a_network_that_does_not_answer_is_the_environment(error):
    assert isinstance(environment.failure(raised(BenchError("x"), error)), Unavailable)


@pytest.mark.parametrize("number", environment.FORBIDDEN, ids=errno.errorcode.get)
def test_a_forbidden_call_that_names_no_file_is_the_cells_own(number):
    """Such as os.setpriority in a method; a file that may not be read is a matter of the machine."""
    assert environment.failure(raised(RuntimeError("x"), OSError(number, os.strerror(number)))) is None
    told = str(environment.failure(raised(RuntimeError("x"), OSError(number, os.strerror(number), "/a/file"))))
    assert "/a/file cannot be used" in told


# --- cells ------------------------------------------------------------------------------------------------------------

PLACES = [
    "bench.training.log.TrainingLog.write",
    "bench.training.trainer._Run._save",
    "bench.adapters.bank.Bank.save",
    "bench.steps.sample.save_images",
    "bench.steps.score.atomic_write",
    "bench.sampling.grid.grid",
    "bench.store.record.atomic_write",
    "bench.store.record.replace_folder",
    "bench.steps.job.prior",
    "bench.data.loading.load",
]
AFTER_TRAINING = [place for place in PLACES if place.split(".")[1] in ("adapters", "sampling", "store")]
AFTER_TRAINING += [place for place in PLACES if place.startswith(("bench.steps.sample", "bench.steps.score"))]


def broken(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number), "/store/file")

    return fail


QUICK = ("bench.training.log.TrainingLog.write", "bench.steps.sample.save_images", "bench.store.record.atomic_write")


@pytest.mark.parametrize(
    "place",
    [pytest.param(place, marks=[] if place in QUICK else pytest.mark.slow, id=place[6:]) for place in PLACES],
)
def test_a_cell_that_the_environment_stops_stays_open_and_goes_on(tmp_path, monkeypatch, place):
    short = ["method.recipe.steps=2", "method.content_steps=1", "dataset.prompts=[a photo of a red tree]"]
    asked, number = composed(tmp_path, *PAIR, *short, "dataset.seeds=[0]"), ERRNOS[PLACES.index(place) % len(ERRNOS)]
    with monkeypatch.context() as patch:
        patch.setattr("bench.steps.work._dataset", _uncached)
        patch.setattr(place, broken(number))
        with pytest.raises(Unavailable):
            run(asked)
    assert not (tmp_path / asked.run_id).exists()
    if place in AFTER_TRAINING:  # its checkpoint is kept: no step is done again
        assert (tmp_path / ".work" / asked.run_id / "checkpoint.safetensors").is_file()
        monkeypatch.setattr("bench.training.trainer._descend", None)
    assert run(asked).status == "done"
    assert not (tmp_path / ".work" / asked.run_id).exists()


def _uncached(spec, resolution, content):
    import json

    from bench.data import loading

    return loading.load(json.loads(spec), resolution)


def test_in_a_pack_the_others_end(tmp_path, monkeypatch):
    """The environment stops one of two cells; the other has its record, and the error is raised at the end."""
    cells = [composed(tmp_path, "method=zero_shot", "dataset=blueprint", f"seed={seed}") for seed in (0, 1)]
    real = Work.publish

    def publish(work, record):
        if work.cell.seed == 0:
            broken(errno.ESTALE)()
        real(work, record)

    with monkeypatch.context() as patch:
        patch.setattr(Work, "publish", publish)
        with pytest.raises(BenchError):
            run_pack(cells, 2)
    assert [Store(tmp_path).read(cell.run_id) is None for cell in cells] == [True, False]
    assert {record.status for record in run_pack(cells, 2)} == {"done"}


@pytest.mark.parametrize("status", ["failed", "skipped"])
def test_a_stored_status_says_that_it_is_stored_when_and_what_repeats_it(status, capsys):
    record = Record("a-b-s0", status, "The loss became nan.", provenance={"ended": "2026-01-02T03:04:05+00:00"})
    again = {"failed": "mode=retry", "skipped": "mode=force"}[status]
    report(record, Path("x"), brief=False, stored=is_stored(record, record))
    told = capsys.readouterr().out
    assert "The loss became nan. (this is stored since 2026-01-02 03:04 UTC" in told and again in told
    assert not is_stored(record, None) and line(record, False) == f"{status}: a-b-s0: The loss became nan."


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ERRNOS, ids=NAMED)
def test_every_errno_ends_a_command_with_one_sentence(number):
    with (
        pytest.raises(SystemExit, match="^bench.x: .*type the same command again"),
        environment.one_sentence("bench.x"),
    ):
        raise OSError(number, os.strerror(number), "/store/file")


def test_a_bug_is_not_hidden():
    with pytest.raises(FileNotFoundError), environment.one_sentence("bench.x"):
        open("/no/such/file")


def test_a_reader_that_has_read_enough_ends_a_command_in_silence():
    code = "from bench.environment import one_sentence\nwith one_sentence('x'):\n    print('a\\n' * 100000)"
    said = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said.stdout.read(10)
    said.stdout.close()
    assert said.stderr.read() == b"" and said.wait() == 1
    said.stderr.close()


@pytest.mark.parametrize("number", ERRNOS, ids=NAMED)
def test_every_errno_leaves_the_old_file(tmp_path, monkeypatch, number):
    atomic_write(tmp_path / "file", b"old")
    monkeypatch.setattr(files, "write_through", broken(number))
    with pytest.raises(Unavailable):
        atomic_write(tmp_path / "file", np.zeros(10).tobytes())
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
