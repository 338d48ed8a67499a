"""Whether a driver is at work on a search, on this machine or elsewhere."""

from __future__ import annotations

import fcntl
import os

from pipelines.storage.claim import live_driver
from pipelines.storage.search_files import Search


def driver_runs(search: Search) -> bool:
    """Whether a driver holds the search's ledger.

    One that was killed on another machine than this holds a ledger in an object store for a minute
    more.
    """
    if driver_runs_here(search):
        return True
    store = search.store
    return store is not None and live_driver(store) is not None


def driver_runs_here(search: Search) -> bool:
    """Whether a driver holds the lock in a search's folder."""
    try:
        # To read only: whoever looks may have no right to write there.
        handle = os.open(search.driver_lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
