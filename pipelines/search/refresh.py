"""Keeps a search's folder on this machine in step with the object store it stands for.

Where a folder stands for itself nothing is done.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from pipelines.search.driver import driver_runs_here
from pipelines.search.ledger import LEDGER_NAME
from pipelines.storage.durable import write_atomic
from pipelines.storage.segments import FOLDER, listed, pull
from pipelines.storage.store import ObjectStore
from pipelines.storage.working import search_store, store_of

STOP_NAME = "stop.json"
OUTSIDE_FOLDER = "outside"


def refresh(directory: Path) -> None:
    """Fetches what a search's folder lacks: the ledger, a request to stop, imported fronts.

    A driver on this machine has the newest of all; its folder is left alone.

    Raises:
        UserError: the store does not answer, or its ledger is damaged.
    """
    store = search_store(directory)
    if store is None or not (directory.exists() or listed(store)):
        return
    directory.mkdir(parents=True, exist_ok=True)
    with pulling(directory):
        if driver_runs_here(directory):
            return
        pull(store, directory / LEDGER_NAME)
        fetch_request(directory, store)
        fetch_outside(directory, store)


@contextmanager
def pulling(directory: Path) -> Iterator[None]:
    """Nobody else fetches into the folder meanwhile."""
    with FileLock(directory / ".pull.lock"):
        yield


def fetch_request(directory: Path, store: ObjectStore) -> None:
    """Makes the request to stop in a search's folder that of the store: there, or not."""
    path, content = directory / STOP_NAME, store.read(STOP_NAME)
    if content is None:
        path.unlink(missing_ok=True)
    elif not path.exists() or path.read_bytes() != content:
        write_atomic(path, lambda aside: aside.write_bytes(content))


def fetch_outside(directory: Path, store: ObjectStore) -> None:
    """Fetches the fronts that were imported for comparison."""
    for entry in store.entries(OUTSIDE_FOLDER):
        path = directory / entry.name
        if not path.exists() or path.stat().st_size != entry.size:
            path.parent.mkdir(exist_ok=True)
            store.download(entry.name, path)


def send(directory: Path, *names: str) -> None:
    """Puts files of a search's folder into the store; those that are there."""
    store = search_store(directory)
    if store is None:
        return
    for name in names:
        if (directory / name).is_file():
            store.upload(directory / name, name)


def send_outside(directory: Path) -> None:
    """Puts the fronts that were imported for comparison into the store."""
    paths = (directory / OUTSIDE_FOLDER).glob("*.json")
    send(directory, *(f"{OUTSIDE_FOLDER}/{path.name}" for path in paths))


def names_in_store(root: Path) -> list[str] | None:
    """The searches at the address that a root stands for; None where it stands for itself."""
    store = store_of(root)
    if store is None:
        return None
    names = store.folders("searches")
    return [name for name in names if re.fullmatch(r"[\w.-]+", name) and _begun(store, name)]


def _begun(store: ObjectStore, name: str) -> bool:
    return any(entry.size for entry in store.entries(f"searches/{name}/{FOLDER}"))
