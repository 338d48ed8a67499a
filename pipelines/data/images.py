"""Opening whatever image a user has: refused with a reason, or upright 8-bit RGB."""

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # JPEG includes MPO
_EXIF_ORIENTATION = 0x0112
_LARGEST_SIDE = 65_535  # a beton has 16 bits for it


class RejectedImageError(ValueError):
    """An image that must not get into a beton; the message is the reason."""


def open_image(data: bytes, max_pixels: int) -> "PilImage":
    """Read an image's header and check its size, before any pixel is decoded.

    Raises:
        RejectedImageError: empty, not an image, of no size, or too large to be decoded safely.
    """
    from PIL import Image

    if not data:
        raise RejectedImageError("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own bomb warning: the limit here is ours
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise RejectedImageError(f"decompression bomb: over {max_pixels} pixels") from None
    except Exception as error:
        # Pillow's parsers raise what they like on hostile bytes (struct.error, SyntaxError, …).
        if _says_no_size(data):
            raise RejectedImageError("zero-sized") from None
        raise RejectedImageError(f"not an image ({type(error).__name__})") from None
    width, height = image.size
    if width < 1 or height < 1:
        raise RejectedImageError(f"zero-sized: {width}×{height}")
    if width * height > max_pixels:
        raise RejectedImageError(f"decompression bomb: {width}×{height} is over {max_pixels}")
    if max(width, height) > _LARGEST_SIDE:
        raise RejectedImageError(f"{width}×{height} has a side over {_LARGEST_SIDE} pixels")
    return image


def _says_no_size(data: bytes) -> bool:
    """Whether a header that Pillow refuses has a width or height of nothing, by format."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return bytes(4) in (data[16:20], data[20:24])
    if data.startswith(b"GIF8"):
        return bytes(2) in (data[6:8], data[8:10])
    if data.startswith(b"BM"):
        return bytes(4) in (data[18:22], data[22:26])
    if data.startswith(b"\xff\xd8"):
        at = 2
        while at + 9 <= len(data) and data[at] == 0xFF:
            if data[at + 1] in (0xC0, 0xC1, 0xC2):  # a frame's header: height, then width
                return bytes(2) in (data[at + 5 : at + 7], data[at + 7 : at + 9])
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return False


def is_upright(image: "PilImage") -> bool:
    """Whether the file's EXIF data asks for no rotation."""
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1) in (0, 1)
    except Exception:
        return True  # broken EXIF is no reason to refuse the pixels, and says nothing to obey


def to_rgb(image: "PilImage") -> "PilImage":
    """Decode, turn upright and convert to 8-bit RGB.

    Transparent pixels become white, 16-bit grey is scaled to 8 bits (not clipped), of an animation
    the first frame is taken.

    Raises:
        RejectedImageError: truncated or broken data, or a pixel format without a meaning in RGB.
    """
    from PIL import Image, ImageOps

    try:
        image.load()
        if not is_upright(image):
            image = ImageOps.exif_transpose(image)
        mode = image.mode
        if mode == "RGB":
            return image
        if mode.startswith("I"):
            grey = np.asarray(image).astype(np.int64)
            if grey.min() < 0 or grey.max() > 65_535:
                raise RejectedImageError("32-bit integer pixels beyond 16 bits")
            return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
        if mode == "F":
            raise RejectedImageError("floating-point pixels have no fixed range")
        if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, rgba).convert("RGB")
        return image.convert("RGB")
    except RejectedImageError:
        raise
    except Exception as error:
        raise RejectedImageError(f"cannot be decoded: {error}") from None


def target_size(size: tuple[int, int], resolution: int | None, side: str) -> tuple[int, int] | None:
    """(width, height) to scale down to, or None where an image is small enough already.

    Args:
        size: (width, height).
        resolution: limit in pixels, or None for no limit.
        side: which side it limits, "longest" or "shortest".
    """
    if resolution is None:
        return None
    measured = max(size) if side == "longest" else min(size)
    if measured <= resolution:
        return None
    scale = resolution / measured
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
