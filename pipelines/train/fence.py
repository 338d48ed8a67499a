"""One writer at a time in a job's folder: who came last; who was before it finds itself fenced off.

A host that is cut off goes on training while the job is started again elsewhere. Once it can be
reached again, or where it reaches the storage all the time, it must not write over what is newer.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from pipelines.errors import UserError
from pipelines.storage.durable import write_durably
from pipelines.storage.store import ObjectStore

WRITER_NAME = "writer"


class Fence:
    """Kept by a job's first rank.

    Args:
        read: what is noted of the writer, if anything.
        write: notes it.
    """

    def __init__(self, read: Callable[[], bytes | None], write: Callable[[bytes], None]) -> None:
        self._read, self._write = read, write
        self._token = b""

    def take(self) -> None:
        """From now on this process is the one that writes; to be called before it reads."""
        if not self._token:
            self._token = secrets.token_hex(8).encode()
            self._write(self._token)

    def check(self) -> None:
        """To be called before each write.

        Raises:
            UserError: another process has taken this one's place.
        """
        if self._token and self._read() != self._token:
            raise UserError("this job was started anew elsewhere, and goes on there", exit_code=1)


def folder_fence(directory: Path) -> Fence:
    """For a job's folder."""
    path = directory / WRITER_NAME

    def read() -> bytes | None:
        return path.read_bytes() if path.exists() else None

    def write(token: bytes) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        write_durably(path, [token])

    return Fence(read, write)


def store_fence(store: ObjectStore) -> Fence:
    """For a job's folder in an object store."""
    return Fence(lambda: store.read(WRITER_NAME), lambda token: store.write(WRITER_NAME, token))
