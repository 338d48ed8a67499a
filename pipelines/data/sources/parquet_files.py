"""Parquet files at an address: listed, opened, told from what is left out."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.fs

from pipelines.data.layout import foreign_path
from pipelines.data.sources.folder_tree import Tree, scan
from pipelines.data.sources.source import LeftOut, Tally
from pipelines.errors import UserError
from pipelines.storage.address import is_address, open_filesystem

SUFFIX = ".parquet"
"""How the names of Parquet files end, in any case."""


@dataclass(frozen=True)
class ParquetListing:
    """What lies at an address.

    `root` is the path of the source in its file system, `files` are paths below it, with slashes
    and sorted; one file that is the source itself has the name "". `problems` are (name, reason).
    """

    root: str
    files: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def path(self, relative: str) -> str:
        """The path of a file in the file system; one beside the source has its whole path."""
        if relative.startswith("/"):
            return relative
        return f"{self.root.rstrip('/')}/{relative}" if relative else self.root


def list_parquet(address: str, tree: Tree | None = None) -> ParquetListing:
    """The Parquet files at an address, which is a file or a directory, perhaps scanned as `tree`.

    Raises:
        UserError: the address cannot be listed, or is a table whose files alone mean nothing.
    """
    if not is_address(address):
        return _list_local(address, tree)
    try:
        filesystem, path = open_filesystem(address)
        if isinstance(filesystem, pa.fs.LocalFileSystem):
            return _list_local(path, tree)
        info = filesystem.get_file_info(path)
        if info.type == pa.fs.FileType.File:
            return ParquetListing(path, [""] if _is_parquet(path) else [])
        if info.type != pa.fs.FileType.Directory:
            return ParquetListing(path)
        found = filesystem.get_file_info(pa.fs.FileSelector(path, recursive=True))
    except OSError as error:
        raise UserError(f"cannot list {address}: {reason_of(error)}", exit_code=1) from None
    start = path.strip("/") + "/"
    names = [
        entry.path.strip("/").removeprefix(start)
        for entry in found
        if entry.type == pa.fs.FileType.File
    ]
    reasons = {
        name: foreign_path(name) or ("" if _is_parquet(name) else "not Parquet by name")
        for name in sorted(names)
    }
    files = [name for name, why in reasons.items() if not why]
    if files:
        _refuse_tables(address, names)
    left_out = Tally()
    for name, why in reasons.items():
        if why:
            left_out(name, why)
    return ParquetListing(path, files, left_out.told())


def open_file(address: str, path: str) -> pa.NativeFile:
    """Open a file of a listing; local names may be any bytes.

    Raises:
        OSError: it cannot be opened.
    """
    filesystem, _ = open_filesystem(address)
    if isinstance(filesystem, pa.fs.LocalFileSystem):
        return pa.OSFile(os.fsencode(path))
    return filesystem.open_input_file(path)


def stamp_of(address: str, path: str) -> str:
    """Size and time of change of a file: another text where the file was replaced.

    Raises:
        OSError: it is not there.
    """
    filesystem, _ = open_filesystem(address)
    if isinstance(filesystem, pa.fs.LocalFileSystem):
        status = os.stat(path)
        return f"{status.st_size} {status.st_mtime_ns}"
    info = filesystem.get_file_info(path)
    return f"{info.size} {info.mtime_ns}"


def reason_of(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(SUFFIX)


def _list_local(root: str, tree: Tree | None) -> ParquetListing:
    """`list_parquet` of a path on this machine, whatever bytes its names are of."""
    if not os.path.isdir(root):
        return ParquetListing(root, [""] if os.path.exists(root) and _is_parquet(root) else [])
    tree = tree or scan(Path(root))
    files = tree.shards["parquet"]
    if files:
        _refuse_tables(root, [f"{name}/" for name in os.listdir(root)])
    left_out = list(tree.left_out)
    if tree.root.num_images:
        first = next(folder for folder in tree.root.walk() if folder.images)
        left_out.append(LeftOut("images beside Parquet", tree.root.num_images, first.files()[0][0]))
    return ParquetListing(root, files, left_out, tree.problems)


def _refuse_tables(source: str, names: list[str]) -> None:
    """Files of a Delta Lake or Hudi table may hold rows that the table has dropped since."""
    for mark, kind in (("_delta_log/", "Delta Lake"), (".hoodie/", "Hudi")):
        if any(name.startswith(mark) for name in names):
            raise UserError(
                f"{source} is a {kind} table, whose files also hold rows that were deleted: "
                "write it out as plain Parquet"
            )
