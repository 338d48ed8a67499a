"""Copies on this machine of folders in an object store: weights, and checkpoints to go on from.

A copy is fetched aside and renamed when it is whole, once for all processes of a machine. Its name
is made of what the store says of each object, so a folder that was written anew is fetched anew.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from filelock import FileLock

from pipelines.errors import UserError
from pipelines.storage.address import parent as parent_of
from pipelines.storage.address import parse_place, without_options
from pipelines.storage.durable import made_aside
from pipelines.storage.hashes import text_hash
from pipelines.storage.store import Entry, ObjectStore
from pipelines.storage.working import cache_root, make_cached

WEIGHTS, RESUMED = "weights", "resumed"


def local_path(place: str | Path) -> Path:
    """Where weights lie on this machine: a path as it is, an address once they are fetched.

    Raises:
        UserError: nothing is there, or it did not arrive.
    """
    found = parse_place(place)  # which knows that file:// is a path as well
    return found if isinstance(found, Path) else local_copy(ObjectStore(found), WEIGHTS)


def local_copy(store: ObjectStore, kind: str, *, only: bool = False) -> Path:
    """The folder, or the one file, of a store on this machine.

    Args:
        store: what is to be copied.
        kind: the part of the cache that it goes to.
        only: whether copies of the folders beside it are deleted then.

    Returns:
        The path of the copy; it has the original's name.

    Raises:
        UserError: nothing is there, or it did not arrive.
    """
    name = without_options(store.address).rpartition("/")[2]
    source, entries = store, store.entries(recursive=True)
    is_folder = bool(entries)
    if not is_folder:
        source = ObjectStore(parent_of(store.address))
        entries = [entry for entry in source.entries() if entry.name == name]
    if not entries:
        raise UserError(f"nothing is at {store.address}: it was deleted, or never there")
    parent = text_hash(store.path.rpartition("/")[0], 16)
    folder = cache_root() / kind / parent / _key(store, entries)
    target = folder / name
    make_cached(folder.parent)
    with FileLock(folder.parent / ".lock"):
        if not target.exists():
            with made_aside(folder) as aside:
                _fetch(source, entries, aside / name if is_folder else aside)
        if only:
            for other in folder.parent.iterdir():
                if other.is_dir() and other != folder:
                    shutil.rmtree(other, ignore_errors=True)
    return target


def _fetch(store: ObjectStore, entries: list[Entry], target: Path) -> None:
    for entry in entries:
        path = target / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        store.download(entry.name, path)
        if path.stat().st_size != entry.size:
            raise UserError(
                f"{store.address}: {entry.name} did not arrive whole: try again", exit_code=1
            )


def _key(store: ObjectStore, entries: list[Entry]) -> str:
    said = "\n".join(f"{entry.name} {entry.size} {entry.mtime}" for entry in entries)
    return text_hash(f"{store.address}\n{said}", 16)
