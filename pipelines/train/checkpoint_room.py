"""A rank's part of a checkpoint, written once the disks have room for it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.storage.room import MINUTES, wait_for_room
from pipelines.train.checkpoint import checkpoint_folders
from pipelines.train.life_signs import signs

_PREFIX, _FRESH_SECONDS = "tokenpool-checkpoint-", 600.0
# Before the first checkpoint of a job nobody knows how large they are.
_FIRST_BYTES = 32_000_000
_MARGIN_BYTES = 1_000_000  # for reports, links and what other jobs write


@contextmanager
def part_of_checkpoint(
    write: Callable[[Path], None], directory: Path | None, minutes: float = MINUTES
) -> Iterator[Path]:
    """A temporary folder with this rank's part, once it fits there and into the job's folder.

    What fails midway cannot be tried again by one rank alone, as they write together. So it is
    not begun before there is room.

    Args:
        write: fills a folder with it.
        directory: of the job; None where checkpoints go to an object store.
        minutes: how long a full disk is waited for.

    Raises:
        DiskFull: there is no room after that.
    """
    before = [] if directory is None else checkpoint_folders(directory)[:1]
    need = max([_size(folder) for folder in before], default=_FIRST_BYTES)
    _wait(Path(tempfile.gettempdir()), need + _MARGIN_BYTES, minutes)
    with _own_folder() as own:
        write(Path(own))
        if directory is not None:
            _wait(directory, _size(Path(own)) + _MARGIN_BYTES, minutes)
        yield Path(own)


@contextmanager
def _own_folder() -> Iterator[str]:
    """A temporary folder, locked; those of processes that were killed are deleted first."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _FRESH_SECONDS:  # or its lock is yet to come
                with _locked(left):
                    shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as own, _locked(Path(own)):
        yield own


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The kernel lets go of it when the process ends, however; OSError where another has it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _wait(place: Path, need: int, minutes: float) -> None:
    wait_for_room(place, need, signs.wait, minutes)
    signs.wait("")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
