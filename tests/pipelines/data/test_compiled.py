"""The compiled decoder: boxes decoded by themselves are bit for bit what whole pictures hold."""

import concurrent.futures
import ctypes
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.data import compiled, decoders, loader, turbojpeg
from pipelines.data.beton import read_table
from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import prepare
from pipelines.errors import UserError

from .conftest import jpeg, photo

_FAST_DCT = 2048
_GUARD = 64


def _region(data, size, box, denominator=1):
    """(code, the box's pixels) of a JPEG of `size` (width, height); box: left, top, w, h."""
    function = compiled.row_decoder().tokenpool_decode_region
    kinds = [ctypes.c_char_p, ctypes.c_uint64, *[ctypes.c_uint32] * 7, *[ctypes.c_void_p] * 2]
    function.argtypes, function.restype = kinds, ctypes.c_int
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


@pytest.mark.parametrize("flip", [False, True])
def test_crops_of_the_size_asked_for_are_the_whole_pictures_pixels(tmp_path, flip):
    """Through the loop over a batch: libjpeg's crops and FFCV's whole pictures are one."""
    for i, kind in enumerate(KINDS):
        folder = tmp_path / "source" / "train" / ("first" if i < 3 else "second")
        folder.mkdir(parents=True, exist_ok=True)
        options = dict(kind)
        image = photo(i, 90, 70).convert("L") if options.pop("grey", False) else photo(i, 90, 70)
        (folder / f"{i}.jpg").write_bytes(jpeg(image, **options))
    prepare(str(tmp_path / "source"), tmp_path / "out", PrepareOptions(val=0, minival=0, workers=1))
    table = read_table(tmp_path / "out" / "train.beton")
    decoder, data = decoders.FfcvDecoder(table), np.fromfile(table.path, np.uint8)
    indices, flips = np.arange(len(KINDS)), np.full(len(KINDS), flip)
    for top, left, height, width in (
        (0, 0, 70, 90),
        (33, 0, 21, 90),
        (0, 41, 70, 7),
        (9, 17, 8, 50),
    ):
        boxes = np.array([[top, left, height, width]] * len(KINDS))
        out = np.empty((len(KINDS), height, width, 3), np.uint8)
        decoder.decode(decoders.Crops(indices, boxes, flips), out, 0, len(KINDS))
        for i in indices:
            begin = table.pointer[i]
            blob = data[begin : begin + table.size[i]].tobytes()
            whole = turbojpeg.decode(blob, 90, 70, flags=_FAST_DCT)
            cut = whole[top : top + height, left : left + width]
            np.testing.assert_array_equal(out[i], cut[:, ::-1] if flip else cut)


@given(
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    out=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 2**32 - 1),
    beyond=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_any_box_of_any_raw_picture_to_any_size(width, height, out, seed, beyond):
    """Against Pillow's own resampling, to a level; nothing beside the result is touched."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (height, width, 3), np.uint8)
    columns, rows = int(rng.integers(1, width + 1)), int(rng.integers(1, height + 1))
    left, top = int(rng.integers(width - columns + 1)), int(rng.integers(height - rows + 1))
    flip, size = bool(rng.integers(2)), out[0] * out[1] * 3
    result = np.full(size + 2 * _GUARD, 7, np.uint8)
    numbers = [np.array([value], np.int64) for value in (0, picture.size, height, width)]
    mode, mirrored = np.array([1], np.uint8), np.array([flip], np.uint8)
    box, status = np.array([top, left, rows, columns], np.float64), np.full(1, -1, np.int32)
    compiled.row_decoder().tokenpool_decode_rows(
        compiled.whole_decoder(), picture.ctypes.data, 1, *(n.ctypes.data for n in numbers),
        mode.ctypes.data, box.ctypes.data, beyond, mirrored.ctypes.data,
        result[_GUARD:].ctypes.data, out[1], out[0], None, status.ctypes.data,
    )  # fmt: skip
    assert status[0] == 0
    assert (result[:_GUARD] == 7).all() and (result[-_GUARD:] == 7).all()
    if beyond:
        corners = (left, top, left + columns, top + rows)
        image = Image.fromarray(picture).resize(out, Image.Resampling.BILINEAR, corners)
    else:
        cut = Image.fromarray(picture[top : top + rows, left : left + columns])
        image = cut.resize(out, Image.Resampling.BILINEAR)
    expected = np.asarray(image).astype(int)
    mine = result[_GUARD:-_GUARD].reshape(out[1], out[0], 3)
    assert np.abs((mine[:, ::-1] if flip else mine) - expected).max() <= 1


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


@pytest.fixture
def fresh():
    """Forget what this process has loaded, before and after."""
    compiled.row_decoder.cache_clear()
    yield
    compiled.row_decoder.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_without_a_compiler_the_remedy_is_named_and_auto_falls_back(
    digits, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    options = {"batch_size": 8, "train": False}
    with pytest.raises(UserError, match=r"no C compiler is installed\): run `make install`"):
        loader.make_loader(digits, "val", implementation="ffcv", **options)
    opened = loader.make_loader(digits, "val", implementation="auto", **options)
    assert isinstance(opened._decoder, decoders.TorchvisionDecoder)
    assert "decoding with torchvision, slower" in caplog.text
    opened.close()


@pytest.mark.usefixtures("fresh")
def test_without_headers_the_compilers_own_words_are_passed_on(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wrong = tmp_path / "wrong.c"
    wrong.write_text("#include <nowhere/jpeglib.h>\n")
    monkeypatch.setattr(compiled, "_SOURCE", wrong)
    with pytest.raises(UserError, match=r"nowhere/jpeglib\.h") as caught:
        compiled.row_decoder()
    assert "\n" not in str(caught.value) and caught.value.exit_code == 1
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_home_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(compiled.tempfile, "tempdir", str(tmp_path))
    path = compiled.built()
    assert path.is_file() and path.parent.stat().st_mode & 0o777 == 0o700
    assert compiled.built() == path
    path.parent.chmod(0o777)  # anybody could have put a library there
    with pytest.raises(OSError, match="somebody else"):
        compiled.built()


def test_workers_that_build_at_once_do_not_disturb_each_other(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        paths = {future.result() for future in [pool.submit(compiled.built) for _ in range(3)]}
    (path,) = paths
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    symbols = subprocess.run(["nm", "-D", path], capture_output=True, text=True, check=True).stdout
    assert "tokenpool_decode_region" in symbols
