"""Files that are there, whole, whenever the power goes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pipelines.errors import UserError
from pipelines.storage.room import lacks_room
from pipelines.streams import as_utf8


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


def write_text(path: Path, text: str) -> None:
    """Writes a text file aside and makes it visible whole.

    Raises:
        UserError: The target cannot be written.
    """
    write_atomic(path, lambda aside: aside.write_text(as_utf8(text), encoding="utf-8"))


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file beside `path`, syncs it to disk and renames it.

    Raises:
        UserError: The target cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        flush(aside)
        aside.replace(path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; "
            + ("make room there" if lacks_room(error) else "choose another target"),
            exit_code=1,
        ) from None
