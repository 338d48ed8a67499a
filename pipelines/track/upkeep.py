"""Bringing MLflow in order without a driver: catching up, ending what was left, rebuilding."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from pipelines.errors import UserError
from pipelines.track.mirror import LedgerMirror, one_line
from pipelines.track.store import TrackingStore

DRIVER_LOCK = "driver.lock"


def catch_up(storage: Path, name: str, store: TrackingStore, base: str) -> str | None:
    """Logs what MLflow has missed of a search, and ends runs that no driver stands behind.

    A driver that was killed could not end its runs: they would be shown as running for ever.

    Args:
        storage: Folder that keeps the searches.
        name: The search.
        store: Where to log.
        base: Address of the MLflow server.

    Returns:
        Address of the parent's page.

    Raises:
        UserError: MLflow is not reachable.
    """
    directory = storage / "searches" / name
    mirror = LedgerMirror(directory, store)
    try:
        if not driver_runs(directory):
            mirror.read()
            mirror.interrupt("KILLED")
            mirror.send()
        else:
            mirror.read()
        return mirror.parent_url(base)
    except Exception as error:  # whatever MLflow or its database throws
        raise UserError(
            f"MLflow at {store.uri} does not answer: {one_line(error)}", exit_code=1
        ) from None


def driver_runs(directory: Path) -> bool:
    """Whether a driver holds the search's ledger."""
    lock = FileLock(directory / DRIVER_LOCK)
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def rebuild(storage: Path, name: str, store: TrackingStore) -> int:
    """Deletes a search's runs from MLflow and logs them anew from the ledger.

    Returns:
        How many runs were logged.

    Raises:
        UserError: A driver is at work on the search.
    """
    directory = storage / "searches" / name
    if driver_runs(directory):
        raise UserError(f"search {name} is running and logs by itself: stop it first", exit_code=1)
    stale = LedgerMirror(directory, store)
    stale.read()
    stale.delete_runs()
    fresh = LedgerMirror(directory, store)
    fresh.read()
    fresh.interrupt("KILLED")
    fresh.send()
    return fresh.num_runs
