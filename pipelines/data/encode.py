"""From a source's bytes to what a beton stores: checked, upright, sRGB, resized."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipelines.data import turbojpeg
from pipelines.data.beton import MODE_JPG, MODE_RAW
from pipelines.data.colour_profiles import conversion_for
from pipelines.data.images import (
    Notes,
    RejectedImageError,
    open_image,
    orientation,
    target_size,
    to_rgb,
)
from pipelines.data.jpeg_ends import CutJpegError, WholeJpeg, check_whole
from pipelines.data.options import PrepareOptions

NEARLY_BLACK = "nearly black, its values should be scaled to the full range"
# Levels of 255 below which a picture is black to people: all of it, or of one that had more than
# eight bits (12 or 14 used of 16, as scanners write them) all but a few bright marks.
_BLACK, _BLACK_OF_DEEP, _SHARE_OF_DEEP = 16, 64, 0.95
_BRIGHTEST_BLACK = 110  # no such picture's red is brighter on average: others are not looked at


@dataclass(frozen=True)
class Encoded:
    """What is stored of one image, and its pixel sums for mean and deviation.

    `sums` [3] and `squares` [3] are of the pixels in 0..255 and their squares, per channel.
    `conversion` says what was done to the source's image, "" where its bytes are kept; `warning`
    what a person should look at, mostly "".
    """

    blob: bytes
    mode: int
    width: int
    height: int
    sums: np.ndarray
    squares: np.ndarray
    conversion: str = ""
    warning: str = ""


def encode(data: bytes | np.ndarray, options: PrepareOptions, *, as_jpg: bool) -> Encoded:
    """Check one image and bring it to its stored form.

    A JPEG that is upright, grey or RGB, in sRGB and small enough keeps its bytes, so nothing is
    lost a second time, after one strict decoding has shown it to be whole.

    Args:
        data: a file's bytes, or pixels [H, W, 3] uint8.
        options: resolution, quality and limits.
        as_jpg: store a JPEG rather than raw pixels.

    Raises:
        RejectedImageError: the reason in words.
    """
    notes = Notes()
    if isinstance(data, np.ndarray):
        image, kind = Image.fromarray(data), ""
    else:
        image = open_image(data, options.max_pixels)
        kind = "JPEG" if image.format == "MPO" else image.format or ""
        whole = _check_jpeg(data, image) if kind == "JPEG" and turbojpeg.available() else None
        if whole is not None:
            if whole.repair:
                notes.conversions.append(whole.repair)
                image = open_image(whole.data, options.max_pixels)
            if whole.pixels is not None and _is_plain(image, notes):
                if as_jpg and not options.reencode and _target(image, options) is None:
                    return _encoded(whole.data, MODE_JPG, whole.pixels, notes)
                image = Image.fromarray(whole.pixels)
        image = to_rgb(image, notes)
    size = _target(image, options)
    if size is not None:
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
        notes.conversions.append("shrunk")
    if as_jpg and kind and (kind != "JPEG" or not notes.conversions):
        notes.conversions.append("encoded anew" if kind == "JPEG" else f"{kind} to JPEG")
    pixels = np.asarray(image)
    blob = _jpeg(image, options.quality) if as_jpg else pixels.tobytes()
    return _encoded(blob, MODE_JPG if as_jpg else MODE_RAW, pixels, notes)


def _is_plain(image: Image.Image, notes: Notes) -> bool:
    """Whether a JPEG's own pixels are what a viewer shows: upright, and sRGB or near it."""
    if image.mode not in ("RGB", "L") or orientation(image) != 1:
        return False
    profile = image.info.get("icc_profile")
    if not profile:
        return True
    found = conversion_for(profile, image.mode)
    if found.transform is None and found.warning:
        notes.warnings.append(found.warning)
    return found.transform is None


def _encoded(blob: bytes, mode: int, pixels: np.ndarray, notes: Notes) -> Encoded:
    counts, levels = _level_counts(pixels), np.arange(256, dtype=np.float64)
    sums, squares = counts @ levels, counts @ (levels * levels)  # exact
    height, width = pixels.shape[:2]
    if sums[0] < _BRIGHTEST_BLACK * height * width and _is_black(counts, notes.deep):
        notes.warnings.append(NEARLY_BLACK)
    conversion, warning = " + ".join(notes.conversions), ", ".join(notes.warnings)
    return Encoded(blob, mode, width, height, sums, squares, conversion, warning)


def _is_black(counts: np.ndarray, deep: bool) -> bool:
    if deep:
        return bool(counts[:, :_BLACK_OF_DEEP].sum() >= _SHARE_OF_DEEP * counts.sum())
    return not counts[:, _BLACK:].any()


def _target(image: Image.Image, options: PrepareOptions) -> tuple[int, int] | None:
    return target_size(image.size, options.resolution, options.resolution_side)


def _check_jpeg(data: bytes, image: Image.Image) -> WholeJpeg:
    try:
        cmyk, several = image.mode == "CMYK", image.format == "MPO"
        return check_whole(data, image.width, image.height, cmyk=cmyk, several=several)
    except CutJpegError as error:
        raise RejectedImageError(str(error)) from None
    except turbojpeg.BrokenJpegError as error:
        raise RejectedImageError(f"cannot be decoded: {error}") from None


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _level_counts(pixels: np.ndarray) -> np.ndarray:
    """[3, 256]: how many pixels of each channel have each level."""
    # Pillow counts levels several times faster than NumPy sums bytes in a wider type.
    return np.array(Image.fromarray(pixels).histogram(), np.float64).reshape(3, 256)
