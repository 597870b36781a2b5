"""Kills and full disks at random operations on files of a store: rerunning the cell ends at the same bits, and leaves
the same files as an undisturbed run.

Each disturbed run is a forked process. An audit hook counts what it opens, makes, renames and removes below its store;
at a drawn count it kills itself with SIGKILL, or every later opening for writing fails with ENOSPC.
"""

import errno
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
from test_run import PAIR, composed

from bench.environment import failure
from bench.errors import BenchError
from bench.run import run

pytestmark = pytest.mark.slow  # about 30 s each on a busy machine
TINY = [
    *PAIR,
    "method.recipe.steps=4",
    "dataset.prompts=[a photo of a red tree]",
    "dataset.seeds=[0]",
    "sampler.steps=2",
]
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
VARYING = ("record.json", "per_image.csv", "resources.csv", "pixels.json")  # times, dates and processes
KILLS = range(200)
DISKS = range(20)


def listing(store):
    """Every file and folder of a store but the index, which readers make."""
    found = (path.relative_to(store) for path in store.rglob("*"))
    return {str(path) for path in found if not str(path).startswith(".index")}


def forked(results, act):
    """Run the cell in a child with `act(count, event, args)` called for each operation; its exit status."""
    child = os.fork()
    if child == 0:
        code, count = 1, 0

        def hook(event, args):
            nonlocal count
            if event in EVENTS and args and isinstance(args[0], (str, bytes, Path)) and str(results) in str(args[0]):
                count += 1
                act(count, event, args)

        try:
            sys.addaudithook(hook)
            run(composed(results, *TINY))
            code = 0
        except (BenchError, OSError) as error:  # as the command line tells them
            code = 28 if "No space left" in str(failure(error)) else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def writes(event, args):
    return event == "os.mkdir" or event == "open" and bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A store with the cell, and the number of operations that it took."""
    results, count = tmp_path_factory.mktemp("undisturbed") / "store", tmp_path_factory.mktemp("count") / "count"

    def act(number, event, args):
        handle = os.open(count, os.O_WRONLY | os.O_CREAT)
        os.write(handle, b"%d" % number)
        os.close(handle)

    assert forked(results, act) == 0
    return results, int(count.read_text())


def check_same(results, whole):
    record = run(composed(results, *TINY))
    assert record.status == "done"
    assert listing(results) == listing(whole)
    for path in sorted((whole / record.run_id).rglob("*")):
        if path.is_file() and path.name not in VARYING:
            assert (results / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("number", KILLS)
def test_a_killed_cell_ends_at_the_same_bits_and_leaves_nothing_behind(undisturbed, tmp_path, number):
    whole, operations = undisturbed
    at = random.Random(f"kill {number}").randint(1, operations * 9 // 10)  # later cells find some files in caches

    def act(count, event, args):
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    assert forked(tmp_path / "store", act) == -signal.SIGKILL
    check_same(tmp_path / "store", whole)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("number", DISKS)
def test_a_full_disk_leaves_the_cell_open_and_it_goes_on_to_the_same_bits(undisturbed, tmp_path, number):
    whole, operations = undisturbed
    at = random.Random(f"full {number}").randint(1, operations * 3 // 4)

    def act(count, event, args):
        if count >= at and writes(event, args):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))

    assert forked(tmp_path / "store", act) == 28
    check_same(tmp_path / "store", whole)
    shutil.rmtree(tmp_path)
