"""Stored images against their arrays, and how often files are decoded."""

import json
import os
import threading
import time

import numpy as np
import pytest

from bench.contracts import BenchError
from bench.data import decoding, images, loading
from bench.data.image_files import load_image, save_images
from bench.data.images import StoredImages, image_keys, in_batches, pixel_key, stored

NAMES = [f"{row:03d}-s0" for row in range(7)]


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (7, 3, 8, 8), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, pixels):
    save_images(tmp_path / "strength=1", pixels, NAMES)
    return tmp_path / "strength=1"


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that were decoded, in the order in which that began."""
    names = []

    def reading(path):
        names.append(path.stem)
        return load_image(path)

    monkeypatch.setattr(images, "load_image", reading)
    return names


def test_rows_are_those_of_the_array_however_they_are_asked_for(folder, pixels):
    mask = np.arange(7) % 2 == 0
    for rows in (
        3,
        -1,
        slice(1, 5),
        slice(None, None, 2),
        [5, 0, 0],
        np.array([2, 6]),
        mask,
        (..., slice(None, None, -1)),
        (2, 0),
    ):
        np.testing.assert_array_equal(stored(folder, NAMES)[rows], pixels[rows])
    whole = stored(folder, NAMES)
    assert len(whole) == 7 and whole.shape == pixels.shape
    np.testing.assert_array_equal(np.asarray(whole), pixels)
    np.testing.assert_array_equal(np.stack(list(whole)), pixels)
    np.testing.assert_array_equal(np.asarray(whole, dtype=np.float64), pixels.astype(np.float64))
    with pytest.raises(IndexError):
        whole[7]


def test_known_files_are_recognised_without_decoding(folder, pixels, decoded):
    assert stored(folder, NAMES).keys == [pixel_key(image) for image in pixels] == image_keys(pixels)
    assert sorted(decoded) == NAMES
    decoded.clear()
    folder = folder.rename(folder.with_name("moved"))  # as an unfinished cell becomes a finished one
    assert stored(folder, NAMES).keys == image_keys(pixels)
    assert stored(folder, NAMES[2:4]).keys == image_keys(pixels[2:4])
    assert not decoded


def test_only_changed_and_new_files_are_decoded_again(folder, pixels, decoded):
    stored(folder, NAMES[:5]).keys  # noqa: B018
    decoded.clear()
    pixels[2] = 255 - pixels[2]
    save_images(folder.with_name("other"), pixels[2:3], NAMES[2:3])
    os.replace(folder.with_name("other") / f"{NAMES[2]}.png", folder / f"{NAMES[2]}.png")
    assert stored(folder, NAMES).keys == image_keys(pixels)
    assert sorted(decoded) == [NAMES[2], NAMES[5], NAMES[6]]


def test_a_file_of_the_same_size_that_was_written_later_is_another_one(folder, pixels, decoded):
    stored(folder, NAMES).keys  # noqa: B018
    decoded.clear()
    path = folder / f"{NAMES[1]}.png"
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert stored(folder, NAMES).keys == image_keys(pixels) and decoded == [NAMES[1]]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"000-s0.png": 3}'])
def test_a_damaged_memory_is_made_anew(folder, pixels, decoded, damage):
    (folder / images.KEYS).write_bytes(damage)
    assert stored(folder, NAMES).keys == image_keys(pixels) and len(decoded) == 7
    assert set(json.loads((folder / images.KEYS).read_bytes())) == {f"{name}.png" for name in NAMES}


def test_a_memory_that_cannot_be_written_costs_only_time(folder, pixels, monkeypatch):
    def full(path, data):
        raise BenchError("No space left.")

    monkeypatch.setattr(images, "atomic_write", full)
    assert stored(folder, NAMES).keys == image_keys(pixels)


def test_one_decode_feeds_every_reader_while_pixels_fit(folder, pixels, decoded, monkeypatch):
    several = stored(folder, NAMES)
    for reader in (lambda: several.keys, lambda: several[:], lambda: list(several), lambda: list(several.batches([1]))):
        reader()
    assert sorted(decoded) == NAMES
    decoded.clear()
    monkeypatch.setattr(images, "KEEP_BYTES", 3 * pixels[0].nbytes)
    few = stored(folder, NAMES)
    np.testing.assert_array_equal(few[:], pixels)
    np.testing.assert_array_equal(few[:], pixels)
    assert len(decoded) == 7 + 4


def test_decoding_runs_a_bounded_way_ahead(folder, decoded, monkeypatch):
    monkeypatch.setattr(images, "BATCH", 2)
    monkeypatch.setattr(images, "AHEAD", 1)
    batches = stored(folder, NAMES).batches(range(7))
    next(batches)
    deadline = time.monotonic() + 20
    while len(decoded) < 4 and time.monotonic() < deadline:  # the batch in hand and one more
        time.sleep(0.001)
    time.sleep(0.05)
    assert sorted(decoded) == NAMES[:4]
    assert [len(batch) for batch in batches] == [2, 2, 1] and sorted(decoded) == NAMES


def test_files_are_decoded_in_as_many_threads_as_the_job_has(folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    together = threading.Barrier(3, timeout=20)

    def read(path):
        if path.stem in NAMES[:3]:
            together.wait()  # passes when three threads are here at once
        return load_image(path)

    assert len(StoredImages([folder / f"{name}.png" for name in NAMES], read, folder / "known.json")[:]) == 7


def test_a_file_that_is_missing_or_broken_is_named(folder):
    (folder / f"{NAMES[3]}.png").write_bytes(b"no image")
    (folder / f"{NAMES[4]}.png").unlink()
    for row in (3, 4):
        with pytest.raises(BenchError, match=NAMES[row]):
            stored(folder, NAMES[row : row + 1]).keys  # noqa: B018
        with pytest.raises(BenchError, match=NAMES[row]):
            stored(folder, NAMES)[row]


def test_batches_of_arrays_and_of_files_are_alike(folder, pixels, monkeypatch):
    monkeypatch.setattr(images, "BATCH", 3)
    rows = [6, 1, 1, 4]
    for found, expected in zip(in_batches(stored(folder, NAMES), rows), in_batches(pixels, rows), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert [len(batch) for batch in in_batches(pixels, rows)] == [3, 1]


def test_a_reference_set_of_files_is_recognised_by_the_next_process(tmp_path, pixels, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    save_images(tmp_path / "set", pixels, NAMES)
    places = [tmp_path / "set" / f"{name}.png" for name in NAMES]
    first = loading.reference_images(places, 8)
    np.testing.assert_array_equal(first[:], pixels)
    keys = first.keys
    monkeypatch.setattr(decoding, "decode", lambda path: pytest.fail(f"{path} was decoded again"))
    assert loading.reference_images(places, 8).keys == keys == image_keys(pixels)
    with pytest.raises(pytest.fail.Exception):
        loading.reference_images(places, 4).keys  # noqa: B018
