"""The native decoders: FFCV's library, and `decode_rows.c`, our loop over a batch around it.

Ours is compiled once per kind of machine, by `prepare` or else by the first loader, in about a
second, and kept in the user's cache directory. Called through ctypes it runs without the GIL, so a
training loop that keeps Python busy does not slow the decoding threads down.

FFCV's library is loaded in milliseconds, without its Python layer: `import ffcv` costs about 3 s
beyond torch's import, and its loader about 10 s more of numba compilation in every process, because
what it compiles holds ctypes addresses and so cannot be cached on disk.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from pipelines.errors import UserError
from pipelines.storage.durable import made_aside
from pipelines.storage.hashes import text_hash

_REMEDY = "run `make install` (it needs g++, libopencv-dev and libturbojpeg0-dev)"
_SOURCE = Path(__file__).with_name("decode_rows.c")
_COMPILERS = ("cc", "gcc", "clang")
# -march=native makes the resizing twice as fast; the library is kept per kind of processor.
_FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")
_LIBRARIES = ("-ljpeg", "-lm")

_pointer = ctypes.c_void_p
_ROWS_ARGUMENTS: tuple[Any, ...] = (
    _pointer, _pointer, ctypes.c_int64, *[_pointer] * 6, ctypes.c_int32, _pointer, _pointer,
    ctypes.c_int32, ctypes.c_int32, _pointer, _pointer,
)  # fmt: skip


@cache
def ffcv_library() -> ctypes.CDLL:
    """Load `_libffcv`.

    Raises:
        UserError: FFCV is not installed, or a system library it needs is missing.
    """
    spec = importlib.util.find_spec("ffcv")
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = sorted(path for folder in folders for path in Path(folder).glob("_libffcv*.so"))
    if not found:
        raise UserError(
            f"FFCV is not installed: {_REMEDY}, or set the loader to `torchvision`", exit_code=1
        )
    try:
        return ctypes.CDLL(str(found[0]))
    except OSError as error:
        raise UserError(
            f"FFCV's library cannot be loaded ({error}): {_REMEDY}, "
            "or set the loader to `torchvision`",
            exit_code=1,
        ) from None


@cache
def row_decoder() -> ctypes.CDLL:
    """The library with `tokenpool_decode_rows` and `tokenpool_decode_region`.

    Raises:
        UserError: it cannot be built here, for want of a C compiler or of libjpeg's headers.
    """
    try:
        library = ctypes.CDLL(str(built()))
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(
            f"the JPEG decoder cannot be built ({_line(error)}): {_REMEDY}, "
            "or set the loader to `torchvision`",
            exit_code=1,
        ) from None
    library.tokenpool_decode_rows.argtypes = _ROWS_ARGUMENTS
    library.tokenpool_decode_rows.restype = None
    return library


def whole_decoder() -> int:
    """Address of FFCV's decoder of whole pictures.

    Raises:
        UserError: FFCV is not installed.
    """
    address = ctypes.cast(ffcv_library().imdecode, _pointer).value
    assert address is not None
    return address


def native_available() -> bool:
    """Whether FFCV's library, and ours around it, can be used on this machine."""
    try:
        return bool(whole_decoder()) and row_decoder() is not None
    except UserError:
        return False


def built() -> Path:
    """The shared library, compiled where it is not there yet.

    Raises:
        OSError: no compiler, or no place to keep the result.
        subprocess.SubprocessError: it does not compile.
    """
    kind = f"{platform.machine()} {platform.libc_ver()} {_processor()} {_FLAGS} {_LIBRARIES}"
    digest = text_hash(_SOURCE.read_bytes() + kind.encode(), 16)
    path = user_cache_path("tokenpool") / "native" / f"decode_rows-{digest}.so"
    if path.exists():
        _check_owner(path)
        return path
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise OSError("no C compiler is installed")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        # A home that cannot be written to: compiled for this user and boot.
        path = Path(tempfile.gettempdir(), f"tokenpool-native-{os.getuid()}", path.name)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        status = path.parent.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise OSError(f"{path.parent} is somebody else's") from None
        if path.exists():
            return path
    with made_aside(path) as aside:  # several workers of a node may start at once
        subprocess.run(
            [compiler, *_FLAGS, "-o", str(aside), str(_SOURCE), *_LIBRARIES],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
    return path


def _check_owner(path: Path) -> None:
    """Raises OSError if somebody else may have put this library where it is to be loaded."""
    for one in (path, path.parent):
        status = one.stat()
        if status.st_uid not in (os.getuid(), 0) or status.st_mode & stat.S_IWOTH:
            raise OSError(f"others can write to {one}: chmod o-w it, or delete it")


def _processor() -> str:
    """What this processor can do: a cache directory may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _line(error: Exception) -> str:
    """What went wrong, on one line."""
    if isinstance(error, subprocess.CalledProcessError):
        found = [line for line in error.stderr.splitlines() if "error" in line]
        return found[0].strip() if found else str(error)
    return " ".join(str(error).split())
