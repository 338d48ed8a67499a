"""Boxes decoded by themselves are bit for bit what cutting them out of the whole picture gives."""

import concurrent.futures
import ctypes
import stat
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.data import jpeg_region, turbojpeg
from pipelines.data.beton import read_table
from pipelines.data.decoders import FfcvDecoder
from pipelines.data.geometry import Geometry, random_resized_crops

from .conftest import jpeg, photo

_FAST_DCT = 2048
_GUARD = 64


def _region(data, size, box, denominator=1):
    """(code, the box's pixels) of a JPEG of `size` (width, height); box: left, top, w, h."""
    address = jpeg_region.region_function()
    assert address is not None, "a C compiler and jpeglib.h are part of `make install`"
    kinds = [ctypes.c_char_p, ctypes.c_uint64, *[ctypes.c_uint32] * 7, *[ctypes.c_void_p] * 2]
    function = ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(address)
    width, height = size
    scaled = -(-width // denominator) * -(-height // denominator) * 3
    out, region = np.full(scaled + _GUARD, 7, np.uint8), np.zeros(4, np.int64)
    left, top, columns, rows = box
    code = function(
        data, len(data), width, height, denominator, left, top, columns, rows,
        out.ctypes.data, region.ctypes.data,
    )  # fmt: skip
    assert (out[scaled:] == 7).all(), "wrote beyond the picture"
    if code:
        return code, None
    first, row, across, down = region
    pixels = out[: across * down * 3].reshape(down, across, 3)
    return 0, pixels[top - row : top - row + rows, left - first : left - first + columns]


KINDS = [
    {"subsampling": 0},
    {"subsampling": 1},
    {"subsampling": 2},
    {"subsampling": 2, "progressive": True},
    {"subsampling": 1, "restart_marker_blocks": 5},
    {"grey": True},
]


@given(
    kind=st.sampled_from(KINDS),
    width=st.integers(1, 150),
    height=st.integers(1, 110),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_any_box_of_any_kind_of_jpeg(kind, width, height, seed):
    rng = np.random.default_rng(seed)
    options = dict(kind)
    noise = rng.integers(0, 256, (max(height // 4, 1), max(width // 4, 1), 3), np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    if options.pop("grey", False):
        image = image.convert("L")
    data = jpeg(image, **options)
    whole = turbojpeg.decode(data, width, height, flags=_FAST_DCT)
    for _ in range(5):
        columns, rows = int(rng.integers(1, width + 1)), int(rng.integers(1, height + 1))
        left, top = int(rng.integers(width - columns + 1)), int(rng.integers(height - rows + 1))
        code, pixels = _region(data, (width, height), (left, top, columns, rows))
        assert code == 0
        np.testing.assert_array_equal(pixels, whole[top : top + rows, left : left + columns])


def test_batches_are_the_same_without_it(prepared_photos):
    table = read_table(prepared_photos / "train.beton")
    rng = np.random.default_rng(3)
    indices = np.arange(len(table))
    boxes = random_resized_crops(table.height, table.width, Geometry(), rng)
    flips = rng.random(len(table)) < 0.5
    outs = []
    for regions in (True, False):
        decoder = FfcvDecoder(table)
        assert decoder._regions
        decoder._regions = regions
        outs.append(np.empty((len(table), 40, 40, 3), np.uint8))
        decoder.decode(indices, boxes, flips, outs[-1], 0, len(table))
    np.testing.assert_array_equal(*outs)


@pytest.mark.parametrize("denominator", [2, 4, 8])
def test_fractions_of_the_size(denominator):
    data, size = jpeg(photo(3, 203, 157)), (203, 157)
    scaled = (-(-203 // denominator), -(-157 // denominator))
    whole = turbojpeg.decode(data, *scaled, flags=_FAST_DCT)  # scales to what fits
    code, pixels = _region(data, size, (0, 0, *scaled), denominator)
    assert code == 0
    np.testing.assert_array_equal(pixels, whole)
    left, top, columns, rows = scaled[0] // 3, scaled[1] // 4, scaled[0] // 2, scaled[1] // 2
    code, part = _region(data, size, (left, top, columns, rows), denominator)
    assert code == 0
    np.testing.assert_array_equal(part, whole[top : top + rows, left : left + columns])


def test_broken_files_give_a_code_and_no_crash():
    data = jpeg(photo(1, 90, 70))
    middle = len(data) * 2 // 3
    corrupt = data[:middle] + b"\xff\x00" * 30 + data[middle + 60 :]  # no Huffman code
    bottom, size = (10, 60, 20, 10), (90, 70)
    assert _region(data, size, bottom)[0] == 0
    assert _region(data[:middle], size, bottom)[0] != 0
    assert _region(corrupt, size, bottom)[0] != 0
    assert _region(data, (70, 90), (0, 0, 9, 9))[0] != 0
    assert _region(bytes(100), size, bottom)[0] != 0
    assert _region(b"", size, bottom)[0] != 0
    assert _region(jpeg(photo(1, 90, 70).convert("CMYK")), size, bottom)[0] != 0


def test_hostile_bytes_never_crash():
    data, rng = jpeg(photo(2, 90, 70)), np.random.default_rng(0)
    for _ in range(1500):
        hurt = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            hurt[at] = rng.integers(256)
        _region(bytes(hurt), (90, 70), (30, 20, 25, 30))


def test_without_a_compiler_whole_pictures_are_decoded(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(jpeg_region.shutil, "which", lambda name: None)
    assert jpeg_region.region_function.__wrapped__() is None
    assert "no C compiler" in caplog.text and "slower" in caplog.text


def test_without_headers_the_compilers_own_words_are_passed_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wrong = tmp_path / "wrong.c"
    wrong.write_text("#include <nowhere/jpeglib.h>\n")
    monkeypatch.setattr(jpeg_region, "_SOURCE", wrong)
    assert jpeg_region.region_function.__wrapped__() is None
    assert "nowhere/jpeglib.h" in caplog.text and len(caplog.text.strip().splitlines()) == 1
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert jpeg_region.region_function.__wrapped__() is None
    assert "slower" in caplog.text


def test_workers_that_build_at_once_do_not_disturb_each_other(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        paths = {future.result() for future in [pool.submit(jpeg_region._built) for _ in range(4)]}
    (path,) = paths
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert stat.S_ISREG(path.stat().st_mode)
    symbols = subprocess.run(["nm", "-D", path], capture_output=True, text=True, check=True).stdout
    assert "tokenpool_decode_region" in symbols
