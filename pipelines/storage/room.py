"""Room on a disk: who lacks how much of it where, in one line, and waiting until there is some."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from pipelines.errors import UserError

MINUTES = 15.0
"""A full disk is waited for so long."""
_PAUSE_SECONDS = 2.0
_MEGABYTE = 1e6

Say = Callable[[str], None]


class DiskFull(UserError):
    """A file system has no room for what is to be written."""

    def __init__(self, message: str, shortage: str = "") -> None:
        super().__init__(message, exit_code=1)
        self.shortage = shortage or message

    def __reduce__(self) -> tuple[type[DiskFull], tuple[str, str]]:
        return type(self), (str(self), self.shortage)


def lacks_room(error: BaseException) -> bool:
    """Whether an error says that a disk, or the user's share of it, is full."""
    return _number(error) in (errno.ENOSPC, errno.EDQUOT)


def cannot_be_written(error: BaseException) -> bool:
    """Whether an error says that a file system takes no writes at all."""
    return _number(error) == errno.EROFS


def in_words(error: BaseException) -> str:
    """What a file system refused, and where; an error of ours as it is."""
    number = None if isinstance(error, DiskFull) else _number(error)
    if number is None:
        return str(error)
    quoted = re.search("'(/[^']*)'", str(error))  # pyarrow's errors have no file's name
    place = getattr(error, "filename", None) or (quoted and quoted[1])
    if isinstance(error, shutil.Error):
        place = error.args[0][0][1]
    return os.strerror(number) + (f": {place}" if place else "")


def _number(error: BaseException) -> int | None:
    """The system's number of an error, also where copying a folder ended with several."""
    if isinstance(error, shutil.Error):
        numbers = re.findall(r"\[Errno (\d+)\]", str(error))
        return int(numbers[0]) if numbers else None
    return error.errno if isinstance(error, OSError) else None


def file_system(place: Path) -> Path:
    """Where the file system is mounted that a place, there or not yet, lies on."""
    path = place.absolute()
    while not os.path.ismount(path):
        path = path.parent
    return path


def shortage(place: Path, need: int) -> str | None:
    """What is missing for `need` bytes at a place, in words; None if they fit."""
    root = file_system(place)
    free = shutil.disk_usage(root).free
    if free < need:
        return (
            f"the disk at {root} is full: {_size(need)} needed, {_size(free)} free, "
            f"{_size(need - free)} missing"
        )
    counts = os.statvfs(root)
    if counts.f_files and not counts.f_favail:
        return f"the disk at {root} is full: it has no room for another file (inodes)"
    return None


def _size(count: int) -> str:
    return f"{count} bytes" if count < _MEGABYTE else f"{count / _MEGABYTE:.1f} MB"


def wait_for_room(
    place: Path,
    need: int,
    waits: Say,
    minutes: float = MINUTES,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Returns once `need` bytes fit at a place.

    Args:
        place: a file or folder, there or not yet.
        need: bytes.
        waits: told again and again what is missing, for as long as it is.
        minutes: how long it waits at most.
        clock: seconds, never going back.
        sleep: lets so many seconds go by.

    Raises:
        DiskFull: they do not fit after that.
    """
    begun = clock()
    while (missing := shortage(place, need)) is not None:
        if clock() - begun >= 60 * minutes:
            raise DiskFull(f"{missing}: make room there; waited {minutes:g} min for it")
        waits(missing)
        sleep(_PAUSE_SECONDS)


class UntilRoom:
    """Writes again and again what a full disk does not take, as long as that is worth while.

    Args:
        say: told once that it waits, and once that it goes on.
        ended: whether somebody wants no more waiting.
        minutes: how long it waits at most.
        clock: seconds, never going back.
        sleep: lets so many seconds go by.
    """

    def __init__(
        self,
        say: Say,
        ended: Callable[[], bool],
        minutes: float = MINUTES,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._say, self._ended, self._minutes = say, ended, minutes
        self._clock, self._sleep = clock, sleep
        self._given_up = False

    def __call__(self, write: Callable[[], None]) -> None:
        """Calls `write` until it raises no `DiskFull`.

        Raises:
            DiskFull: it still does after all that time.
        """
        begun: float | None = None
        while True:
            try:
                write()
                break
            except DiskFull as error:
                if begun is None and not self._given_up:
                    begun = self._clock()
                    self._say(f"{error.shortage}: waiting for room, {self._minutes:g} min at most")
                if begun is None or self._ended() or self._clock() - begun >= 60 * self._minutes:
                    self._given_up = True  # what is still to be recorded of the end is not
                    raise
                self._sleep(_PAUSE_SECONDS)
        if begun is not None:
            self._say("there is room again: going on")
