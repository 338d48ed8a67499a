"""Where a Ray of this machine keeps its sockets and logs, and what of that is deleted again."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from cluster.probe import ClusterError

_LONGEST_BASE = 24
_KEPT_SECONDS = 86400.0


def private_folder() -> Path:
    """A folder of this user alone, for all its local instances.

    In its own, /tmp/ray, Ray lets every user of the machine write: another could put a socket of
    theirs in the place of one that workers hand their objects to.

    Raises:
        ClusterError: the folder is somebody else's, or open to others.
    """
    base = tempfile.gettempdir()
    if len(base) > _LONGEST_BASE:  # the path of a socket is bounded
        base = "/tmp"
    folder = Path(base, f"tokenpool-ray-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise ClusterError(f"cannot make {folder}: {error.strerror}") from None
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077:
        raise ClusterError(
            f"{folder} is somebody else's or open to others: remove it, or set TMPDIR to a folder "
            "of your own"
        )
    return folder / "r"  # Ray opens the folder it is given to everybody


@contextmanager
def session_folder(folder: Path) -> Iterator[None]:
    """Holds the folder of one instance for as long as the block runs, and deletes it after it.

    What Ray wrote is kept for a day where the block fails; so is what a process left that was
    killed. The next instance deletes what is older and in nobody's use.

    Args:
        folder: the folder of the instance, within the private one.
    """
    _delete_old(folder.parent)
    handle = os.open(folder, os.O_RDONLY)
    failed = False
    try:
        with suppress(OSError):  # a network file system may have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)  # the kernel lets go of it however a process ends
        yield
    except Exception:
        failed = True
        raise
    finally:
        if not failed:
            shutil.rmtree(folder, ignore_errors=True)  # Ray's agents live on for a moment
        os.close(handle)


def _delete_old(instances: Path) -> None:
    for folder in instances.glob("session_20*"):
        with suppress(OSError):  # another process deletes it as well
            if time.time() - folder.lstat().st_mtime < _KEPT_SECONDS:
                continue
            handle = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not _in_use(folder):
                    shutil.rmtree(folder)
            finally:
                os.close(handle)


def _in_use(folder: Path) -> bool:
    """Whether a process was started with it: Ray's own are, also where nobody holds its lock."""
    return any(
        str(folder) in " ".join(process.info["cmdline"] or ())
        for process in psutil.process_iter(["cmdline"])
    )
