"""The ledger of a search: append-only, fsynced JSON lines, written by the driver alone.

Everything a search knows can be rebuilt from this file. An event counts once its line is
complete: a line torn by a crash is cut off when the ledger is opened again for writing. Each line
ends with its checksum.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from pipelines.errors import UserError
from pipelines.search.steady_clock import steady_time
from pipelines.secrecy.guard import redactor
from pipelines.storage.checked_lines import checked_line, has_checksum, parse_line
from pipelines.storage.room import DiskFull, lacks_room, shortage
from pipelines.storage.search_files import Search

Event = dict[str, Any]


def read_events(path: Path) -> Iterator[Event]:
    """Yields the complete events of a ledger, oldest first; none if there is no file.

    Raises:
        UserError: a line in the middle is damaged, so what follows cannot be trusted.
    """
    if not path.exists():
        return
    checked = False
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # torn by a crash: this event never happened
            try:
                if checked and not has_checksum(line):
                    raise ValueError("the lines before it have checksums")
                checked = has_checksum(line)
                yield parse_event(line)
            except ValueError:
                raise UserError(
                    f"{path} line {number} is damaged: restore the file from a backup, "
                    "or start the search again under another name",
                    exit_code=1,
                ) from None


def parse_event(line: bytes) -> Event:
    """The event of a complete line.

    Raises:
        ValueError: it is none, or not what was written, by its checksum.
    """
    event = parse_line(line)
    if "event" not in event or "time" not in event:
        raise ValueError("no event")
    return event


def _not_written(path: Path, need: int, error: OSError) -> UserError:
    """Why a ledger does not grow, with what was needed and what there is."""
    try:
        free = f"{shutil.disk_usage(path.parent).free} bytes free"
    except OSError as gone:
        free = f"free space unknown, {gone.strerror}"
    line = (
        f"cannot write to {path} ({error.strerror}; {need} bytes needed, {free}): make room there, "
        "or let it be written, and type the same command to go on"
    )
    if lacks_room(error):
        # A tail of the last block may be free where the file would need another one.
        return DiskFull(line, shortage(path, need) or f"{path}: {error.strerror}")
    return UserError(line, exit_code=1)


def _not_opened(path: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write to {path} ({error.strerror}): let it be written, and type the same command "
        "to go on",
        exit_code=1,
    )


def _holder(lock: Path) -> str:
    """Who wrote a name into the lock that is held."""
    host, _, pid = lock.read_text().partition(" ")
    return f", by process {pid} on {host}" if pid else ""


class Ledger:
    """The writing end: holds a lock, so that one search has one driver.

    Raises:
        UserError: another driver holds the ledger.
    """

    def __init__(self, search: Search) -> None:
        try:
            search.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write to {search.folder} ({error.strerror}): set storage to a folder that "
                "can be written"
            ) from None
        self.search, self.path, lock = search, search.ledger, search.driver_lock
        self._lock = FileLock(lock)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"search {search.name} is already running on this storage{_holder(lock)}: "
                "wait for it or interrupt it first",
                exit_code=1,
            ) from None
        except OSError as error:
            raise _not_opened(lock, error) from None
        try:
            self._catch_up()
            self._file = self.path.open("ab", buffering=0)
            lock.write_text(f"{socket.gethostname()} {os.getpid()}")
        except OSError as error:
            self._lock.release()
            raise _not_opened(self.path, error) from None
        except BaseException:
            self._lock.release()
            raise

    def _catch_up(self) -> None:
        """Makes the file what was recorded: without a line that was torn."""
        if not self.path.exists():
            return
        with self.path.open("r+b") as file:
            content = file.read()
            complete = content.rfind(b"\n") + 1
            if complete != len(content):
                file.truncate(complete)

    def append(self, kind: str, **fields: Any) -> Event:
        """Writes one event, without any secret in it, and returns it once it is on disk."""
        return self.append_all([(kind, fields)])[0]

    def append_all(self, events: Sequence[tuple[str, dict[str, Any]]]) -> list[Event]:
        """Writes events that belong together: a process killed meanwhile leaves all or none."""
        now = round(steady_time(), 3)
        made: list[Event] = [
            {"event": kind, "time": now, **redactor().value(fields)} for kind, fields in events
        ]
        self._write(b"".join(map(checked_line, made)))
        return made

    def _write(self, content: bytes) -> None:
        """Returns once it is on disk."""
        rest = memoryview(content)
        before = os.fstat(self._file.fileno()).st_size
        try:
            while rest:  # one write to the kernel, unless the disk is full or a signal comes
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            # All or nothing: to shorten a file takes no room.
            with suppress(OSError):  # what is torn is cut off when the ledger is opened again
                os.ftruncate(self._file.fileno(), before)
            raise _not_written(self.path, len(content), error) from None

    def close(self) -> None:
        """Closes the file and lets another driver in."""
        self._file.close()
        self._lock.release()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
