"""Keeps a search's folder on this machine in step with the object store it stands for.

Where a folder stands for itself nothing is done.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from pipelines.search.driver import driver_runs_here
from pipelines.storage.durable import write_atomic
from pipelines.storage.search_files import SEARCHES, Search
from pipelines.storage.segments import FOLDER, listed, pull
from pipelines.storage.store import ObjectStore
from pipelines.storage.working import store_of


def refresh(search: Search) -> None:
    """Fetches what a search's folder lacks: the ledger, a request to stop, imported fronts.

    A driver on this machine has the newest of all; its folder is left alone.

    Raises:
        UserError: the store does not answer, or its ledger is damaged.
    """
    store = search.store
    if store is None or not (search.folder.exists() or listed(store)):
        return
    search.folder.mkdir(parents=True, exist_ok=True)
    with pulling(search):
        if driver_runs_here(search):
            return
        pull(store, search.ledger)
        fetch_request(search, store)
        fetch_outside(search, store)


@contextmanager
def pulling(search: Search) -> Iterator[None]:
    """Nobody else fetches into the folder meanwhile."""
    with FileLock(search.folder / ".pull.lock"):
        yield


def fetch_request(search: Search, store: ObjectStore) -> None:
    """Makes the request to stop in a search's folder that of the store: there, or not."""
    path = search.stop_request
    content = store.read(path.name)
    there = None
    with suppress(FileNotFoundError):  # another thread withdraws it
        there = path.read_bytes()
    if content is None:
        path.unlink(missing_ok=True)
    elif there != content:
        write_atomic(path, lambda aside: aside.write_bytes(content))


def fetch_outside(search: Search, store: ObjectStore) -> None:
    """Fetches the fronts that were imported for comparison."""
    for entry in store.entries(search.outside.name):
        path = search.folder / entry.name
        if not path.exists() or path.stat().st_size != entry.size:
            path.parent.mkdir(exist_ok=True)
            store.download(entry.name, path)


def send(search: Search, *names: str) -> None:
    """Puts files of a search's folder into the store; those that are there."""
    store = search.store
    if store is None:
        return
    for name in names:
        if (search.folder / name).is_file():
            store.upload(search.folder / name, name)


def send_outside(search: Search) -> None:
    """Puts the fronts that were imported for comparison into the store."""
    send(search, *(f"{search.outside.name}/{path.name}" for path in search.outside.glob("*.json")))


def names_in_store(root: Path) -> list[str] | None:
    """The searches at the address that a root stands for; None where it stands for itself."""
    store = store_of(root)
    if store is None:
        return None
    names = store.folders(SEARCHES)
    return [name for name in names if re.fullmatch(r"[\w.-]+", name) and _begun(store, name)]


def _begun(store: ObjectStore, name: str) -> bool:
    return any(entry.size for entry in store.entries(f"{SEARCHES}/{name}/{FOLDER}"))
