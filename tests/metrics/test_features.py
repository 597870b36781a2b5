import multiprocessing

import numpy as np
import pytest

from bench.data.image_files import load_image, save_images
from bench.data.images import pixel_key, stored
from metrics.features import FeatureStore, images_hash
from metrics.perceptual import distances


class Mean:
    """Counts the images it is shown; the feature of an image is its mean per channel."""

    def __init__(self, id="mean 1"):
        self.id, self.seen = id, 0

    def __call__(self, images):
        self.seen += len(images)
        return images.reshape(len(images), 3, -1).mean(axis=2).astype(np.float32)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)


def test_rows_follow_the_images_and_only_new_ones_are_computed(tmp_path, images):
    store, extractor = FeatureStore(tmp_path), Mean()
    first = store.features(images[:4], extractor)
    order = [5, 0, 3, 3, 4, 5]
    second = store.features(images[order], extractor)
    np.testing.assert_array_equal(first, Mean()(images[:4]))
    np.testing.assert_array_equal(second, Mean()(images[order]))
    assert extractor.seen == 6


def test_another_store_on_the_same_folder_computes_nothing(tmp_path, images):
    FeatureStore(tmp_path).features(images, Mean())
    extractor = Mean()
    np.testing.assert_array_equal(FeatureStore(tmp_path).features(images, extractor), Mean()(images))
    assert extractor.seen == 0


def test_what_another_store_writes_later_is_found(tmp_path, images):
    reader = FeatureStore(tmp_path)
    reader.features(images[:2], Mean())
    FeatureStore(tmp_path).features(images, Mean())
    extractor = Mean()
    reader.features(images, extractor)
    assert extractor.seen == 0


def test_another_extractor_id_shares_nothing(tmp_path, images):
    store, extractor = FeatureStore(tmp_path), Mean("mean 2")
    store.features(images, Mean())
    store.features(images, extractor)
    assert extractor.seen == 6


def test_the_key_sees_shape_and_every_pixel(images):
    changed = images[0].copy()
    changed[2, 7, 7] ^= 1
    keys = {pixel_key(images[0]), pixel_key(changed), pixel_key(images[0].reshape(3, 4, 16))}
    assert len(keys) == 3
    assert pixel_key(images[0].copy()) == pixel_key(np.asfortranarray(images[0]))
    assert images_hash(images) != images_hash(images[::-1])


@pytest.fixture
def files(tmp_path, images, monkeypatch):
    """The images as files of a finished cell, and the names of those that were decoded."""
    names, decoded = [f"{row:03d}-s0" for row in range(len(images))], []
    save_images(tmp_path / "images", images, names)

    def reading(path):
        decoded.append(path.stem)
        return load_image(path)

    monkeypatch.setattr("bench.data.images.load_image", reading)
    return lambda: stored(tmp_path / "images", names), decoded


def test_a_new_statistic_of_known_features_decodes_no_file(tmp_path, images, files):
    reopened, decoded = files
    first = FeatureStore(tmp_path / "store").features(reopened(), Mean())
    assert len(decoded) == len(images)
    decoded.clear()
    extractor = Mean()
    np.testing.assert_array_equal(FeatureStore(tmp_path / "store").features(reopened(), extractor), first)
    assert images_hash(reopened()) == images_hash(images)
    assert not decoded and extractor.seen == 0


def test_a_new_network_decodes_each_file_once_and_a_new_image_alone(tmp_path, images, files):
    reopened, decoded = files
    store = FeatureStore(tmp_path / "store")
    store.features(images[[0, 2, 3, 5]], Mean())
    reopened().keys  # noqa: B018
    decoded.clear()
    some = Mean()
    np.testing.assert_array_equal(store.features(reopened(), some), Mean()(images))
    assert sorted(decoded) == ["001-s0", "004-s0"] and some.seen == 2
    decoded.clear()
    opened = reopened()
    for name in ("mean 2", "mean 3"):  # one decode feeds them all
        np.testing.assert_array_equal(store.features(opened, Mean(name)), Mean()(images))
    assert len(decoded) == len(images)


def test_known_pairs_are_not_decoded(tmp_path, alex, files):
    reopened, decoded = files
    store, other = FeatureStore(tmp_path / "store"), np.full((6, 3, 8, 8), 100, np.uint8)
    first = distances(store, alex, reopened(), other)
    decoded.clear()
    np.testing.assert_array_equal(distances(store, alex, reopened(), other), first)
    assert not decoded and first.std() > 0
    np.testing.assert_array_equal(distances(store, alex, other, np.array(reopened())), first)  # LPIPS is symmetric


def test_floats_are_refused(tmp_path, images):
    with pytest.raises(TypeError, match="uint8"):
        FeatureStore(tmp_path).features(images / 255, Mean())


def test_features_that_are_not_finite_are_refused_and_not_stored(tmp_path, images):
    with pytest.raises(ValueError, match="not finite"):
        FeatureStore(tmp_path).lookup(["00" * 16], "broken", lambda rows: np.array([[np.nan]]))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_large_set_is_written_in_several_shards(tmp_path, monkeypatch, images):
    monkeypatch.setattr("metrics.features.SHARD", 4)
    FeatureStore(tmp_path).features(images, Mean())
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    np.testing.assert_array_equal(FeatureStore(tmp_path).features(images, Mean()), Mean()(images))


def _write(folder, start):
    images = np.random.default_rng(1).integers(0, 256, (40, 3, 4, 4), dtype=np.uint8)
    store = FeatureStore(folder)
    for row in range(start, 40, 2):
        store.features(images[max(0, row - 3) : row + 1], Mean())


def test_two_processes_write_the_same_items_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write, args=(tmp_path, start)) for start in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    images = np.random.default_rng(1).integers(0, 256, (40, 3, 4, 4), dtype=np.uint8)
    extractor = Mean()
    np.testing.assert_array_equal(FeatureStore(tmp_path).features(images, extractor), Mean()(images))
    assert extractor.seen == 0 and not list(tmp_path.rglob("*.tmp"))
