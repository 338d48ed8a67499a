"""Bringing MLflow in order without a driver: catching up, ending what was left, rebuilding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UserError
from pipelines.search.driver import driver_runs
from pipelines.search.state import load_state
from pipelines.storage.search_files import Search
from pipelines.tracking.mirror import LedgerMirror
from pipelines.tracking.mlflow_errors import told
from pipelines.tracking.tracking_store import TrackingStore


@dataclass(frozen=True)
class Addresses:
    """Where MLflow shows a search: its parent run, if there is one yet, and the front's table."""

    parent: str | None
    front: str


def catch_up(storage: Path, name: str, store: TrackingStore, base: str) -> Addresses:
    """Logs what MLflow has missed of a search, and ends runs that no driver stands behind.

    A driver that was killed could not end its runs: they would be shown as running for ever. Gives
    where the search is to be seen on the server at `base`.

    Raises:
        UserError: MLflow does not take it; one line that says why, and what to do.
    """
    search = Search(storage, name)
    mirror, runs = LedgerMirror(search, store), driver_runs(search)
    with told(store):
        mirror.read()
        if not runs:
            mirror.interrupt("KILLED")
            mirror.send()
        return Addresses(mirror.parent_url(base), mirror.front_url(base))


def rebuild(search: Search, store: TrackingStore) -> int:
    """Deletes a search's runs from MLflow, logs them anew from the ledger and gives their number.

    Models that were registered from the deleted runs are registered from the new ones.

    Raises:
        UserError: A driver is at work on the search, MLflow does not take it, or a registered
            model's checkpoint or data is gone.
    """
    if driver_runs(search):
        raise UserError(
            f"search {search.name} is running and logs by itself: stop it first", exit_code=1
        )
    with told(store):
        stale = LedgerMirror(search, store)
        stale.read()
        gone = stale.delete_runs()
        fresh = LedgerMirror(search, store)
        fresh.read()
        fresh.interrupt("KILLED")
        fresh.send()
        from pipelines.tracking.registry import renew  # here, as torch takes seconds

        renew(search, load_state(search), store, gone)
        return fresh.num_runs
