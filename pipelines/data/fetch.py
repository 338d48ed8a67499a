"""Prepared data at an address: fetched to each machine once, before it is first used there.

Betons are read by memory mapping, so what trains needs them on a disk. Nodes that share a folder
share its copy; others have one each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from pipelines.data.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    Manifest,
    load_manifest,
    parse_manifest,
)
from pipelines.errors import UserError
from pipelines.storage.address import open_filesystem
from pipelines.storage.durable import made_aside

_CHUNK = 1 << 22


def fetch(path: Path, address: str | None) -> Manifest:
    """Makes sure that the prepared data of an address lies at a path of this machine.

    Files come in aside, are checked against the manifest, and appear complete or not at all; the
    manifest comes last. What is there already is not fetched again. Several processes may ask at
    the same time. Without an address the data is at the path already.

    Raises:
        UserError: nothing is at the address, other data is at the path, or a file does not arrive
            as its manifest says.
    """
    if address is None:
        return load_manifest(path)
    path.mkdir(parents=True, exist_ok=True)
    with FileLock(path / ".fetch.lock"), made_aside(path / MANIFEST_NAME) as aside:
        _copy(address, MANIFEST_NAME, aside)
        there = aside.read_bytes()
        if (path / MANIFEST_NAME).exists():
            if (path / MANIFEST_NAME).read_bytes() != there:
                raise UserError(
                    f"{path} holds other data than {address}: delete it, or set data.path to "
                    "another folder"
                )
            return load_manifest(path)
        try:
            manifest = parse_manifest(there)
        except ValueError as error:
            raise UserError(
                f"{address}/{MANIFEST_NAME} is not a manifest of prepared data: {error}"
            ) from None
        for split in manifest.splits.values():
            _fetch_file(address, path / split.file, split.sha256)
        _copy(address, INDEX_NAME, path / INDEX_NAME)
    return load_manifest(path)


def _fetch_file(address: str, target: Path, sha256: str) -> None:
    if target.exists():
        return  # whole, as it was renamed only then
    with made_aside(target) as aside:
        if _copy(address, target.name, aside) != sha256:
            raise UserError(
                f"{address}/{target.name} did not arrive as its manifest says: prepare it again "
                "there, or upload it again",
                exit_code=1,
            )


def _copy(address: str, name: str, target: Path) -> str:
    """Copies a file of the address; its sha256."""
    filesystem, folder = open_filesystem(address)
    digest = hashlib.sha256()
    with (
        _named(address, name),
        filesystem.open_input_stream(f"{folder.rstrip('/')}/{name}") as source,
        target.open("wb") as out,
    ):
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            out.write(chunk)
    return digest.hexdigest()


@contextmanager
def _named(address: str, name: str) -> Iterator[None]:
    """Errors of any file system as one line that names the file."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:  # pyarrow's and fsspec's are all of this kind
        reason = error.strerror or str(error).splitlines()[0]
        raise UserError(f"cannot fetch {address}/{name}: {reason}", exit_code=1) from None
