"""Every pixel format is read as its range says, or refused in one sentence; so are large pictures."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.contracts import BenchError
from bench.data import decoding, pixel_limit

P = 8
RAMP = np.linspace(0, 1, P * P).reshape(P, P)  # brightness, dark to bright


def saved(path: Path, array: np.ndarray, **options) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def grey(path: Path) -> np.ndarray:
    read = decoding.read(path, P)
    assert (read[0] == read[1]).all() and (read[1] == read[2]).all()
    return read[0].astype(float) / 255


def tiff(path: Path, array: np.ndarray, bits: int, kind: int, photometric: int = 1) -> Path:
    """A TIFF written by hand: little-endian, one strip, no compression. kind: 1 unsigned, 2 signed, 3 float."""
    data = array.tobytes()
    tags = [(256, 4, P), (257, 4, P), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 4, P), (279, 4, len(data)), (339, 3, kind)]
    entries = b"".join(struct.pack("<HHII", tag, field, 1, value) for tag, field, value in tags)
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    path.write_bytes(head + data + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0))
    return path


def test_formats_of_more_than_eight_bits_are_scaled_by_their_range(tmp_path):
    sixteen = np.rint(RAMP * 65535).astype("<u2")
    signed = np.rint(RAMP * 32767).astype("<i2")
    pgm = tmp_path / "a.pgm"
    pgm.write_bytes(b"P5 %d %d 65535\n" % (P, P) + sixteen.astype(">u2").tobytes())
    pfm = tmp_path / "a.pfm"
    pfm.write_bytes(b"Pf\n%d %d\n-1.0\n" % (P, P) + RAMP[::-1].astype("<f4").tobytes())
    paths = [
        saved(tmp_path / "a.png", sixteen),
        saved(tmp_path / "a.jp2", sixteen, irreversible=False),
        saved(tmp_path / "a.tif", sixteen),
        saved(tmp_path / "float.tif", RAMP.astype(np.float32)),
        tiff(tmp_path / "signed.tif", signed, 16, 2),
        tiff(tmp_path / "white_is_zero.tif", 65535 - sixteen, 16, 1, photometric=0),
        pgm,
        pfm,
    ]
    for path in paths:
        assert np.abs(grey(path) - RAMP).max() <= 0.5 / 255 + 1e-4, path.name


def test_twelve_bits_of_a_tiff_are_scaled_by_4095(tmp_path):
    values = np.rint(RAMP * 4095).astype(int).reshape(-1, 2)
    packed = np.stack([values[:, 0] >> 4, (values[:, 0] & 15) << 4 | values[:, 1] >> 8, values[:, 1] & 255], -1)
    path = tiff(tmp_path / "a.tif", packed.astype(np.uint8), 12, 1)
    assert np.abs(grey(path) - RAMP).max() <= 0.5 / 255 + 1e-3


@pytest.mark.parametrize(
    "array, words",
    [
        (np.linspace(0, 255, P * P).reshape(P, P).astype(np.float32), "range from 0 to 255 and not from 0 to 1"),
        (np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32), "range from nan to nan"),
        (np.where(RAMP > 0.5, np.inf, RAMP).astype(np.float32), "to inf"),
        ((RAMP - 0.5).astype(np.float32), "range from -0.5 to 0.5"),
        (np.rint(RAMP * 200_000).astype(np.int32), "integers of 32 bits"),
        (np.rint(RAMP * 255).astype(np.int32), "integers of 32 bits"),
        (np.rint(RAMP * 200).astype(np.uint16), "reach 200 of 65535, which is black"),
    ],
)
def test_pixels_without_a_known_range_are_refused(tmp_path, array, words):
    path = saved(tmp_path / "a.tif", array)
    with pytest.raises(BenchError, match=f"a.tif cannot be used: its .*{words}.*; export it"):
        decoding.read(path, P)


def test_negative_signed_samples_are_refused(tmp_path):
    path = tiff(tmp_path / "a.tif", np.rint((RAMP - 0.5) * 1000).astype("<i2"), 16, 2)
    with pytest.raises(BenchError, match="range from -500 to 500"):
        decoding.read(path, P)


def test_black_and_white_are_themselves_in_every_depth(tmp_path):
    for value in (0, 1):
        for name, kind, largest in [("a.png", np.uint16, 65535), ("b.tif", np.float32, 1), ("c.png", np.uint8, 255)]:
            assert (grey(saved(tmp_path / name, np.full((P, P), value * largest, kind))) == value).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_mode_of_a_picture_becomes_rgb(mode):
    from bench.data.pixel_formats import to_rgb

    red = Image.new("RGB", (P, P), (200, 40, 40))
    picture = red.convert("RGBA").convert(mode) if mode == "RGBa" else _in_mode(red, mode)
    read = to_rgb(picture)
    expected = (200, 40, 40) if mode not in ("1", "L", "LA") else None
    assert read.mode == "RGB"
    if expected:
        assert np.abs(np.asarray(read).reshape(-1, 3).mean(0) - expected).max() <= 12


def _in_mode(red: Image.Image, mode: str) -> Image.Image:
    if mode == "LAB":
        from PIL import ImageCms

        profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
        return ImageCms.profileToProfile(red, *profiles, outputMode="LAB")
    if mode in ("P", "PA"):
        return red.convert("P", palette=Image.Palette.ADAPTIVE).convert(mode)
    return red.convert("L").convert(mode) if mode == "LA" else red.convert(mode)


def test_a_transparent_value_of_sixteen_bits_lies_on_white(tmp_path):
    values = np.full((P, P), 20_000, np.uint16)
    values[0] = 1000
    path = tmp_path / "a.png"
    Image.fromarray(values).save(path, transparency=1000)
    read = grey(path)
    assert (read[0] == 1).all() and np.abs(read[1:] - 20_000 / 65535).max() < 0.01


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_honoured_in_every_format(tmp_path, kind, orientation):
    array = np.zeros((32, 32, 3), np.uint8)
    array[:16, :16, 0] = array[16:, :16, 1] = array[:16, 16:, 2] = 255
    upright = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.transpose(1, 0, 2),
        6: np.rot90(array, -1),
        7: np.rot90(array.transpose(1, 0, 2), 2),
        8: np.rot90(array),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a.{kind}", array, exif=exif, **({"quality": 95} if kind != "png" else {}))
    read = decoding.read(path, 32).astype(int)
    assert np.abs(read - upright[orientation].transpose(2, 0, 1)).mean() < 12


def bomb(path: Path, side: int) -> Path:
    """A PNG of a few hundred bytes that describes side x side black pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress(bytes((side // 8 + 1) * 64))
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def test_a_picture_above_the_limit_is_refused_before_it_is_decoded(tmp_path):
    with pytest.raises(BenchError, match=r"bomb.png has more than 178,956,970 pixels .*BENCH_MAX_PIXELS"):
        decoding.decode(bomb(tmp_path / "bomb.png", 40_000))


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif", "gif", "bmp", "jp2", "avif"])
def test_the_limit_holds_in_every_format_and_can_be_moved_exactly(monkeypatch, tmp_path, kind):
    path = saved(tmp_path / f"a.{kind}", np.zeros((30, 31, 3), np.uint8))
    own = Image.MAX_IMAGE_PIXELS
    monkeypatch.setenv("BENCH_MAX_PIXELS", str(30 * 31 - 1))
    with pytest.raises(BenchError, match=r"more than 929 pixels"):
        decoding.decode(path)
    monkeypatch.setenv("BENCH_MAX_PIXELS", str(30 * 31))
    assert decoding.decode(path).size == (31, 30) and own == Image.MAX_IMAGE_PIXELS


def test_a_limit_above_pillow_s_own_is_possible(monkeypatch, tmp_path):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = saved(tmp_path / "a.png", np.zeros((30, 31, 3), np.uint8))
    assert decoding.decode(path).size == (31, 30)


@pytest.mark.parametrize("text", ["many", "-1", "0", "1e9"])
def test_a_limit_that_is_no_number_is_a_sentence(monkeypatch, text):
    monkeypatch.setenv("BENCH_MAX_PIXELS", text)
    with pytest.raises(BenchError, match=f"BENCH_MAX_PIXELS={text} was requested"):
        pixel_limit.max_pixels()


def test_a_format_that_runs_another_program_is_not_opened(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n%%EOF\n")
    with pytest.raises(BenchError, match="a.jpg cannot be read as an image"):
        decoding.decode(path)
    assert ".eps" not in pixel_limit.endings() and ".avif" in pixel_limit.endings()


def test_a_stored_image_that_is_a_bomb_is_unreadable_everywhere(tmp_path):
    from bench.data.image_files import load_image
    from bench.report.page import PIXELS, _width
    from bench.report.thumbnails import of_file

    path = bomb(tmp_path / "000-s0.png", 40_000)
    with pytest.raises(BenchError, match="cannot be read"):
        load_image(path)
    assert of_file(path, 64) is None and _width(path) == PIXELS
