"""Files that are written whole or not at all, also by several processes at once."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import ones

from bench.files import atomic_write, replacing
from bench.paths import ROOT


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    with replacing(path) as part:
        save_file({"x": ones(3)}, part)
        assert path.read_bytes() == b"old" and part.parent == tmp_path
    assert load_file(path)["x"].sum() == 3 and path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_writer_that_fails_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(error), replacing(path) as part:
        part.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_writers_at_once_have_names_of_their_own_and_one_of_them_is_read(tmp_path):
    texts = [bytes([65 + i]) * 100_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: atomic_write(tmp_path / "a", text), texts * 4))
    assert (tmp_path / "a").read_bytes() in texts and len(list(tmp_path.iterdir())) == 1
    with replacing(tmp_path / "a") as first, replacing(tmp_path / "a") as second:
        assert first != second


def test_nothing_is_written_through_a_link_that_lies_in_wait(tmp_path):
    """A link of a name that could be guessed was once followed."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"whole")
    for name in ("a.part", "a.tmp", ".a.tmp"):
        (tmp_path / name).symlink_to(victim)
    atomic_write(tmp_path / "a", b"new")
    assert victim.read_bytes() == b"whole" and (tmp_path / "a").read_bytes() == b"new"


def test_no_module_but_files_gives_an_unfinished_file_its_name():
    """All others use `replacing` or `atomic_write`. A download has a name that is known, so that it is resumed."""
    known = {"bench/files.py", "bench/data/download.py"}
    moves = re.compile(r"os\.replace\(|\.tmp\"|\.part\"")
    sources = [path for room in ("bench", "methods", "metrics") for path in Path(ROOT / room).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix() for path in sources if moves.search(path.read_text())}
    assert found <= known and "bench/files.py" in found
