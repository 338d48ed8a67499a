"""Files that are there, whole, whenever the power goes."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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


@contextmanager
def made_aside(path: Path) -> Iterator[Path]:
    """A place beside `path` to make a file or folder at, which becomes it when the block ends.

    After it `path` is whole, also if the power goes, or it is as it was before.
    """
    # Other hosts, processes and threads may make the same at the same time.
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        yield aside
        (flush_tree if aside.is_dir() else flush)(aside)
        aside.replace(path)
    except BaseException:
        with suppress(OSError):  # the cause is what is told
            _remove(aside)
        raise


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def write_durably(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Writes a file as `made_aside` does."""
    with made_aside(path) as aside, aside.open("wb") as file:
        file.writelines(chunks)


def write_text(path: Path, text: str) -> None:
    """Writes a text file as `made_aside` does, and its folder where that is not there.

    Raises:
        UserError: The target cannot be written.
    """
    write_atomic(path, lambda aside: aside.write_text(as_utf8(text), encoding="utf-8"))


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` make what becomes `path`, and its folder where that is not there.

    Raises:
        UserError: The target cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with made_aside(path) as aside:
            write(aside)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; "
            + ("make room there" if lacks_room(error) else "choose another target"),
            exit_code=1,
        ) from None
