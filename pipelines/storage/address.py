"""Addresses: which texts are one, how a name is joined to one, how one is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from pipelines.errors import UserError
from pipelines.secrecy.redact import credentials_in, is_secret_name

if TYPE_CHECKING:
    import pyarrow.fs

# What searches are kept in: pyarrow's own file systems in which a write is seen at once by all.
_STORES = ("s3", "gs", "gcs", "abfs", "abfss")
# Google's client tries for a quarter of an hour otherwise before it says that nothing answers.
_GCS_SECONDS = "retry_limit_seconds=30"


def is_address(text: str | Path) -> bool:
    """Whether a text names something by an address (`s3://bucket/runs`), not a path."""
    return "://" in str(text)


def parse_storage(given: str | Path) -> str | Path:
    """`parse_place` of where searches are kept.

    Raises:
        ValueError: see there; or searches cannot be kept at such an address.
    """
    place = parse_place(given)
    scheme = urlsplit(str(place)).scheme
    if is_address(place) and scheme not in _STORES:
        raise ValueError(
            f"{place}: searches are kept in a folder that all machines see, or at an address at "
            f"s3://, gs:// or abfs://, not at {scheme}://"
        )
    return place


def parse_place(given: str | Path) -> str | Path:
    """What a user names by a folder, as a path, or by an address, as a text.

    `file://` is a folder by another name.

    Raises:
        ValueError: a name, password or key stands in the address; one line, without it.
    """
    if not is_address(given):
        return Path(given)
    address = str(given)
    parts = urlsplit(address)
    # Addresses are written to the ledger, to MLflow and into every job's description.
    if credentials_in(address) or any(is_secret_name(key) for key, _ in parse_qsl(parts.query)):
        raise ValueError(
            f"the address of {parts.scheme}://{parts.hostname or ''} holds a password, token or "
            "key: leave it out, it is read from the environment (AWS_PROFILE, "
            "GOOGLE_APPLICATION_CREDENTIALS, …), a credentials file or the machine's own role"
        )
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if not parts.netloc:
        raise ValueError(
            f"{address} names no bucket or host: write it as {parts.scheme}://BUCKET/…"
        )
    return join(address, "")


def join(address: str, name: str) -> str:
    """The address of a name below an address, whose options (`?region=…`) stay at the end."""
    place, mark, options = address.partition("?")
    return f"{place.rstrip('/')}/{name}".rstrip("/") + mark + options


def parent(address: str) -> str:
    """The address of the folder that an address is in."""
    place, mark, options = address.partition("?")
    return place.rpartition("/")[0] + mark + options


def without_options(address: str) -> str:
    """The address without its options."""
    return address.partition("?")[0]


def open_filesystem(address: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """(file system, path within it) of a local path, or any pyarrow or fsspec address.

    Raises:
        UserError: an address of no known kind.
        OSError: the region of a bucket cannot be found out, as nothing answers.
    """
    import pyarrow as pa
    import pyarrow.fs

    if not is_address(address):
        return pa.fs.LocalFileSystem(), address
    try:
        filesystem, path = pa.fs.FileSystem.from_uri(_bounded(address))
        return filesystem, path
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, NotImplementedError) as error:
        problem: Exception = error  # not one of pyarrow's own, or misspelt
    import fsspec  # type: ignore[import-untyped]

    try:
        inner, path = fsspec.core.url_to_fs(address)
    except (ValueError, ImportError) as error:
        if urlsplit(address).scheme not in _STORES:
            problem = error
        raise UserError(f"cannot open {address}: {problem}") from None
    return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(inner)), path


def _bounded(address: str) -> str:
    if urlsplit(address).scheme not in ("gs", "gcs") or "retry_limit_seconds" in address:
        return address
    return f"{address}{'&' if '?' in address else '?'}{_GCS_SECONDS}"
