"""Opening whatever image a user has: refused with a reason, or upright 8-bit sRGB.

What comes out is what Pillow and libvips show; `docs/data.md` says it kind by kind.
"""

from __future__ import annotations

import io
import os
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from PIL.Image import Transpose

from pipelines.data.colour_profiles import to_srgb
from pipelines.data.file_kinds import READ, jpeg_frame, why_not_read
from pipelines.data.jpeg_ends import CUT

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}  # fmt: skip
_LARGEST_SIDE = 65_535  # a beton has 16 bits for it
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339
_TIFF_SUBFILE, _TIFF_DNG_VERSION = 254, 50706


class RejectedImageError(ValueError):
    """An image that must not get into a beton; the message is the reason.

    Up to its first colon it is the same for all images that are refused for the same reason.
    """


@dataclass
class Notes:
    """What became of one image on its way: for people, in few words each."""

    conversions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    deep: bool = False  # it had more than 8 bits per sample


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Read an image's header and check its size, before any pixel is decoded.

    Raises:
        RejectedImageError: empty, not an image, of no size, or too large to be decoded safely.
    """
    if not data:
        raise RejectedImageError("empty file")
    Image.MAX_IMAGE_PIXELS = None  # the limit is ours, and held to before anything is decoded
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow thinks of odd headers helps nobody
            image = Image.open(io.BytesIO(data), formats=READ)
    except Exception:
        # Pillow's parsers raise what they like on hostile bytes (struct.error, SyntaxError, …).
        if _says_no_size(data):
            raise RejectedImageError("zero-sized") from None
        raise RejectedImageError(why_not_read(data)) from None
    width, height = image.size
    if width < 1 or height < 1:
        raise RejectedImageError(f"zero-sized: {width}×{height}")
    if width * height > max_pixels:
        raise RejectedImageError(
            f"decompression bomb: {width}×{height} is over --max-pixels {max_pixels}"
        )
    if max(width, height) > _LARGEST_SIDE:
        raise RejectedImageError(
            f"one side is too long: {width}×{height} is over {_LARGEST_SIDE} (shrink it before)"
        )
    return image


def _says_no_size(data: bytes) -> bool:
    """Whether a header that Pillow refuses has a width or height of nothing, by format."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return bytes(4) in (data[16:20], data[20:24])
    if data.startswith(b"GIF8"):
        return bytes(2) in (data[6:8], data[8:10])
    if data.startswith(b"BM"):
        return bytes(4) in (data[18:22], data[22:26])
    frame = jpeg_frame(data)
    return bytes(2) in (frame[1:3], frame[3:5])


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 (upright) to 8."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
        return value if value in range(1, 9) else 1
    except Exception:
        return 1  # broken EXIF is no reason to refuse the pixels, and says nothing to obey


def to_rgb(image: Image.Image, notes: Notes) -> Image.Image:
    """Decode, convert to 8-bit sRGB on white and turn upright; `notes` are told what was done.

    Raises:
        RejectedImageError: truncated or broken data, or a pixel format without a meaning in RGB.
    """
    with decoding():
        bits = _bits(image)
        _refuse_strange_tiff(image)
        _refuse_damaged_png(image)
        notes.deep = bits > 8
        if image.format not in ("JPEG", "MPO") and getattr(image, "is_animated", False):
            notes.conversions.append("first picture of several")
        if image.format == "TIFF":
            if orientation(image) != 1:
                notes.conversions.append("turned upright")  # by Pillow, as it is decoded
            with _no_words_from_libtiff():
                image.load()
            turn = 1
        else:
            image.load()
            turn = orientation(image)
        profile = image.info.get("icc_profile")
        if not profile and _has_odd_gamma(image):
            notes.warnings.append("PNG gamma passed over")
        image = _to_8_bits(image, bits, notes)
        if profile:
            image, conversion, warning = to_srgb(image, profile)
            notes.conversions += [conversion] if conversion else []
            notes.warnings += [warning] if warning else []
        image = _to_rgb_on_white(image, notes)
        if turn != 1:
            notes.conversions.append("turned upright")
            image = image.transpose(_UPRIGHT[turn])
        return image


@contextmanager
def _no_words_from_libtiff() -> Iterator[None]:
    """libtiff writes to the process's stderr what Pillow raises as well."""
    stderr, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nothing)


def _bits(image: Image.Image) -> int:
    """Bits per sample in the file, before it is decoded."""
    tiles: Any = getattr(image, "tile", ())
    if image.format == "PNG" and tiles:
        depth = re.search(r";(\d+)", str(tiles[0][3]))
        return int(depth[1]) if depth else 8
    if image.format == "TIFF":
        return max(_tags(image).get(_TIFF_BITS, (1,)))
    return 16 if image.mode.startswith("I") else 8


def _tags(image: Image.Image) -> Any:
    return image.tag_v2  # type: ignore[attr-defined]


def _refuse_strange_tiff(image: Image.Image) -> None:
    if image.format != "TIFF":
        return
    tags = _tags(image)
    is_canon = image.fp.getvalue()[8:10] == b"CR"  # type: ignore[attr-defined]
    if is_canon or _TIFF_DNG_VERSION in tags or tags.get(_TIFF_SUBFILE, 0) & 1:
        raise RejectedImageError(
            "TIFF begins with a small copy: of camera RAW, develop it to JPEG or PNG"
        )
    if max(tags.get(_TIFF_SAMPLE_FORMAT, (1,))) == 2 and _bits(image) == 8:
        raise RejectedImageError("signed 8-bit pixels: shift them to 0..255 before")


def _refuse_damaged_png(image: Image.Image) -> None:
    """Check the checksums that Pillow passes over: a flipped bit changes pixels in silence."""
    if image.format != "PNG":
        return
    data, at = image.fp.getvalue(), 8  # type: ignore[attr-defined]
    while (kind := data[at + 4 : at + 8]).isalpha() and kind != b"IEND":
        end = at + 8 + int.from_bytes(data[at : at + 4])
        checksum = data[end : end + 4]
        is_checked = kind in _PNG_PIXELS and len(checksum) == 4
        if is_checked and zlib.crc32(data[at + 4 : end]) != int.from_bytes(checksum):
            raise RejectedImageError("checksum is wrong: the PNG is damaged, fetch it again")
        at = end + 4


def _has_odd_gamma(image: Image.Image) -> bool:
    gamma = image.info.get("gamma")
    return gamma is not None and "srgb" not in image.info and abs(gamma - 1 / 2.2) > 0.05


def _to_8_bits(image: Image.Image, bits: int, notes: Notes) -> Image.Image:
    """L, LA, RGB, RGBA or CMYK of 8 bits from any mode; colours and alpha as they were."""
    mode, key = image.mode, image.info.get("transparency")
    if mode == "F":
        raise RejectedImageError(
            "floating-point pixels: they have no fixed range, scale them to 8 or 16 bits"
        )
    if bits > 8:
        notes.conversions.append(f"{bits} bit to 8")
    if mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if bits == 12:
            grey <<= 4  # Pillow leaves them in the low bits
        if image.format == "TIFF" and _tags(image).get(_TIFF_PHOTOMETRIC) == 0:
            grey = 65_535 - grey  # Pillow turns black and white round in 8 bits only
        if grey.min() < 0 or grey.max() > 65_535:
            raise RejectedImageError("integer pixels beyond 16 bits: scale them to 0..65535")
        narrow = Image.fromarray((grey >> 8).astype(np.uint8))
        if isinstance(key, int):
            narrow.putalpha(Image.fromarray(np.where(grey == key, 0, 255).astype(np.uint8)))
        return narrow
    if key is not None:
        # PNG names its transparent colour in the file's own depth.
        if image.format == "PNG" and mode == "L" and bits < 8:
            image.info["transparency"] = key * 255 // (2**bits - 1)
        elif image.format == "PNG" and mode == "RGB" and bits == 16:
            image.info["transparency"] = tuple(value >> 8 for value in key)
        return image.convert("RGBA")
    target = {"1": "L", "La": "LA", "RGBa": "RGBA", "PA": "RGBA"}.get(mode, mode)
    if target not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        target = "RGB"
    return image if target == mode else image.convert(target)


def _to_rgb_on_white(image: Image.Image, notes: Notes) -> Image.Image:
    if image.mode in ("LA", "RGBA"):
        lowest, highest = image.getchannel("A").getextrema()
        if lowest == 255:
            return image.convert("RGB")
        notes.conversions.append("alpha over white")
        if highest == 0:
            notes.warnings.append("wholly transparent")
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode == "CMYK":
        notes.conversions.append("CMYK to RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


@contextmanager
def decoding() -> Iterator[None]:
    """Whatever Pillow raises on hostile pixels becomes a reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except RejectedImageError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        if "truncated" in text:
            raise RejectedImageError(CUT) from None
        if text.startswith("decoder error"):
            text = "it is damaged, or compressed in a way that is not read (convert it to PNG)"
        raise RejectedImageError(f"cannot be decoded: {text}") from None


def target_size(size: tuple[int, int], resolution: int | None, side: str) -> tuple[int, int] | None:
    """(width, height) to scale down to, so that the longest or shortest side is `resolution`.

    None where an image is small enough already, or there is no limit.
    """
    if resolution is None:
        return None
    measured = max(size) if side == "longest" else min(size)
    if measured <= resolution:
        return None
    scale = resolution / measured
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
