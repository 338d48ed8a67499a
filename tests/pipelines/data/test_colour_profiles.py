"""Embedded profiles against colour science worked out in NumPy, not by Little CMS."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipelines.data.encode import encode
from pipelines.data.options import PrepareOptions

from .conftest import jpeg, photo
from .made_images import (
    ADOBE_RGB,
    DISPLAY_P3,
    SRGB,
    grey_profile,
    ink_profile,
    lab_to_xyz,
    rgb_profile,
    saved,
    srgb_levels,
    tiff,
    to_d50,
)

OPTIONS = PrepareOptions()


def _stored(data: bytes):
    encoded = encode(data, OPTIONS, as_jpg=False)
    shape = (encoded.height, encoded.width, 3)
    return np.frombuffer(encoded.blob, np.uint8).reshape(shape).astype(int), encoded


def _colours() -> Image.Image:
    levels = np.array([0, 40, 90, 160, 220, 255], np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(12, 18, 3)
    return Image.fromarray(grid)


def _expected(pixels: np.ndarray, primaries, gamma: float) -> np.ndarray:
    return srgb_levels((pixels / 255) ** gamma @ to_d50(primaries).T)


# WebP, TIFF and PNG carry a profile each in a way of its own.
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(("primaries", "gamma"), [(DISPLAY_P3, 2.2), (ADOBE_RGB, 2.2), (SRGB, 1.0)])
def test_wide_colours_come_out_as_srgb(kind, primaries, gamma):
    options = {"lossless": True} if kind == "WEBP" else {}
    image = _colours()
    data = saved(image, kind, icc_profile=rgb_profile(primaries, gamma), **options)
    pixels, encoded = _stored(data)
    expected = _expected(np.asarray(image), primaries, gamma)
    assert np.abs(pixels - expected).max() <= 2
    assert np.abs(pixels - np.asarray(image)).max() > 20
    assert encoded.conversion == "profile Made for tests to sRGB"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"keep_rgb": True}])
def test_a_jpeg_with_other_colours_does_not_keep_its_bytes(options):
    """Neighbours: progressive, and a JPEG that stores RGB without turning it to YCbCr."""
    image = photo(4, 64, 48)
    data = jpeg(image, icc_profile=rgb_profile(DISPLAY_P3, 2.2), **options)
    encoded = encode(data, OPTIONS, as_jpg=True)
    assert encoded.blob != data and "sRGB" in encoded.conversion
    again = Image.open(io.BytesIO(encoded.blob))
    assert "icc_profile" not in again.info  # or a viewer would convert it once more
    plain = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    expected = _expected(plain, DISPLAY_P3, 2.2)
    assert np.abs(np.asarray(again) - expected).mean() < 3
    assert np.abs(np.asarray(again) - plain).mean() > 4


def test_a_jpeg_in_srgb_keeps_its_bytes():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = jpeg(photo(1), icc_profile=srgb)
    encoded = encode(data, OPTIONS, as_jpg=True)
    assert encoded.blob == data and encoded.conversion == encoded.warning == ""


def test_grey_profiles_and_colour_profiles_of_grey_pictures():
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(4, 0))
    expected = srgb_levels((np.arange(256) / 255)[:, None] ** 1.2 * to_d50(SRGB).sum(1))
    for profile in (grey_profile(1.2), rgb_profile(SRGB, 1.2)):
        pixels, encoded = _stored(saved(ramp, "PNG", icc_profile=profile))
        assert np.abs(pixels[0] - expected).max() <= 3
        assert "sRGB" in encoded.conversion


def test_colours_are_converted_before_alpha_is_laid_over_white():
    image = _colours().convert("RGBA")
    image.putalpha(102)
    data = saved(image, "PNG", icc_profile=rgb_profile(DISPLAY_P3, 2.2))
    pixels, encoded = _stored(data)
    opaque = _expected(np.asarray(image)[..., :3], DISPLAY_P3, 2.2)
    assert np.abs(pixels - (opaque * 0.4 + 255 * 0.6)).max() <= 2
    assert encoded.conversion == "profile Made for tests to sRGB + alpha over white"


def test_a_palette_has_a_profile_too():
    image = _colours().quantize(64)
    data = saved(image, "PNG", icc_profile=rgb_profile(ADOBE_RGB, 2.2))
    expected = _expected(np.asarray(image.convert("RGB")), ADOBE_RGB, 2.2)
    assert np.abs(_stored(data)[0] - expected).max() <= 2


def _inks() -> np.ndarray:
    """L*a*b* of each overprint: darker, and of other hues, than Pillow's plain formula."""
    rng = np.random.default_rng(5)
    lab = np.zeros((2, 2, 2, 2, 3))
    for corner in np.ndindex(2, 2, 2, 2):
        lab[corner] = [90 - 20 * sum(corner), *rng.integers(-20, 20, 2)]
    lab[0, 0, 0, 0], lab[1, 1, 1, 1] = [100, 0, 0], [0, 0, 0]
    return np.round(lab)


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_inks_are_shown_as_their_profile_says(kind):
    corners = np.array(list(np.ndindex(2, 2, 2, 2)), np.uint8) * 255
    image = Image.fromarray(
        np.kron(corners.reshape(4, 4, 4), np.ones((16, 16, 1), np.uint8)), "CMYK"
    )
    data = saved(
        image,
        kind,
        icc_profile=ink_profile(_inks()),
        **({"quality": 100} if kind == "JPEG" else {}),
    )
    pixels, encoded = _stored(data)
    expected = srgb_levels(lab_to_xyz(_inks().reshape(4, 4, 3)))
    assert np.abs(pixels[8::16, 8::16] - expected).max() <= 4
    assert "sRGB" in encoded.conversion


@pytest.mark.parametrize(
    ("mode", "profile", "warning"),
    [
        ("RGB", b"not a profile", "broken"),
        ("RGB", rgb_profile(DISPLAY_P3, 2.2)[:200], "broken"),
        ("RGB", ink_profile(_inks()), "made for other colours"),
        ("CMYK", rgb_profile(DISPLAY_P3, 2.2), "made for other colours"),
        ("RGB", grey_profile(1.8), "made for other colours"),
    ],
    ids=range(5),
)
def test_unusable_profiles_are_passed_over_and_said(mode, profile, warning):
    image = photo(2).convert(mode)
    with_profile, encoded = _stored(jpeg(image, icc_profile=profile))
    without, _ = _stored(jpeg(image))
    np.testing.assert_array_equal(with_profile, without)
    assert encoded.warning == f"colour profile passed over: {warning}"


def test_lab_pixels():
    lab = np.array([[[60, 40, -30], [80, -20, 60], [30, 0, 0], [100, 0, 0]]])
    stored = np.round(lab * [2.55, 1, 1]).astype(int) & 255
    data = tiff(4, 1, {258: [8, 8, 8], 262: [8], 277: [3]}, stored.astype(np.uint8).tobytes())
    assert np.abs(_stored(data)[0] - srgb_levels(lab_to_xyz(lab))).max() <= 3
