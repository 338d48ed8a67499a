"""Mutated files of every format: an image or a reason, never another exception.

A worker's death by a signal would end these tests as well, as they run in one process.
"""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.data import turbojpeg
from pipelines.data.beton import MODE_JPG
from pipelines.data.encode import encode
from pipelines.data.images import RejectedImageError
from pipelines.data.options import PrepareOptions

from .conftest import jpeg, photo
from .made_images import DISPLAY_P3, bmp, grey_profile, rgb_profile, saved, tiff

_PROFILE = rgb_profile(DISPLAY_P3, 2.2)
_EXIF = Image.Exif()
_EXIF[0x0112] = 6
_PHOTO = photo(1, 40, 30)
_DEEP = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50)
SEEDS = [
    jpeg(_PHOTO),
    jpeg(_PHOTO, progressive=True, exif=_EXIF),
    jpeg(_PHOTO, icc_profile=_PROFILE),
    jpeg(_PHOTO.convert("L"), icc_profile=grey_profile(1.8)),
    jpeg(_PHOTO.convert("CMYK")),
    jpeg(_PHOTO)[:-2] + bytes(40) + b"SEFT",
    saved(_PHOTO, "MPO", save_all=True, append_images=[photo(2)]),
    saved(_PHOTO, "PNG", icc_profile=_PROFILE, exif=_EXIF),
    saved(_PHOTO.quantize(16), "PNG", transparency=3),
    saved(_PHOTO, "PNG", save_all=True, append_images=[photo(2, 40, 30)]),
    saved(_DEEP, "PNG"),
    saved(_PHOTO, "WEBP", exif=_EXIF, icc_profile=_PROFILE),
    saved(_PHOTO, "WEBP", save_all=True, append_images=[photo(2, 40, 30)], lossless=True),
    saved(_PHOTO.quantize(16), "GIF", save_all=True, append_images=[photo(2, 40, 30)]),
    saved(_PHOTO, "BMP"),
    bmp(16, 1, 8, b"".join(bytes([1, i]) for i in range(16)) + b"\0\0\0\1", coding=1,
        palette=bytes(64)),
    saved(_PHOTO, "TIFF", compression="tiff_lzw", icc_profile=_PROFILE),
    saved(_PHOTO, "TIFF", compression="jpeg"),
    saved(_DEEP, "TIFF", compression="tiff_adobe_deflate"),
    saved(_PHOTO.convert("1"), "TIFF", compression="group4"),
    tiff(8, 2, {258: [12], 262: [1], 277: [1]}, bytes(24)),
    saved(_PHOTO, "PPM"),
    b"P5 16 2 1023\n" + bytes(64),
    saved(_PHOTO, "AVIF", exif=_EXIF),
    saved(_PHOTO, "JPEG2000"),
]  # fmt: skip
_OPTIONS = PrepareOptions(max_pixels=1_000_000)

_edits = st.lists(
    st.tuples(
        st.sampled_from(["set", "flip", "cut", "insert", "swap", "zeros"]),
        st.floats(0, 1, allow_nan=False, exclude_max=True),
        st.integers(0, 255),
        st.integers(1, 40),
    ),
    max_size=5,
)


def _mutate(data: bytes, edits) -> bytes:
    mutated = bytearray(data)
    for how, where, value, count in edits:
        at = int(where * len(mutated)) if mutated else 0
        if how == "cut":
            del mutated[at : at + count * (1 + value)]
        elif how == "insert":
            mutated[at:at] = bytes([value]) * count
        elif how == "zeros":
            mutated[at : at + count] = bytes(len(mutated[at : at + count]))
        elif how == "swap":
            mutated[at:] = mutated[at + count :] + mutated[at : at + count]
        elif mutated:
            mutated[at] = value if how == "set" else mutated[at] ^ (1 << value % 8)
    return bytes(mutated)


def _check(data: bytes, as_jpg: bool) -> None:
    try:
        encoded = encode(data, _OPTIONS, as_jpg=as_jpg)
    except RejectedImageError as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < 300 and text.isprintable()
        return
    assert encoded.width * encoded.height <= _OPTIONS.max_pixels
    if encoded.mode == MODE_JPG:  # what the loader will read: without a single warning
        turbojpeg.decode(encoded.blob, encoded.width, encoded.height)
        shown = Image.open(io.BytesIO(encoded.blob)).convert("RGB")
        assert shown.size == (encoded.width, encoded.height)
    else:
        assert len(encoded.blob) == encoded.width * encoded.height * 3


@given(st.sampled_from(SEEDS), _edits, st.booleans())
@settings(max_examples=400, deadline=None)
def test_mutated_files(data, edits, as_jpg):
    _check(_mutate(data, edits), as_jpg)


@pytest.mark.slow  # thousands of files of all formats
@given(st.sampled_from(SEEDS), _edits, st.booleans())
@settings(max_examples=8000, deadline=None)
def test_many_mutated_files(data, edits, as_jpg):
    _check(_mutate(data, edits), as_jpg)


@given(st.sampled_from(SEEDS), st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_a_good_beginning_with_anything_after_it(data, rest):
    _check(data[: len(data) // 3] + rest, True)
    _check(data[:12] + rest, True)


@given(st.binary(min_size=1, max_size=4000), st.sampled_from(["L", "RGB", "CMYK"]))
@settings(max_examples=100, deadline=None)
def test_any_bytes_as_a_profile(profile, mode):
    """After a header that Little CMS takes, too."""
    for tail in (profile, _PROFILE[:200] + profile):
        _check(jpeg(_PHOTO.convert(mode), icc_profile=tail), True)
