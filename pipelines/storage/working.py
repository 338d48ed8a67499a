"""The folder of this machine in which a search at an address is worked on and looked at.

What lies in it is a copy, or can be made again: it may be deleted whenever no driver runs. A file
in it says which address it stands for, so that whoever is given a search's folder knows.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from platformdirs import user_cache_path

from pipelines.errors import UserError
from pipelines.storage.address import is_address, parse_storage, without_options
from pipelines.storage.durable import write_text
from pipelines.storage.hashes import text_hash
from pipelines.storage.store import ObjectStore

MARKER_NAME = "store.json"
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def cache_root() -> Path:
    """Where copies of what lies in object stores are kept: `TOKENPOOL_CACHE`, or the user's."""
    named = os.environ.get("TOKENPOOL_CACHE")
    return Path(named).absolute() if named else user_cache_path("tokenpool")


def make_cached(folder: Path) -> None:
    """Makes a folder below `cache_root`.

    Raises:
        UserError: it cannot be made.
    """
    try:
        cache_root().mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}): set TOKENPOOL_CACHE to a folder of this "
            "machine that can be written"
        ) from None


def local_root(storage: str | Path) -> Path:
    """The folder of this machine that stands for a place of searches; nothing is made.

    Args:
        storage: a folder, which stands for itself, or an address.
    """
    if not is_address(storage):
        return Path(storage)
    address = str(storage)
    # The same name at another endpoint is another bucket.
    endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
    key = text_hash(f"{address} {endpoint}", 12)
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", without_options(address)).strip("-")[:60]
    return cache_root() / "searches-at" / f"{readable}-{key}"


def open_root(storage: str | Path) -> Path:
    """`local_root`, made and marked where the place is an address.

    Raises:
        UserError: a key stands in the address, it is none, or the folder cannot be made.
    """
    try:
        place = parse_storage(storage)
    except ValueError as error:
        raise UserError(str(error)) from None
    root = local_root(place)
    if isinstance(place, Path):
        return root
    marker = root / MARKER_NAME
    if not marker.exists():
        make_cached(root)
        write_text(marker, json.dumps({"address": place}))
    return root


def store_of(root: Path) -> ObjectStore | None:
    """The store that a root stands for; None where it stands for itself."""
    try:
        text = (root / MARKER_NAME).read_text()
    except OSError:
        return None
    return ObjectStore(json.loads(text)["address"])
