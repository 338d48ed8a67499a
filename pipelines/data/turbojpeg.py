"""libjpeg-turbo by ctypes: strict decoding that reports what others pass over in silence.

Pillow ignores libjpeg's warnings, FFCV ignores its decoder's result; a broken picture then becomes
a half-grey or stale sample. The library is there wherever FFCV is, which links to it.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache

import numpy as np

_RGB, _CMYK = 0, 11
_ACCURATE_DCT, _LIMIT_SCANS = 4096, 32768
_local = threading.local()


class BrokenJpegError(ValueError):
    """The message is libjpeg-turbo's."""


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libturbojpeg.so.0")
    except OSError:
        return None
    library.tjInitDecompress.restype = ctypes.c_void_p
    library.tjGetErrorStr2.restype = ctypes.c_char_p
    library.tjGetErrorStr2.argtypes = [ctypes.c_void_p]
    library.tjDecompress2.argtypes = [
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p,
        ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int,
    ]  # fmt: skip
    return library


def available() -> bool:
    """Whether libjpeg-turbo's TurboJPEG interface is installed."""
    return _library() is not None


def decode(
    data: bytes,
    width: int,
    height: int,
    *,
    cmyk: bool = False,
    flags: int = _ACCURATE_DCT | _LIMIT_SCANS,
) -> np.ndarray:
    """Decode a JPEG of known size to [height, width, 3] uint8 RGB, or [height, width, 4] as stored.

    Args:
        data: the file.
        width: pixels, as its header says.
        height: likewise.
        cmyk: it has four components, as TurboJPEG does not turn ink to light.
        flags: TurboJPEG's, by default the accurate transform and at most 500 scans.

    Raises:
        BrokenJpegError: any error or warning.
        RuntimeError: the library is not installed.
    """
    library = _library()
    if library is None:
        raise RuntimeError("libturbojpeg is not installed")
    handle = getattr(_local, "handle", None)
    if handle is None:
        handle = _local.handle = library.tjInitDecompress()
    out = np.empty((height, width, 4 if cmyk else 3), np.uint8)
    kind = _CMYK if cmyk else _RGB
    code = library.tjDecompress2(
        handle, data, len(data), out.ctypes.data, width, 0, height, kind, flags
    )
    if code != 0:
        raise BrokenJpegError(library.tjGetErrorStr2(handle).decode("ascii", "replace"))
    return out
