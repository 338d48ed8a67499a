"""JPEGs that viewers open: mended without loss if all pixels are there, refused if not.

That all are there is judged by the source: the whole file, decoded by Pillow, is the oracle.
"""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from thinning import crossed

from pipelines.data import turbojpeg
from pipelines.data.encode import encode
from pipelines.data.images import RejectedImageError
from pipelines.data.jpeg_ends import CUT, MARKER_ADDED, TAIL_LEFT_OFF
from pipelines.data.options import PrepareOptions

from .conftest import jpeg, photo
from .made_images import saved

OPTIONS = PrepareOptions()
_NOISE = Image.fromarray(np.random.default_rng(8).integers(0, 256, (48, 56, 3), np.uint8))
KINDS = {
    "baseline": jpeg(_NOISE),
    "flat": jpeg(Image.new("RGB", (56, 48), (90, 20, 200)), optimize=True),
    "grey": jpeg(_NOISE.convert("L")),
    "progressive": jpeg(_NOISE, progressive=True),
    "own tables": jpeg(_NOISE, optimize=True),
    "restarts": jpeg(_NOISE, restart_marker_blocks=3),
    "RGB": jpeg(_NOISE, keep_rgb=True),
    "with a thumbnail": jpeg(_NOISE, exif=b"Exif\0\0" + jpeg(photo(1, 16, 16))),
    "CMYK": jpeg(_NOISE.convert("CMYK")),
}
# What phones, cards and tools leave behind the pixels. Neighbours of the field script's: a film,
# another picture, a file system's allotted block, something that looks like a marker, text.
TAILS = {
    "nothing": b"",
    "Samsung": bytes(64) + b"SEFH\x6b\0\0\0SEFT",
    "film": b"MotionPhoto_Data\0\0\0\x18ftypmp42" + bytes(999),
    "picture": jpeg(photo(2, 16, 16)),
    "block": bytes(4096),
    "marker": b"junk\xff\xc4\0\x05junk\xff\x3cmore",
    "text": b"\r\n--boundary--\r\n",
}


@pytest.mark.parametrize(("tail", "kind"), crossed(list(TAILS), list(KINDS)))
@pytest.mark.parametrize("marker", [False, True], ids=["no marker", "marker"])
def test_whole_pictures_are_taken_without_a_second_loss(kind, tail, marker):
    whole = KINDS[kind]
    odd = (whole if marker else whole[:-2]) + TAILS[tail]
    expected = np.asarray(Image.open(io.BytesIO(whole)).convert("RGB"))
    if kind == "CMYK":  # never stored as it is: the loader could not read inks
        pixels = encode(odd, OPTIONS, as_jpg=False).blob
        np.testing.assert_array_equal(np.frombuffer(pixels, np.uint8), expected.ravel())
        return
    encoded = encode(odd, OPTIONS, as_jpg=True)
    shown = np.asarray(Image.open(io.BytesIO(encoded.blob)).convert("RGB"))
    np.testing.assert_array_equal(shown, expected)
    if odd.endswith(b"\xff\xd9") and marker:  # decoders stop at the first end marker
        assert encoded.blob == odd and encoded.conversion == ""
    else:
        assert encoded.blob == whole
        assert encoded.conversion == (TAIL_LEFT_OFF if TAILS[tail] else MARKER_ADDED)


@pytest.mark.parametrize(
    ("kept", "padding", "kind"),
    crossed(
        [0.99, 0.2, 0.5, 0.9],
        [b"", b"\xff\xd9", bytes(6000), bytes(6000) + b"\xff\xd9"],
        ["baseline", *sorted(KINDS.keys() - {"flat", "baseline"})],
    ),
)
def test_cut_pictures_are_refused(kind, padding, kept):
    """Cut downloads; with the end marker put on by a tool; in a block that was never filled."""
    whole = KINDS[kind]
    cut = whole[: int(len(whole) * kept)] + padding
    with pytest.raises(RejectedImageError):
        encode(cut, OPTIONS, as_jpg=True)


@pytest.mark.parametrize("missing", range(1, 9))
def test_a_few_bytes_less_are_pixels_less(missing):
    for kind in ("baseline", "progressive", "restarts"):
        scan = KINDS[kind][:-2]
        with pytest.raises(RejectedImageError, match=re.escape(CUT)):
            encode(scan[:-missing], OPTIONS, as_jpg=True)


def test_a_progressive_picture_without_its_last_scans_is_refused():
    """Each scan is whole, so no decoder warns: the picture is only coarse."""
    data = KINDS["progressive"]
    scans = [found.start() for found in re.finditer(rb"\xff\xda", data)]
    assert len(scans) > 4
    for scan in scans[2:]:
        table = data.rfind(b"\xff\xc4", 0, scan)
        with pytest.raises(RejectedImageError, match="pixels are missing"):
            encode(data[:table], OPTIONS, as_jpg=True)


def test_corrupt_bytes_followed_by_a_harmless_tail_are_refused():
    """libjpeg keeps its last warning only, and the last is the harmless one."""
    data = bytearray(KINDS["restarts"])
    scan = data.index(b"\xff\xda") + 400
    data[scan : scan + 40] = bytes(40)
    odd = bytes(data[:-2]) + b"SEFT" + bytes(data[-2:])
    with pytest.raises(RejectedImageError):
        encode(odd, OPTIONS, as_jpg=True)


def test_the_first_picture_of_several_is_kept_alone():
    first = jpeg(photo(1))
    mpo = saved(photo(1), "MPO", save_all=True, append_images=[photo(2)], quality=95)
    encoded = encode(mpo, OPTIONS, as_jpg=True)
    assert Image.open(io.BytesIO(mpo)).format == "MPO"
    assert len(encoded.blob) < len(mpo) and encoded.conversion == TAIL_LEFT_OFF
    np.testing.assert_array_equal(
        turbojpeg.decode(encoded.blob, 64, 48), turbojpeg.decode(first, 64, 48)
    )


# Made by cjpeg -arithmetic of a 16×16 picture; Pillow writes none.
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZG"
    "NywtQFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09P"
    "T09PT09PT09PT09PT09PT09PT09PT09PT0//yQARCAAQABADASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIR"
    "AxEAPwDAGXZn0TCy2QUKFJzS7vTDpyZrDhuz5sCvYV51FThjhUk3+UBGYNNVOZlYdNN9gl9A/9k="
)


def test_arithmetic_coding_is_taken_with_its_end_marker_only():
    """Its decoder never lacks bits: nothing would tell a cut file from a whole one."""
    shown = np.asarray(Image.open(io.BytesIO(ARITHMETIC)).convert("RGB"))
    encoded = encode(ARITHMETIC, OPTIONS, as_jpg=False)
    np.testing.assert_array_equal(np.frombuffer(encoded.blob, np.uint8), shown.ravel())
    assert encode(ARITHMETIC + b"SEFT", OPTIONS, as_jpg=True).conversion == TAIL_LEFT_OFF
    with pytest.raises(RejectedImageError, match="pixels are missing"):
        encode(ARITHMETIC[:-2], OPTIONS, as_jpg=True)


def test_odd_headers_are_encoded_anew():
    """A JFIF version of the future, bytes between segments: libjpeg warns and shows all."""
    data = jpeg(photo(3))
    future = data.replace(b"JFIF\0\x01", b"JFIF\0\x09")
    at = data.index(b"\xff\xdb")
    for odd in (future, data[:at] + b"\0\0\0" + data[at:]):
        encoded = encode(odd, OPTIONS, as_jpg=True)
        assert encoded.conversion == "encoded anew"
        difference = turbojpeg.decode(encoded.blob, 64, 48).astype(int) - turbojpeg.decode(
            data, 64, 48
        )
        assert np.abs(difference).mean() < 3
