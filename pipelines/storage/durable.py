"""Files that are there, whole, whenever the power goes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def flush(path: Path) -> None:
    """Has the disk take all of a file, or of a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems know nothing of the kind for folders.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(handle)


def flush_tree(folder: Path) -> None:
    """`flush` for a folder and all that is in it."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            flush(Path(place, name))
        flush(Path(place))


def write_durably(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write aside, fsync, rename: after it, `path` is whole or as it was before."""
    with durable_file(path) as file:
        for chunk in chunks:
            file.write(chunk)


@contextmanager
def durable_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that becomes `path` when the block ends, whole, or not at all."""
    aside = path.with_name(path.name + ".partial")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
