"""FFCV's native library (JPEG decoder and resizer) without FFCV's Python layer.

`import ffcv` costs about 3 s beyond torch's import, and its loader about 10 s more of numba
compilation in every process, because what it compiles holds ctypes addresses and so cannot be
cached on disk. The library itself is loaded in milliseconds.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

from pipelines.errors import UserError

REMEDY = "run `make install` (it needs g++, libopencv-dev and libturbojpeg0-dev)"


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
            f"FFCV is not installed: {REMEDY}, or set the loader to `torchvision`", exit_code=1
        )
    try:
        return ctypes.CDLL(str(found[0]))
    except OSError as error:
        raise UserError(
            f"FFCV's library cannot be loaded ({error}): {REMEDY}, "
            "or set the loader to `torchvision`",
            exit_code=1,
        ) from None
