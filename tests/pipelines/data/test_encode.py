"""Whatever users have arrives upright in RGB, or is refused with a reason."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipelines.data import turbojpeg
from pipelines.data.beton import MODE_JPG, MODE_RAW
from pipelines.data.encode import encode
from pipelines.data.images import RejectedImageError
from pipelines.data.options import PrepareOptions

from .conftest import jpeg, photo
from .made_images import png, saved

OPTIONS = PrepareOptions()


def stored(data: bytes, options: PrepareOptions = OPTIONS) -> np.ndarray:
    """Pixels as raw mode stores them."""
    encoded = encode(data, options, as_jpg=False)
    assert encoded.mode == MODE_RAW
    return np.frombuffer(encoded.blob, np.uint8).reshape(encoded.height, encoded.width, 3)


# Red top left, green top right, blue bottom left, white bottom right: no turn or swap looks alike.
def quarters(width: int = 64, height: int = 48) -> Image.Image:
    image = Image.new("RGB", (width, height), (255, 255, 255))
    image.paste((255, 0, 0), (0, 0, width // 2, height // 2))
    image.paste((0, 255, 0), (width // 2, 0, width, height // 2))
    image.paste((0, 0, 255), (0, height // 2, width // 2, height))
    return image


def assert_quarters(pixels: np.ndarray, tolerance: int = 24) -> None:
    height, width = pixels.shape[:2]
    for (y, x), colour in {
        (0.25, 0.25): (255, 0, 0),
        (0.25, 0.75): (0, 255, 0),
        (0.75, 0.25): (0, 0, 255),
        (0.75, 0.75): (255, 255, 255),
    }.items():
        found = pixels[int(y * height), int(x * width)].astype(int)
        assert np.abs(found - colour).max() <= tolerance, (y, x, found)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("GIF", {}),
        ("PPM", {}),
    ],
)
def test_formats(kind, options):
    assert_quarters(stored(saved(quarters(), kind, **options)))


def test_cmyk_jpeg():
    assert_quarters(stored(saved(quarters().convert("CMYK"), "JPEG", quality=95)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey(kind):
    grey = quarters().convert("L")
    pixels = stored(saved(grey, kind))
    assert (pixels == pixels[:, :, :1]).all()
    assert np.abs(pixels[:, :, 0].astype(int) - np.asarray(grey)).max() < 24


def test_transparent_pixels_become_white():
    image = quarters().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 255))
    image.paste((0, 0, 0, 0), (32, 24, 64, 48))  # black beneath, but not to be seen
    assert_quarters(stored(saved(image, "PNG")), tolerance=0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("as_jpg", [False, True])
def test_exif_rotations_arrive_upright(orientation, as_jpg):
    # The transpositions that undo each EXIF orientation, applied backwards to make the file.
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = quarters()
    if orientation in turn:
        image = image.transpose(turn[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(jpeg(image, exif=exif), OPTIONS, as_jpg=as_jpg)
    assert (encoded.width, encoded.height) == (64, 48)
    if as_jpg:
        # Decoded as the loader does it: nobody looks at EXIF again.
        assert_quarters(turbojpeg.decode(encoded.blob, 64, 48))
    else:
        assert_quarters(np.frombuffer(encoded.blob, np.uint8).reshape(48, 64, 3))


def test_a_good_jpeg_keeps_its_bytes():
    data = jpeg(photo(1))
    assert encode(data, OPTIONS, as_jpg=True).blob == data
    again = encode(data, PrepareOptions(reencode=True, quality=60), as_jpg=True)
    assert again.blob != data and len(again.blob) < len(data) and again.mode == MODE_JPG


@pytest.mark.parametrize(("side", "size"), [("longest", (50, 25)), ("shortest", (100, 50))])
def test_resolution_limits_the_side_asked_for(side, size):
    options = PrepareOptions(resolution=50, resolution_side=side)
    encoded = encode(jpeg(photo(0, 200, 100)), options, as_jpg=True)
    assert (encoded.width, encoded.height) == size
    assert turbojpeg.decode(encoded.blob, *size).shape == (size[1], size[0], 3)


def test_small_images_are_never_enlarged():
    encoded = encode(jpeg(photo(0, 20, 10)), PrepareOptions(resolution=500), as_jpg=False)
    assert (encoded.width, encoded.height) == (20, 10)


def test_pixel_sums_are_exact():
    pixels = np.random.default_rng(0).integers(0, 256, (37, 41, 3)).astype(np.uint8)
    encoded = encode(pixels, OPTIONS, as_jpg=False)
    wide = pixels.astype(np.int64)
    np.testing.assert_array_equal(encoded.sums, wide.sum((0, 1)))
    np.testing.assert_array_equal(encoded.squares, (wide**2).sum((0, 1)))


def of_size(width: int, height: int) -> bytes:
    """A PNG that claims these sides, and has no pixels."""
    data = png(1, 0, 8, 2, b"")
    header = struct.pack(">II", width, height) + data[24:29]
    return data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:]


def _jpeg_of_zero_height() -> bytes:
    data = bytearray(jpeg(photo(0)))
    at = data.index(b"\xff\xc0") + 5  # height in the frame header
    data[at : at + 2] = b"\0\0"
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<html>404</html>", "not an image"),
        (b"\xff\xd8\xff\xe0", "JPEG of a broken or rare kind"),
        (jpeg(photo(0))[: len(jpeg(photo(0))) // 2], "pixels are missing"),
        (saved(photo(0), "PNG")[:900], "pixels are missing"),
        (saved(photo(0), "WEBP")[:200], "WebP of a broken or rare kind|cannot be decoded"),
        (of_size(60_000, 60_000), "decompression bomb"),
        (of_size(20_000, 6_000), "decompression bomb: 20000×6000 is over --max-pixels 100000000"),
        (of_size(70_000, 10), "one side is too long: 70000×10 is over 65535"),
        (of_size(0, 10), "zero-sized"),
        (saved(Image.new("P", (9, 9)), "GIF").replace(b"\x09\0\x09\0", bytes(4)), "zero-sized"),
        (saved(photo(0), "BMP")[:22] + bytes(4) + saved(photo(0), "BMP")[26:], "zero-sized"),
        (of_size(10, 10), "pixels are missing"),
        (_jpeg_of_zero_height(), "zero-sized"),
        (saved(Image.new("F", (8, 8)), "TIFF"), "floating-point"),
    ],
    ids=range(15),
)
@pytest.mark.parametrize("as_jpg", [False, True])
def test_bad_files_are_refused(data, reason, as_jpg):
    with pytest.raises(RejectedImageError, match=reason) as caught:
        encode(data, OPTIONS, as_jpg=as_jpg)
    assert "\n" not in str(caught.value)


def test_corrupt_scan_data_that_pillow_passes_over_is_refused():
    """A JPEG whole in length but with wrecked entropy-coded bytes in the middle."""
    data = bytearray(jpeg(photo(3, 200, 200)))
    middle = len(data) // 2
    data[middle : middle + 60] = b"\xff\xd9" * 30
    with pytest.raises(RejectedImageError, match="pixels are missing"):
        encode(bytes(data), OPTIONS, as_jpg=True)
