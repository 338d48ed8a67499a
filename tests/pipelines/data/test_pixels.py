"""Depths, transparency, orientation and odd kinds, against values worked out from the formats.

The files are written byte by byte, so no encoder shares a mistake with the decoder. Where Pillow
alone would be wrong (a transparent grey of four bits, white-is-zero in sixteen), libvips agrees
with what is expected here: both were compared when this was written.
"""

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from pipelines.data.encode import NEARLY_BLACK, encode
from pipelines.data.file_kinds import READ
from pipelines.data.images import RejectedImageError, open_image
from pipelines.data.options import PrepareOptions

from .conftest import jpeg, photo
from .made_images import bmp, chunk, packed, png, saved, tiff

OPTIONS = PrepareOptions()
_STEPS = list(range(16))


def _stored(data: bytes):
    encoded = encode(data, OPTIONS, as_jpg=False)
    shape = (encoded.height, encoded.width, 3)
    return np.frombuffer(encoded.blob, np.uint8).reshape(shape).astype(int), encoded


def _grey(values) -> np.ndarray:
    return np.array(values)[:, None].repeat(3, 1)


def _spread(bits: int) -> list[int]:
    """Sixteen values from black to white."""
    return [step * (2**bits - 1) // 15 for step in _STEPS]


def _shown(values: list[int], bits: int) -> list[int]:
    """In eight bits: the high byte of sixteen, repeated bits of fewer than eight."""
    return [value >> (bits - 8) if bits > 8 else value * 255 // (2**bits - 1) for value in values]


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_png_of_every_depth_with_and_without_a_transparent_grey(bits):
    values = _spread(bits)
    expected = np.array(_shown(values, bits))
    pixels, encoded = _stored(png(16, 3, bits, 0, packed(values, bits)))
    np.testing.assert_array_equal(pixels, np.broadcast_to(_grey(expected), (3, 16, 3)))
    assert encoded.conversion == ("16 bit to 8" if bits == 16 else "")
    key = values[6]
    data = png(16, 3, bits, 0, packed(values, bits), chunk(b"tRNS", struct.pack(">H", key)))
    pixels, encoded = _stored(data)
    seen = np.where(np.array(values) == key, 255, expected)
    np.testing.assert_array_equal(pixels[1], _grey(seen))
    assert encoded.conversion.endswith("alpha over white")


@pytest.mark.parametrize("bits", [8, 16])
def test_colour_png_with_one_transparent_colour(bits):
    most = 2**bits - 1
    colours = [(value, most - value, value // 2) for value in _spread(bits)]
    row = b"".join(packed(list(colour), bits) for colour in colours)
    key = chunk(b"tRNS", struct.pack(">HHH", *colours[5]))
    expected = np.array([_shown(list(colour), bits) for colour in colours])
    np.testing.assert_array_equal(_stored(png(16, 2, bits, 2, row))[0][0], expected)
    expected[5] = 255
    np.testing.assert_array_equal(_stored(png(16, 2, bits, 2, row, key))[0][1], expected)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_laid_over_white_straight(bits, channels):
    most = 2**bits - 1
    alpha = _spread(bits)
    colour = [200 * most // 255, 100 * most // 255, 30 * most // 255][: channels - 1]
    row = b"".join(packed([*colour, a], bits) for a in alpha)
    pixels, _ = _stored(png(16, 1, bits, 4 if channels == 2 else 6, row))
    base = np.array([200, 100, 30]) if channels == 4 else np.array([200] * 3)
    share = np.array(alpha)[:, None] / most
    assert np.abs(pixels[0] - (base * share + 255 * (1 - share))).max() <= 1


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_of_every_depth_with_half_transparent_entries(bits):
    count = min(16, 2**bits)
    palette = [(17 * i, 90, 255 - 17 * i) for i in range(count)]
    indices = [step % count for step in _STEPS]
    chunks = (
        chunk(b"PLTE", bytes(level for colour in palette for level in colour)),
        chunk(b"tRNS", bytes([0, 100])),
    )
    pixels, _ = _stored(png(16, 1, bits, 3, packed(indices, bits), *chunks))
    share = np.array([[0.0], [100 / 255], *[[1.0]] * 14])[indices]
    expected = np.array(palette)[indices] * share + 255 * (1 - share)
    assert np.abs(pixels[0] - expected).max() <= 1


_PILLOW_CANNOT = {(16, True, ">"), (12, True, "<"), (12, True, ">"), (12, False, ">")}


@pytest.mark.parametrize("end", ["<", ">"])
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_grey_tiff_of_every_depth(bits, white_is_zero, end):
    values = _spread(bits)
    row = packed(values, bits)
    if bits == 16:
        row = np.array(values).astype(f"{end}u2").tobytes()
    tags = {258: [bits], 262: [0 if white_is_zero else 1], 277: [1]}
    data = tiff(16, 2, tags, row * 2, end)
    if (bits, white_is_zero, end) in _PILLOW_CANNOT:
        with pytest.raises(RejectedImageError, match="TIFF of a broken or rare kind"):
            _stored(data)
        return
    pixels, _ = _stored(data)
    expected = np.array(_shown(values, bits))
    np.testing.assert_array_equal(pixels[0], _grey(255 - expected if white_is_zero else expected))


@pytest.mark.parametrize("extra", [1, 2])
def test_tiff_with_alpha_multiplied_in_or_not(extra):
    """ExtraSamples 1: colours were multiplied by alpha; 2: they were not."""
    alpha = np.arange(15, 256, 16)
    straight = np.stack([np.full(16, 200), np.full(16, 90), np.full(16, 10)], -1)
    colours = straight * alpha[:, None] // 255 if extra == 1 else straight
    row = np.concatenate([colours, alpha[:, None]], 1).astype(np.uint8).tobytes()
    data = tiff(16, 1, {258: [8] * 4, 262: [2], 277: [4], 338: [extra]}, row)
    share = alpha[:, None] / 255
    assert np.abs(_stored(data)[0][0] - (straight * share + 255 * (1 - share))).max() <= 2


def test_colour_tiffs_in_other_colours_than_rgb():
    ycc = tiff(16, 1, {258: [8] * 3, 262: [6], 277: [3], 530: [1, 1]}, bytes([120, 90, 180] * 16))
    y, cb, cr = 120, 90 - 128, 180 - 128
    expected = [y + 1.402 * cr, y - 0.344 * cb - 0.714 * cr, y + 1.772 * cb]
    assert np.abs(_stored(ycc)[0][0] - expected).max() <= 1
    inks = tiff(16, 1, {258: [8] * 4, 262: [5], 277: [4], 332: [1]}, bytes([51, 0, 204, 51] * 16))
    pixels, encoded = _stored(inks)
    assert np.abs(pixels[0] - np.array([0.8, 1, 0.2]) * 0.8 * 255).max() <= 1
    assert encoded.conversion == "CMYK to RGB"


@pytest.mark.parametrize("turn", range(2, 9))
def test_turned_tiff_png_and_webp(turn):
    image = photo(3, 48, 32)
    undo = [
        Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180,
        Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90,
        Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_270,
    ][turn - 2]  # fmt: skip
    lying = image.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = turn
    grey = np.asarray(lying.convert("L"))
    files = {
        "PNG": saved(lying, "PNG", exif=exif),
        "WEBP": saved(lying, "WEBP", lossless=True, exif=exif.tobytes()),
        "TIFF": tiff(
            lying.width, lying.height, {258: [8], 262: [1], 277: [1], 274: [turn]}, grey.tobytes()
        ),
    }
    for kind, data in files.items():
        pixels, encoded = _stored(data)
        expected = image if kind != "TIFF" else image.convert("L").convert("RGB")
        np.testing.assert_array_equal(pixels, np.asarray(expected), err_msg=kind)
        assert encoded.conversion == "turned upright"


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"]
)
def test_broken_exif_turns_nothing_and_costs_nothing(exif):
    data = jpeg(photo(1), exif=exif)
    encoded = encode(data, OPTIONS, as_jpg=True)
    assert encoded.blob == data and encoded.conversion == ""


def test_orientations_that_do_not_exist_turn_nothing():
    for value in (0, 9, 200):
        exif = Image.Exif()
        exif[0x0112] = value
        data = jpeg(photo(1), exif=exif)
        assert encode(data, OPTIONS, as_jpg=True).blob == data


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_picture_of_several(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    first, second = photo(1).quantize(32).convert("RGB"), photo(2)
    data = saved(first, kind, save_all=True, append_images=[second], **options)
    pixels, encoded = _stored(data)
    assert np.abs(pixels - np.asarray(first)).mean() < 6
    assert encoded.conversion == "first picture of several"


@pytest.mark.parametrize(
    ("bits", "data", "coding", "palette"),
    [
        (1, b"\x0f\x55\0\0", 0, 2),
        (4, bytes.fromhex("0123456789abcdef"), 0, 16),
        (8, bytes(range(16)), 0, 16),
        (8, b"".join(bytes([1, i]) for i in range(16)) + b"\0\0\0\1", 1, 16),
        (4, b"".join(bytes([2, (i << 4) | (i + 1)]) for i in range(0, 16, 2)) + b"\0\0\0\1", 2, 16),
    ],
    ids=["1", "4", "8", "RLE8", "RLE4"],
)
def test_bmp_palettes_and_run_lengths(bits, data, coding, palette):
    colours = [(17 * i * (15 // (palette - 1)), 0, 255 - 17 * i) for i in range(palette)]
    table = b"".join(bytes([blue, green, red, 0]) for red, green, blue in colours)
    pixels, _ = _stored(bmp(16, 1, bits, data, coding=coding, palette=table))
    indices = [0, 0, 0, 0, 1, 1, 1, 1, 0, 1, 0, 1, 0, 1, 0, 1] if bits == 1 else _STEPS
    np.testing.assert_array_equal(pixels[0], np.array(colours)[indices])


def test_bmp_with_alpha_and_upside_down():
    rows = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4) * 10
    pixels, encoded = _stored(bmp(3, -2, 32, rows.tobytes()))  # the fourth byte means nothing here
    np.testing.assert_array_equal(pixels, rows[..., 2::-1])
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    pixels, encoded = _stored(bmp(3, 2, 32, rows.tobytes(), coding=3, masks=masks))
    share = rows[::-1, :, 3:] / 255
    assert np.abs(pixels - (rows[::-1, :, 2::-1] * share + 255 * (1 - share))).max() <= 1
    rows[..., 3] = 0
    pixels, encoded = _stored(bmp(3, 2, 32, rows.tobytes(), coding=3, masks=masks))
    assert (pixels == 255).all() and encoded.warning == "wholly transparent"


@pytest.mark.parametrize(("most", "size"), [(15, 1), (100, 1), (1023, 2), (4095, 2), (65_535, 2)])
def test_ppm_values_are_scaled_from_their_own_maximum(most, size):
    values = np.linspace(0, most, 16).round().astype(int)
    raw = values.astype(f">u{size}")
    grey = f"P5 16 1 {most}\n".encode() + raw.tobytes()
    colour = f"P6 16 1 {most}\n".encode() + raw.repeat(3).tobytes()
    for data in (grey, colour):
        assert np.abs(_stored(data)[0][0] - _grey(values / most * 255)).max() <= 1


@pytest.mark.parametrize(("kind", "options"), [("AVIF", {"quality": 95}), ("JPEG2000", {})])
def test_newer_formats_are_read(kind, options):
    image = photo(2)
    pixels, encoded = _stored(saved(image, kind, **options))
    assert np.abs(pixels - np.asarray(image)).mean() < 3
    assert kind in READ and encoded.conversion == ""


def _deep(most: int) -> bytes:
    """A 16-bit picture that uses only the values up to `most`, as a scanner of few bits has it."""
    ramp = np.linspace(0, most, 64).astype(np.uint16)[None].repeat(48, 0)
    return saved(Image.fromarray(ramp), "PNG")


def test_ranges_that_leave_a_picture_black_are_said():
    ramp = np.linspace(0, 4095, 64).astype(int)
    twelve = png(64, 4, 16, 2, packed(ramp.repeat(3).tolist(), 16))
    ids = saved(Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)), "PNG")
    wide = tiff(64, 1, {258: [32], 262: [1], 277: [1]}, np.arange(64).astype("<u4").tobytes())
    marks = np.full((48, 64), 3000, np.uint16)
    marks[0, :60] = 65_535  # a burnt-in name, as X-rays have it
    files = [_deep(1023), _deep(4095), _deep(16_383), twelve, ids, wide]
    for data in (*files, saved(Image.fromarray(marks), "TIFF")):
        assert encode(data, OPTIONS, as_jpg=True).warning == NEARLY_BLACK
    night = photo(1).point(lambda level: level // 4)
    for data in (_deep(65_535), _deep(40_000), saved(night, "PNG"), jpeg(night)):
        assert encode(data, OPTIONS, as_jpg=True).warning == ""


def test_png_gamma_is_passed_over_and_said():
    gamma = chunk(b"gAMA", struct.pack(">I", 100_000))
    pixels, encoded = _stored(png(16, 1, 8, 0, bytes(range(0, 256, 17)), gamma))
    assert encoded.warning == "PNG gamma passed over"
    np.testing.assert_array_equal(pixels[0], _grey(range(0, 256, 17)))
    usual = chunk(b"gAMA", struct.pack(">I", 45_455))
    assert _stored(png(16, 1, 8, 0, bytes(range(0, 256, 17)), usual))[1].warning == ""


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 65_535)])
def test_extreme_shapes(size):
    image = photo(1, 64, 48).resize(size)
    for kind in ("JPEG", "PNG"):
        if kind == "JPEG" and max(size) > 65_500:
            continue  # libjpeg's own limit
        encoded = encode(saved(image, kind), OPTIONS, as_jpg=False)
        assert (encoded.width, encoded.height) == size
    small = encode(saved(image, "PNG"), PrepareOptions(resolution=500), as_jpg=False)
    assert max(small.width, small.height) <= 500 and min(small.width, small.height) >= 1


def test_the_limit_on_pixels_can_be_raised_beyond_pillows_own():
    """Pillow refuses 179 million pixels by itself, and said so of files that were allowed."""
    row = bytes(1250)  # 10,000 pixels of one bit
    data = png(10_000, 18_000, 1, 0, row)
    with pytest.raises(RejectedImageError, match="10000×18000 is over --max-pixels 100000000"):
        encode(data, OPTIONS, as_jpg=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(data, 180_000_000).size == (10_000, 18_000)


def test_conversions_and_warnings_say_what_was_done():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = photo(1)
    for data, options, said in (
        (jpeg(image), OPTIONS, ""),
        (jpeg(image, exif=exif), OPTIONS, "turned upright"),
        (jpeg(image), PrepareOptions(resolution=20), "shrunk"),
        (jpeg(image), PrepareOptions(reencode=True), "encoded anew"),
        (jpeg(image.convert("CMYK")), OPTIONS, "CMYK to RGB"),
        (saved(image, "PNG"), OPTIONS, "PNG to JPEG"),
        (saved(image, "WEBP"), PrepareOptions(resolution=20), "shrunk + WEBP to JPEG"),
        (np.asarray(image), OPTIONS, ""),
    ):
        encoded = encode(data, options, as_jpg=True)
        assert encoded.conversion == said and encoded.warning == ""
        assert "exif" not in Image.open(io.BytesIO(encoded.blob)).info or said == ""


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True}), ("GIF", {}), ("BMP", {}),
        ("PPM", {}), ("AVIF", {}), ("JPEG2000", {}), ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "jpeg"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_cut_files_of_every_format_are_refused(kind, options, kept, capfd):
    data = saved(photo(1, 120, 90), kind, **options)
    with pytest.raises(RejectedImageError):
        encode(data[: int(len(data) * kept)], OPTIONS, as_jpg=False)
    assert capfd.readouterr().err == ""  # libtiff likes to talk


def test_a_damaged_png_that_pillow_shows_is_refused():
    """Its end was never written: Pillow does not look at the checksum, and shows other pixels."""
    image = photo(1, 200, 150)
    data = saved(image, "PNG")
    kept = int(len(data) * 0.999)
    damaged = data[:kept] + bytes(len(data) - kept)
    assert Image.open(io.BytesIO(damaged)).convert("RGB").tobytes() != image.tobytes()
    with pytest.raises(RejectedImageError, match="checksum is wrong"):
        encode(damaged, OPTIONS, as_jpg=True)


def test_bytes_after_a_png_do_not_matter():
    pixels, _ = _stored(png(16, 1, 8, 0, bytes(range(16))) + bytes(5000))
    np.testing.assert_array_equal(pixels[0], _grey(range(16)))
