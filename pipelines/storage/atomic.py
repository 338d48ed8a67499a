"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from pipelines.errors import UserError
from pipelines.storage.room import lacks_room
from pipelines.streams import as_utf8


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
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; "
            + ("make room there" if lacks_room(error) else "choose another target"),
            exit_code=1,
        ) from None
