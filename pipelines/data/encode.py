"""From a source's bytes to what a beton stores: checked, upright, RGB, resized."""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines.data import turbojpeg
from pipelines.data.beton import MODE_JPG, MODE_RAW
from pipelines.data.images import RejectedImageError, is_upright, open_image, target_size, to_rgb
from pipelines.data.options import PrepareOptions

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

# What libjpeg says of pictures that are whole all the same: they are stored encoded anew.
_HARMLESS = ("extraneous bytes before marker", "Unsupported marker", "Warning: unknown")


@dataclass(frozen=True)
class Encoded:
    """What is stored of one image, and its pixel sums for mean and deviation.

    `sums` [3] and `squares` [3] are of the pixels in 0..255 and their squares, per channel.
    `conversion` says what was done to the source's image, "" where its bytes are kept.
    """

    blob: bytes
    mode: int
    width: int
    height: int
    sums: np.ndarray
    squares: np.ndarray
    conversion: str = ""


def encode(data: bytes | np.ndarray, options: PrepareOptions, *, as_jpg: bool) -> Encoded:
    """Check one image and bring it to its stored form.

    A JPEG that is upright, grey or RGB and small enough keeps its bytes, so nothing is lost a
    second time, after one strict decoding has shown it to be whole.

    Args:
        data: a file's bytes, or pixels [H, W, 3] uint8.
        options: resolution, quality and limits.
        as_jpg: store a JPEG rather than raw pixels.

    Raises:
        RejectedImageError: the reason in words.
    """
    from PIL import Image

    if isinstance(data, np.ndarray):
        image = Image.fromarray(data)
    else:
        image = open_image(data, options.max_pixels)
        if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
            pixels = _strict_pixels(data, image)
            keep = as_jpg and not options.reencode and is_upright(image)
            if pixels is not None and keep and _target(image, options) is None:
                sums, squares = pixel_sums(pixels)
                return Encoded(data, MODE_JPG, image.width, image.height, sums, squares)
            if pixels is not None and is_upright(image):
                image = Image.fromarray(pixels)
        image = to_rgb(image)
    size = _target(image, options)
    if size is not None:
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    pixels = np.asarray(image)
    blob = _jpeg(image, options.quality) if as_jpg else pixels.tobytes()
    sums, squares = pixel_sums(pixels)
    mode = MODE_JPG if as_jpg else MODE_RAW
    return Encoded(blob, mode, image.width, image.height, sums, squares)


def _target(image: "PilImage", options: PrepareOptions) -> tuple[int, int] | None:
    return target_size(image.size, options.resolution, options.resolution_side)


def _strict_pixels(data: bytes, image: "PilImage") -> np.ndarray | None:
    """The pixels of a whole JPEG, or None where Pillow's more patient decoder has to do."""
    if not turbojpeg.available():
        return None
    try:
        return turbojpeg.decode(data, image.width, image.height)
    except turbojpeg.BrokenJpegError as error:
        message = str(error)
        if any(harmless in message for harmless in _HARMLESS):
            return None
        raise RejectedImageError(f"cannot be decoded: {message}") from None


def _jpeg(image: "PilImage", quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def pixel_sums(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per-channel sums of the pixels and of their squares, exact.

    Args:
        pixels: [H, W, 3] uint8.

    Returns:
        Two [3] float64 arrays.
    """
    from PIL import Image

    # Pillow counts levels several times faster than NumPy sums bytes in a wider type.
    histogram = np.array(Image.fromarray(pixels).histogram(), np.float64).reshape(3, 256)
    levels = np.arange(256, dtype=np.float64)
    return histogram @ levels, histogram @ (levels * levels)
