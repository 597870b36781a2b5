"""Staging over file:// and a local server: resumed, verified, atomic, and every failure a sentence."""

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from bench import fetch, paths
from bench.contracts import BenchError
from bench.data import dataset_yaml, download, files, schema, sources, weights
from bench.data.download import stage
from bench.data.files import File, inside, sha256
from bench.data.weights import weights_file
from bench.errors import Unavailable

CONTENT = np.random.default_rng(0).bytes(700_000)
HASH = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """An empty cache, an empty mirror, an empty torch cache."""
    (tmp_path / "mirror").mkdir()
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BENCH_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT; the path chooses the manner."""

    requested: list = []  # (path, Range header)
    breaks = 0  # connections still to be cut half way

    def do_GET(self):
        wanted = self.headers.get("Range")
        Handler.requested.append((self.path, wanted))
        if self.path == "/gone":
            return self.send_error(404)
        start = int(wanted[6:-1]) if wanted and self.path != "/unresumable" else 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        stop = len(CONTENT)
        if self.path == "/breaks" and Handler.breaks:
            Handler.breaks -= 1
            stop = start + (len(CONTENT) - start) // 2
        self.wfile.write(CONTENT[start:stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    Handler.requested, Handler.breaks = [], 0
    service = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{service.server_port}"
    service.shutdown()
    thread.join()
    service.server_close()


def left_over(file: File) -> list[str]:
    return sorted(path.name for path in file.cached().parent.glob("*"))


# --- fetching ----------------------------------------------------------------------------------------------------


def test_a_file_is_fetched_verified_and_alone_in_its_folder(server):
    file = File("a/x.bin", f"{server}/x", HASH, len(CONTENT))
    assert stage(file) == file.cached() == file.place()
    assert file.cached().read_bytes() == CONTENT
    assert left_over(file) == ["x.bin"]


def test_file_addresses_work(tmp_path):
    (tmp_path / "source").write_bytes(CONTENT)
    file = File("a/x.bin", (tmp_path / "source").as_uri(), HASH)
    assert stage(file).read_bytes() == CONTENT


def test_a_started_download_goes_on_where_it_stopped(server):
    file = File("a/x.bin", f"{server}/x", HASH)
    file.cached().parent.mkdir(parents=True)
    file.cached().with_name("x.bin.part").write_bytes(CONTENT[:300_000])
    assert stage(file).read_bytes() == CONTENT
    assert Handler.requested == [("/x", "bytes=300000-")]


def test_a_server_that_cannot_resume_is_read_from_the_start(server):
    file = File("a/x.bin", f"{server}/unresumable", HASH)
    file.cached().parent.mkdir(parents=True)
    file.cached().with_name("x.bin.part").write_bytes(b"something else" * 1000)
    assert stage(file).read_bytes() == CONTENT


def test_a_whole_download_that_was_killed_before_its_renaming_is_kept(server):
    file = File("a/x.bin", f"{server}/x", HASH)
    file.cached().parent.mkdir(parents=True)
    file.cached().with_name("x.bin.part").write_bytes(CONTENT)
    assert stage(file).read_bytes() == CONTENT
    assert len(Handler.requested) == 1


def test_what_is_left_over_from_a_longer_file_is_thrown_away(server):
    file = File("a/x.bin", f"{server}/x", HASH)
    file.cached().parent.mkdir(parents=True)
    file.cached().with_name("x.bin.part").write_bytes(CONTENT + b"more")
    assert stage(file, wait_s=0).read_bytes() == CONTENT


def test_broken_connections_are_resumed(server):
    Handler.breaks = 3
    file = File("a/x.bin", f"{server}/breaks", HASH)
    assert stage(file, wait_s=0).read_bytes() == CONTENT
    starts = [int(wanted[6:-1]) for _, wanted in Handler.requested[1:]]
    assert len(starts) == 3 and starts == sorted(starts) and starts[0] > 0


def test_a_connection_that_always_breaks_ends_in_a_sentence(server):
    Handler.breaks = 100
    with pytest.raises(BenchError, match=r"could not be fetched in 5 tries .* set BENCH_MIRROR"):
        stage(File("a/x.bin", f"{server}/breaks", HASH), wait_s=0)


def test_what_is_not_there_is_said_at_once(server, tmp_path):
    with pytest.raises(download.NotThere, match="is not there .HTTP 404."):
        stage(File("a/x.bin", f"{server}/gone", HASH))
    with pytest.raises(download.NotThere, match="is not there"):
        stage(File("a/x.bin", (tmp_path / "nothing").as_uri(), HASH))
    assert len(Handler.requested) == 1


def test_an_address_of_no_kind_is_a_sentence():
    with pytest.raises(BenchError, match="no address that can be fetched"):
        stage(File("a/x.bin", "somewhere/x", HASH))
    with pytest.raises(BenchError, match="not staged and has no address"):
        stage(File("a/x.bin"))


def test_wrong_checksum_of_a_download(server):
    file = File("a/x.bin", f"{server}/x", "0" * 64)
    with pytest.raises(BenchError, match=rf"wrong checksum: sha256 {HASH[:16]}... was found, 0{{16}}... is expected"):
        stage(file)
    assert left_over(file) == []


def test_wrong_checksum_of_a_staged_file(tmp_path):
    (tmp_path / "mirror" / "x.bin").write_bytes(b"damaged")
    with pytest.raises(BenchError, match=r"x.bin has the wrong checksum.*delete it"):
        stage(File("x.bin", "http://127.0.0.1:9/never-asked", HASH))


def test_the_mirror_comes_first(tmp_path, server):
    (tmp_path / "mirror" / "a").mkdir()
    (tmp_path / "mirror" / "a" / "x.bin").write_bytes(CONTENT)
    assert stage(File("a/x.bin", f"{server}/x", HASH)) == tmp_path / "mirror" / "a" / "x.bin"
    assert Handler.requested == []


def test_what_was_staged_serves_as_a_mirror_elsewhere(server, tmp_path, monkeypatch):
    file = File("a/x.bin", f"{server}/x", HASH)
    stage(file)
    monkeypatch.setenv("BENCH_MIRROR", str(paths.staged_folder()))
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "another"))
    assert stage(file).read_bytes() == CONTENT


def test_a_mirror_that_is_no_folder_is_named(monkeypatch):
    monkeypatch.setenv("BENCH_MIRROR", "/no/such/folder")
    with pytest.raises(BenchError, match="BENCH_MIRROR names /no/such/folder"):
        File("x.bin").place()


def test_an_unpublished_hash_is_recorded_on_first_fetch_and_held_to(server, capsys):
    file = File("a/x.bin", f"{server}/x")
    stage(file)
    assert files.checksums() == {"a/x.bin": HASH}
    assert "no published sha256; recorded" in capsys.readouterr().out
    file.cached().write_bytes(b"another file under the same name")
    with pytest.raises(BenchError, match="wrong checksum"):
        stage(file)
    file.cached().unlink()
    assert stage(file).read_bytes() == CONTENT
    assert len(files.checksums()) == 1


# --- space, links, paths -----------------------------------------------------------------------------------------


def test_no_space_is_said_before_writing(server, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BenchError, match=r"no space left: 700.0 kB are needed in .* and 1.0 kB are free"):
        stage(File("a/x.bin", f"{server}/x", HASH))


def test_no_space_while_writing_is_a_sentence_and_keeps_the_start(server, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    file = File("a/x.bin", f"{server}/x", HASH)
    with monkeypatch.context() as patch, pytest.raises(BenchError, match="no space left while writing .*BENCH_CACHE"):
        patch.setattr(os, "fsync", full)
        stage(file)
    assert stage(file).read_bytes() == CONTENT


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x", "", "a\\..\\x", "C:/x"])
def test_no_path_leaves_its_folder(path, tmp_path):
    with pytest.raises(BenchError, match="would leave its folder"):
        inside(tmp_path, path)
    with pytest.raises(BenchError, match="would leave its folder"):
        stage(File(path, "http://127.0.0.1:9/x"))


@pytest.mark.parametrize("path", [".", "./", "a/", "a\0b", "a\nb", "\ud800", "a\u202eb", "a\tb"])
def test_what_is_no_name_of_a_file_is_refused(path, tmp_path):
    for act in (lambda: inside(tmp_path, path), lambda: stage(File(path, "http://127.0.0.1:9/x"))):
        with pytest.raises(BenchError, match="is no name of a file") as error:
            act()
        assert "\n" not in str(error.value)


NAMES = [
    "a b.bin",
    "näme ☃.bin",
    "100%.bin",
    "a%20b.bin",
    "a#b?c&d.bin",
    "-x.bin",
    "'q'.bin",
    "sub dir/x.bin",
    " x ",
    "x.part",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_plain_name_is_fetched_over_both_kinds_of_address(name, tmp_path, server):
    (tmp_path / "source" / name).parent.mkdir(parents=True)
    (tmp_path / "source" / name).write_bytes(CONTENT)
    for folder, url in (("a", server), ("b", (tmp_path / "source").as_uri())):
        listed = {"folder": folder, "url": url, "sha256": {name: HASH}}
        file = sources.own_files({"files": listed})[name]
        assert stage(file) == file.place() == paths.staged_folder() / folder / name
        assert file.place().read_bytes() == CONTENT
    assert unquote(Handler.requested[-1][0]) == f"/{name}"


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", ""])
def test_a_weights_file_outside_its_folder_is_refused(name, monkeypatch):
    entry = {"file": name, "url": "http://127.0.0.1:9/x", "used_by": "x", "licence": "x", "loader": "x"}
    monkeypatch.setattr(weights, "weights", lambda: {"odd": entry})
    with pytest.raises(BenchError, match="would leave its folder"):
        weights_file("odd")


# --- several processes -------------------------------------------------------------------------------------------


def test_a_download_that_another_process_holds_is_left_alone(server):
    file = File("a/x.bin", f"{server}/x", HASH)
    part = file.cached().with_name("x.bin.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:1000])
    code = f"import fcntl; f = open({str(part)!r}, 'rb'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdout.readline()
    try:
        with pytest.raises(Unavailable, match="x.bin.part is being downloaded by another process; wait for it"):
            stage(file)
        assert part.read_bytes() == CONTENT[:1000] and Handler.requested == []
    finally:
        other.kill()
        other.communicate()
    assert stage(file).read_bytes() == CONTENT and Handler.requested == [("/x", "bytes=1000-")]


def test_many_processes_that_fetch_one_file_get_it_whole_or_a_sentence(server):
    file = File("a/x.bin", f"{server}/breaks")  # no published hash: the first one decides
    Handler.breaks = 2

    def fetched(_):
        try:
            return stage(file, wait_s=0).read_bytes() == CONTENT
        except Unavailable:
            return None

    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(fetched, range(16)))
    assert True in ended and False not in ended
    assert left_over(file) == ["x.bin"] and files.checksums() == {"a/x.bin": HASH}


def test_a_download_that_failed_at_once_leaves_nothing(server):
    file = File("a/x.bin", f"{server}/gone", HASH)
    with pytest.raises(BenchError, match="is not there"):
        stage(file)
    assert left_over(file) == []


def test_nothing_is_written_through_a_link(server, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    paths.staged_folder().mkdir(parents=True)
    (paths.staged_folder() / "a").symlink_to(outside)
    with pytest.raises(BenchError, match="written outside"):
        stage(File("a/x.bin", f"{server}/x", HASH))
    (paths.staged_folder() / "y.bin.part").symlink_to(outside / "victim")
    with pytest.raises(BenchError, match="written outside"):
        stage(File("y.bin", f"{server}/x", HASH))
    assert list(outside.iterdir()) == []


def test_digests_are_remembered_until_the_file_changes(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"one")
    assert sha256(path) == hashlib.sha256(b"one").hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", None)  # not called again
        assert sha256(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"three")
    assert sha256(path) == hashlib.sha256(b"three").hexdigest()


@pytest.mark.parametrize(
    "size, words",
    [(None, "size unknown"), ("4 GB", "4 GB"), (999, "999 B"), (1500, "1.5 kB"), (2_400_000_000, "2.4 GB")],
)
def test_sizes_are_written_for_people(size, words):
    assert files.human(size) == words


# --- weights -----------------------------------------------------------------------------------------------------


def test_the_registry_is_complete_and_its_prefixes_match_the_file_names():
    for id, entry in weights.weights().items():
        assert entry["licence"] and entry["used_by"] and entry["loader"], id
        assert ("hub" in entry) != ("file" in entry), id
        if "file" in entry:
            assert entry["url"].startswith("https://"), id
            assert {"sha256", "size"} <= set(entry), f"{id}: what is not known is null, and said so"
            assert re.fullmatch("[0-9a-f]{64}", entry["sha256"] or "0" * 64), id
            assert (weights.in_bytes(entry["size"]) or 1) > 0, id
        stem, _, digits = Path(entry.get("file", "")).stem.rpartition("-")
        if len(digits) == 8 and stem:  # torch writes the first digits into the name
            assert entry["sha256"].startswith(digits), id


@pytest.fixture
def registered(monkeypatch, server):
    table = {
        "net": {"file": "net.pth", "also": ["same.pth"], "url": f"{server}/x", "sha256": HASH[:8]},
        "hub": {"hub": "someone/net"},
        "owned": {"file": "owner/net/model.bin", "url": f"{server}/x", "sha256": None},
    }
    more = {"used_by": "a test", "licence": "MIT", "loader": "tests"}
    for module in (weights, fetch):
        monkeypatch.setattr(module, "weights", lambda: {id: {**more, **entry} for id, entry in table.items()})


@pytest.mark.parametrize(
    "place", ["mirror/weights/net.pth", "cache/mirror/weights/net.pth", "torch/hub/checkpoints/same.pth"]
)
def test_weights_are_found_in_all_three_places(registered, tmp_path, place):
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_bytes(CONTENT)
    assert weights_file("net") == tmp_path / place


def test_absent_weights_say_what_to_do(registered):
    with pytest.raises(
        BenchError, match=r"net.pth, size unknown, a test.* python -m bench.fetch weights net, .* copy it"
    ):
        weights_file("net")


def test_weights_with_the_wrong_checksum_are_refused(registered, tmp_path):
    (tmp_path / "mirror" / "weights").mkdir()
    (tmp_path / "mirror" / "weights" / "net.pth").write_bytes(b"torchvision's Inception is not the FID network")
    with pytest.raises(BenchError, match="wrong checksum"):
        weights_file("net")


def test_unknown_weights_and_hub_repositories_are_sentences(registered):
    with pytest.raises(BenchError, match="no weights are called 'nte'; known are hub, net, owned"):
        weights_file("nte")
    with pytest.raises(BenchError, match="hf download someone/net"):
        weights_file("hub")


def test_weights_are_found_in_the_hubs_own_cache(registered, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--owner--net" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "model.bin").write_bytes(CONTENT)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0")
    assert weights_file("owned") == snapshot / "model.bin"
    assert weights.weights_state("owned")[0] == "here"
    assert f"no published sha256, {HASH[:16]}... here" in weights.weights_state("owned")[1]


def test_a_file_of_the_same_tensors_under_another_name_is_not_held_to_the_hash(registered, tmp_path):
    place = tmp_path / "mirror" / "weights" / "same.pth"
    place.parent.mkdir()
    place.write_bytes(b"the same tensors, saved anew")
    assert weights_file("net") == place


def test_each_state_of_weights_is_told(registered, tmp_path, capsys):
    assert weights.weights_state("net")[0] == "absent" and weights.weights_state("hub")[0] == "hub"
    place = tmp_path / "mirror" / "weights" / "net.pth"
    place.parent.mkdir()
    place.write_bytes(b"another network")
    state, about = weights.weights_state("net")
    assert state == "wrong" and "wrong checksum" in about
    place.write_bytes(CONTENT)
    assert weights.weights_state("net") == ("here", f"{place} (sha256 as published)")
    fetch.show_weights()
    assert "here    a test; size unknown; MIT; read by tests" in capsys.readouterr().out


def test_the_name_of_a_set_of_metrics_stands_for_the_weights_that_it_names():
    assert {"clip_vit_b32_openai", "inception_fid", "lpips_alex_trunk", "dino_vits16"} <= set(
        fetch._named_weights("sd")
    )
    assert fetch._named_weights("csd_vit_l") == ["csd_vit_l"] == fetch._named_weights("csd_vit_l")
    assert set(fetch._named_weights("sd_style")) == {"csd_vit_l", "dreamsim_open_clip_vitb32"}
    assert fetch._named_weights("mini") == []


def test_files_that_are_cut_short_are_told_from_whole_ones(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "net.safetensors"
    save_file({"w": np.zeros(1000, np.float32)}, path)
    assert files.whole(path, "fetch it.") == path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BenchError, match="is truncated or no safetensors file .*; fetch it."):
        files.whole(path, "fetch it.")
    with pytest.raises(BenchError, match="does not exist; fetch it."):
        files.whole(tmp_path / "gone.bin", "fetch it.")


# --- command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path, monkeypatch, server):
    """A folder of datasets that holds one: `toy`, one file, on the local server."""
    folder = tmp_path / "datasets"
    (folder / "toy").mkdir(parents=True)
    (folder / "toy" / "dataset.yaml").write_text(
        "noun: toy\nprompts: [a toy]\nlicence: CC0\nsource: here\nreferences: all\n"
        f"files: {{folder: toy, url: {server}, sha256: {{x.jpg: {HASH}}}}}\n"
    )
    monkeypatch.setattr(schema, "FOLDER", folder)
    for cached in (schema.names, dataset_yaml.read):
        cached.cache_clear()
    yield
    for cached in (schema.names, dataset_yaml.read):
        cached.cache_clear()


def test_a_dataset_is_staged_with_its_licence_shown(dataset, capsys):
    assert fetch.main(["toy", "--check"]) == 1
    assert "toy/x.jpg is not on this machine" in capsys.readouterr().err
    assert fetch.main(["toy"]) == 0
    assert "toy: 1 files. Licence: CC0. Source: here" in capsys.readouterr().out
    assert fetch.main(["all", "--check"]) == 0
    assert len(Handler.requested) == 1


def test_one_failure_does_not_keep_the_others_from_being_staged(dataset, capsys):
    assert fetch.main(["nothing", "toy"]) == 1
    assert "no dataset is called 'nothing'; did you mean toy?" in capsys.readouterr().err
    assert sources.missing(schema.describe("toy")) is None


def test_weights_are_staged_checked_and_listed(registered, capsys):
    assert fetch.main(["weights"]) == 0 and "absent" in capsys.readouterr().out
    assert fetch.main(["weights", "net", "--check"]) == 1
    assert fetch.main(["weights", "all"]) == 0
    assert "hf download someone/net" in capsys.readouterr().out
    assert weights_file("net") == paths.staged_folder() / "weights" / "net.pth"
    assert fetch.main(["weights", "net", "--check"]) == 0


@pytest.mark.parametrize("size, fits", [("0.7 MB", True), (700_000, True), ("700 kB", True), ("0.5 MB", False)])
def test_weights_whose_size_is_listed_are_fetched_and_larger_ones_refused(registered, monkeypatch, capsys, size, fits):
    table = {id: {**entry, "size": size} for id, entry in weights.weights().items()}
    for module in (weights, fetch):
        monkeypatch.setattr(module, "weights", lambda: table)
    assert fetch.main(["weights", "net"]) == (0 if fits else 1)
    assert ("are expected; what came was thrown away" in capsys.readouterr().err) != fits


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ESTALE, errno.ENOTDIR])
@pytest.mark.parametrize("call", ["mkdir", "replace", "fsync"])
def test_what_the_file_system_does_to_a_download_is_one_sentence(registered, monkeypatch, capsys, number, call):
    def fails(*arguments, **_):
        raise OSError(number, os.strerror(number), *[str(one) for one in arguments[:1] if isinstance(one, (str, Path))])

    monkeypatch.setattr(os, call, fails)
    assert fetch.main(["weights", "net", "owned"]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bench.fetch: ")]
    assert [line.split(": ")[1] for line in lines] == ["net", "owned"]
    assert all(os.strerror(number) in line or "no space left" in line for line in lines)


def test_without_arguments_everything_is_listed(dataset, registered, capsys):
    assert fetch.main([]) == 0
    out = capsys.readouterr().out
    assert "toy" in out and "0 of 1 files here" in out and "someone/net" in out


def test_the_progress_of_a_download_is_shown(server, capsys):
    stage(File("a/x.bin", f"{server}/x", HASH))
    assert "x.bin: 100%" in capsys.readouterr().err


def test_errors_of_the_server_are_tried_again(monkeypatch, server):
    calls = []

    def busy(url, *_):
        calls.append(url)
        raise urllib.error.HTTPError(url, 503, "busy", {}, None)

    monkeypatch.setattr(download, "_attempt", busy)
    with pytest.raises(BenchError, match="could not be fetched in 5 tries"):
        stage(File("a/x.bin", f"{server}/x", HASH), wait_s=0)
    assert len(calls) == download.TRIES
