"""Builds and binds `jpeg_region.c`: decoding only the part of a JPEG that a crop needs.

A random-resized crop covers about half of its picture on average, yet FFCV decodes all of it. The
file is compiled once per machine (half a second) and kept in the user's cache directory. Where no
compiler or libjpeg headers are at hand, whole pictures are decoded instead: slower, to the same
pixels.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("jpeg_region.c")
_FLAGS = ("-O2", "-shared", "-fPIC")
_COMPILERS = ("cc", "gcc", "clang")


@cache
def region_function() -> int | None:
    """Address of `tokenpool_decode_region`, or None where it cannot be built."""
    try:
        library = ctypes.CDLL(str(_built()))
        address = ctypes.cast(library.tokenpool_decode_region, ctypes.c_void_p).value
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        log.warning("crops are decoded from whole pictures, which is slower: %s", _line(error))
        return None
    return address


def _built() -> Path:
    """The shared library, compiled where it is not there yet.

    Raises:
        OSError: no compiler, or no place to keep the result.
        subprocess.CalledProcessError: it does not compile, for want of jpeglib.h most likely.
    """
    source = _SOURCE.read_bytes()
    kind = f"{platform.machine()} {' '.join(platform.libc_ver())} {' '.join(_FLAGS)}"
    name = f"jpeg_region-{hashlib.sha256(source + kind.encode()).hexdigest()[:16]}.so"
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "tokenpool" / "native"
    path = folder / name
    if path.exists():
        return path
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise OSError("no C compiler is installed")
    folder.mkdir(parents=True, exist_ok=True)
    # Made aside and renamed, for several workers of a node may start at once.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / name
        subprocess.run(
            [compiler, *_FLAGS, "-o", str(made), str(_SOURCE), "-ljpeg"],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        made.replace(path)
    return path


def _line(error: Exception) -> str:
    """What went wrong, on one line."""
    if isinstance(error, subprocess.CalledProcessError):
        found = [line for line in error.stderr.splitlines() if "error" in line]
        return found[0].strip() if found else str(error)
    return " ".join(str(error).split())
