"""Files that are not read are called by their name, with the way on, and grouped by it."""

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.data.encode import encode
from pipelines.data.file_kinds import READ
from pipelines.data.images import RejectedImageError
from pipelines.data.options import PrepareOptions

from .conftest import jpeg, photo
from .made_images import saved, tiff


def _numpy_file() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((4, 4, 3), np.uint8))
    return buffer.getvalue()


def _frame(offset: int, value: int) -> bytes:
    """A JPEG whose frame header says something else; libjpeg's offsets, by the standard."""
    data = bytearray(jpeg(photo(0)))
    data[data.index(b"\xff\xc0") + offset] = value
    return bytes(data)


_GREY = {258: [8], 262: [1], 277: [1]}


def _canon() -> bytes:
    """A CR2: a TIFF whose directory, after Canon's own mark, is that of a small JPEG copy."""
    data = tiff(4, 2, _GREY, bytes(8))
    moved = data[:4] + (8 + len(data)).to_bytes(4, "little") + b"CR\2\0" + bytes(4)
    return moved.ljust(len(data) + 8, b"\0")[: len(data) + 8] + data[8:]


OTHERS = [
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "HEIC is not read: convert it"),
    (b"\0\0\0\x18ftypmif1\0\0\0\0heic" + bytes(99), "HEIC is not read: convert it"),
    (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(99), r"camera RAW \(CR3\) is not read: develop"),
    (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(99), "not an image: a video"),
    (b"\xff\x0a" + bytes(99), "JPEG XL is not read: convert it"),
    (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "JPEG XL is not read: convert it"),
    (bytes(128) + b"DICM" + bytes(99), "DICOM is not read: apply its window"),
    (_numpy_file(), "NumPy array is not read: save it as PNG"),
    (b"%PDF-1.7\n", "PDF is not read: convert it"),
    (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG is not read"),
    (b"<!DOCTYPE html><title>404</title>", "not an image: a web page"),
    (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "Git LFS pointer, `git lfs pull`",
    ),
    (b"\0\5\x16\7" + bytes(99), "not an image: macOS metadata"),
    (b"remember the milk", "not an image: text"),
    (bytes(5000), "not an image: nothing but zero bytes"),
    (saved(photo(0, 32, 32), "ICO"), "ICO is not read: convert it"),
    (b"8BPS\0\1" + bytes(99), "Photoshop PSD is not read"),
    (b"v/1\1" + bytes(99), "OpenEXR is not read: map its range"),
    (tiff(4, 2, _GREY | {254: [1]}, bytes(8)), "TIFF begins with a small copy"),
    (tiff(4, 2, _GREY | {50706: [1]}, bytes(8)), "TIFF begins with a small copy"),
    (_canon(), "TIFF begins with a small copy"),
    (saved(photo(0), "TGA"), "TGA is not read"),
    (saved(photo(0), "PCX"), "PCX is not read"),
    (tiff(4, 2, _GREY | {339: [2]}, bytes(8)), "signed 8-bit pixels: shift them"),
    (tiff(4, 2, _GREY | {258: [32], 339: [3]}, bytes(32)), "floating-point pixels: they have no"),
    (tiff(4, 2, _GREY | {258: [32]}, b"\xff" * 32), "integer pixels beyond 16 bits: scale them"),
    (_frame(4, 12), r"JPEG of more than 8 bits is not read: .* \(it has 12\)"),
    (_frame(9, 2), "JPEG of unknown colours is not read"),
    (saved(photo(0), "PNG")[:20], "PNG of a broken or rare kind"),
    (saved(photo(0), "AVIF")[:60], "AVIF of a broken or rare kind"),
    (b"\x01\x02\x03\xfe", "not an image: no known format"),
]


@pytest.mark.parametrize(("data", "reason"), OTHERS, ids=range(len(OTHERS)))
def test_other_files_are_refused_by_name(data, reason):
    with pytest.raises(RejectedImageError, match=reason) as caught:
        encode(data, PrepareOptions(), as_jpg=True)
    text = str(caught.value)
    assert ":" in text and "\n" not in text and len(text) < 200


def test_every_format_that_is_read_is_one_of_pillows():
    Image.init()
    assert set(READ) <= Image.OPEN.keys()
