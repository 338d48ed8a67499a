"""Whether a driver is at work on a search, on this machine or elsewhere."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from pipelines.search.ledger import DRIVER_LOCK
from pipelines.storage.claim import live_driver
from pipelines.storage.working import search_store


def driver_runs(directory: Path) -> bool:
    """Whether a driver holds the search's ledger.

    One that was killed on another machine than this holds a ledger in an object store for a minute
    more.
    """
    if driver_runs_here(directory):
        return True
    store = search_store(directory)
    return store is not None and live_driver(store) is not None


def driver_runs_here(directory: Path) -> bool:
    """Whether a driver holds the lock in a search's folder."""
    try:
        # To read only: whoever looks may have no right to write there.
        handle = os.open(directory / DRIVER_LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
