"""One folder of an object store: whole objects written, read, listed and deleted by name.

It promises what S3, Google Cloud Storage and Azure do: an object appears whole or not at all, and
who reads or lists after a write sees it. At other addresses, as of weights, things are only read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import UserError
from pipelines.secrecy.guard import redactor
from pipelines.storage.address import join, open_filesystem, without_options

if TYPE_CHECKING:
    import pyarrow.fs

_THREADS = 16
_NOISE = re.compile(r" \((?:Request ID|HTTP status)[^)]*\)|; Details: .*")

# What the clouds' own words mean, and what is to be done about it.
_REMEDIES = (
    (r"NO_SUCH_BUCKET|NoSuchBucket|Bucket '[^']*' not found|bucket does not exist",
     "there is no such bucket: make it, or name another one"),
    (r"ACCESS_DENIED|AccessDenied|Forbidden|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|"
     r"EXPIRED_TOKEN|NO_CREDENTIALS|\b40[13]\b|[Pp]ermission",
     "access is refused: give this machine credentials that may list, read, write and delete "
     "there (AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, its own role, …)"),
    (r"NETWORK_CONNECTION|curlCode|[Tt]imed? ?out|UNAVAILABLE|[Cc]onnect",
     "nothing answers: check the network and the endpoint (AWS_ENDPOINT_URL, or "
     "?endpoint_override=… in the address)"),
    (r"INTERNAL_FAILURE|SERVICE_UNAVAILABLE|SLOW_DOWN|SlowDown|INTERNAL_ERROR|InternalError|"
     r"UNKNOWN.*HTTP status 5|\b50[0234]\b",
     "the store itself is in trouble or overloaded: wait for it, or ask who runs it"),
)  # fmt: skip
_AWAY = _REMEDIES[-2:]


class StoreError(UserError):
    """An object store cannot be used as it must be; one line with the remedy."""


class StoreAway(StoreError):
    """An object store does not answer, or answers that it cannot now: later it may."""


@dataclass(frozen=True)
class Entry:
    """An object.

    Attributes:
        name: below the store's folder.
        size: in bytes.
        mtime: seconds since the epoch by the store's clock; None where it keeps no times.
    """

    name: str
    size: int
    mtime: float | None


@dataclass(frozen=True)
class ObjectStore:
    """A folder at an address; it travels to other processes as that text.

    All methods raise StoreError where the store does not do what is asked.
    """

    address: str

    @cached_property
    def _opened(self) -> tuple[pyarrow.fs.FileSystem, str]:
        with self.named():
            return open_filesystem(self.address)

    def __getstate__(self) -> dict[str, str]:
        return {"address": self.address}  # each process opens it with credentials of its own

    @property
    def filesystem(self) -> pyarrow.fs.FileSystem:
        """Pyarrow's, opened with what the environment says."""
        return self._opened[0]

    @property
    def path(self) -> str:
        """The folder's path within the file system."""
        return self._opened[1].rstrip("/")

    def child(self, name: str) -> ObjectStore:
        """A folder below this one."""
        return ObjectStore(join(self.address, name))

    def relative(self, place: str) -> str | None:
        """A place below this folder relative to it; None if it is elsewhere.

        Args:
            place: an address, or a path within the file system, as Ray names checkpoints.
        """
        for root in (without_options(self.address), self.path):
            if without_options(place).startswith(f"{root}/"):
                return without_options(place)[len(root) + 1 :]
        return None

    def write(self, name: str, content: bytes) -> None:
        """Puts an object there, in the place of one of this name."""
        with self.named(name):
            stream = self.filesystem.open_output_stream(f"{self.path}/{name}")
            stream.write(content)
            stream.close()  # not in a `with`: what a broken write left must not be made an object

    def read(self, name: str) -> bytes | None:
        """An object's content; None if there is none of this name."""
        with self.named(name):
            try:
                with self.filesystem.open_input_stream(f"{self.path}/{name}") as source:
                    return bytes(source.read())
            except FileNotFoundError:
                return None

    def read_all(self, names: list[str]) -> list[bytes | None]:
        """Several objects' contents, many at a time."""
        if not names:
            return []
        with ThreadPoolExecutor(min(_THREADS, len(names))) as pool:
            return list(pool.map(self.read, names))

    def entries(self, folder: str = "", *, recursive: bool = False) -> list[Entry]:
        """The objects directly in a folder below this one, or anywhere in it, sorted by name."""
        return [
            Entry(
                info.path.lstrip("/").removeprefix(f"{self.path}/".lstrip("/")),
                info.size or 0,
                None if info.mtime is None else info.mtime.timestamp(),
            )
            for info in self._infos(folder, recursive)
            if info.is_file
        ]

    def folders(self, folder: str = "") -> list[str]:
        """The names of the folders directly in this folder, or in one in it."""
        found = self._infos(folder, recursive=False)
        return sorted(info.base_name for info in found if not info.is_file)

    def _infos(self, folder: str, recursive: bool) -> list[pyarrow.fs.FileInfo]:
        import pyarrow.fs

        # Not allow_not_found: of a bucket that does not exist it would say that it is empty.
        selector = pyarrow.fs.FileSelector(f"{self.path}/{folder}".rstrip("/"), recursive=recursive)
        with self.named(folder):
            try:
                found = self.filesystem.get_file_info(selector)
            except FileNotFoundError:
                return []
            return sorted(found, key=lambda info: str(info.path))

    def delete(self, name: str) -> None:
        """Deletes an object; it may be gone already."""
        with self.named(name), suppress(FileNotFoundError):
            self.filesystem.delete_file(f"{self.path}/{name}")

    def delete_folder(self, name: str) -> None:
        """Deletes all below a folder; it may be gone already."""
        with self.named(name), suppress(FileNotFoundError):
            self.filesystem.delete_dir(f"{self.path}/{name}")

    def copy(self, name: str, target: str) -> None:
        """Copies an object within the store; nothing passes through this machine."""
        with self.named(name):
            self.filesystem.copy_file(f"{self.path}/{name}", f"{self.path}/{target}")

    def upload(self, source: Path, name: str) -> None:
        """Puts a file of this machine there."""
        self._copy(name, source, up=True)

    def download(self, name: str, target: Path) -> None:
        """Fetches an object to a file of this machine."""
        self._copy(name, target, up=False)

    def _copy(self, name: str, path: Path, *, up: bool) -> None:
        import pyarrow.fs

        there = (f"{self.path}/{name}", self.filesystem)
        here = (str(path), pyarrow.fs.LocalFileSystem())
        (source, source_fs), (target, target_fs) = (here, there) if up else (there, here)
        with self.named(name):
            pyarrow.fs.copy_files(
                source,
                target,
                source_filesystem=source_fs,
                destination_filesystem=target_fs,
                use_threads=False,  # of pyarrow's uploads some hang with them (its issue 32372)
            )

    def check_writable(self, name: str) -> None:
        """Puts an object there and deletes it again.

        Args:
            name: of the object, which nobody else uses.
        """
        self.write(name, b"")
        self.delete(name)

    @contextmanager
    def named(self, name: str = "") -> Iterator[None]:
        """What goes wrong with the store inside, also in others' code, is a StoreError.

        Args:
            name: of what is asked for, below this folder.
        """
        try:
            yield
        except OSError as error:  # pyarrow's and fsspec's are all of this kind
            place = without_options(join(self.address, name) if name else self.address)
            text = explain(error)
            kind = StoreAway if any(text.startswith(remedy) for _, remedy in _AWAY) else StoreError
            raise kind(f"storage {place}: {text}") from None


def explain(error: OSError) -> str:
    """Pyarrow's words on what a store did, as what is wrong and what to do."""
    lines = str(error).splitlines() or [type(error).__name__]
    said = redactor().text(error.strerror or lines[0])
    text = _NOISE.sub("", said)[:300]
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, said):
            return f"{remedy} ({text})"
    return f"{text}: set storage to a place that can be listed, read and written"
