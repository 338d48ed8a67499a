"""The rows of a part of a Parquet file as samples: streamed, and whatever is wrong told by row."""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.data.sources.parquet_columns import is_binary, is_list
from pipelines.data.sources.parquet_files import open_file, reason_of
from pipelines.data.sources.parquet_labels import LabelTable
from pipelines.data.sources.source import Sample
from pipelines.errors import UserError
from pipelines.storage.address import is_address

_BATCH = 64  # rows decoded from Parquet at a time: a row group may be gigabytes
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]{256,}={0,2}\s*")  # no name of a file is so long
_BUFFER = 1 << 20  # bytes read at a time, else Parquet takes a row group's whole column at once

READ_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError)
"""What pyarrow raises on files that are damaged, encrypted or no Parquet."""


@dataclass(frozen=True)
class ParquetUnit:
    """Rows `start` to `start + rows` of one row group of one file.

    `root` is the source, below which pictures may lie that the rows only name. `split_column` and
    `splits` (value, split) are given where the rows tell their splits themselves; else `split`
    holds for all. `stamp` changes with the file, so that a run that is taken up again does not mix
    two versions.
    """

    address: str
    root: str
    path: str
    row_group: int
    start: int
    rows: int
    image: str
    label: str
    labels: LabelTable
    split: str
    split_column: str | None = None
    splits: tuple[tuple[str, str], ...] = ()
    stamp: str = ""

    @property
    def num_samples(self) -> int:
        return self.rows

    def read(self) -> Iterator[Sample]:
        """See `Unit`. Rows of test splits and of classes that were not chosen are left out.

        Rows that cannot be read, as the file is damaged there, make one sample with an error.
        """
        splits = dict(self.splits)
        row, end = self.start, self.start + self.rows
        try:
            with open_file(self.address, self.path) as file:
                for image, path, label, split in self._rows(file):
                    name = f"{self.path}:{self.row_group}:{row}"
                    row += 1
                    told = self.split if self.split_column is None else splits.get(split or "")
                    if told == "test":
                        continue
                    number, error = self.labels.of(label)
                    if told is None:
                        wrong = f"split {split!r} is neither train nor val nor test"
                        yield Sample(name, "train", 0, b"", wrong if split else "no split")
                    elif error:
                        yield Sample(name, told, 0, b"", error)
                    elif number is not None:
                        data, error = image or b"", "" if image else "no image bytes"
                        if image is None and path is not None:
                            data, error = self._picture(path)
                        yield Sample(name, told, number, data, error)
        except READ_ERRORS as error:
            name = f"{self.path}:{self.row_group}:{row}"
            yield Sample(name, self.split or "train", 0, b"", f"{end - row} rows {unread(error)}")

    def _rows(
        self, file: pa.NativeFile
    ) -> Iterator[tuple[bytes | None, str | None, object, str | None]]:
        """(bytes, path, label, value of the split column) of each row."""
        reader = open_reader(file)
        columns = [self.image, self.label] + ([self.split_column] if self.split_column else [])
        batches = reader.iter_batches(_BATCH, row_groups=[self.row_group], columns=columns)
        skip, left = self.start, self.rows
        for batch in batches:
            if skip >= len(batch):
                skip -= len(batch)
                continue
            part = batch.slice(skip, left)
            skip, left = 0, left - min(left, len(batch) - skip)
            images, paths = _pictures(part.column(self.image))
            labels = plain(part.column(self.label))
            splits = plain(part.column(self.split_column)) if self.split_column else None
            for i in range(len(part)):
                yield (
                    None if images is None else _bytes_of(images[i]),
                    None if paths is None else _path_of(paths[i]),
                    value_of(labels[i]),
                    None if splits is None else str(value_of(splits[i]) or ""),
                )
            if not left:
                return
        if left:
            raise OSError("the file ends before its last row")

    def _picture(self, path: str) -> tuple[bytes, str]:
        """(bytes, why there are none) of a picture that a row only names."""
        path = path.removeprefix("file://")
        if path.startswith("data:"):
            return b"", "a data URI: decode it and write its bytes into the column"
        if "://" in path:
            return b"", f"{_short(path)} is not fetched: write its bytes into the column"
        folder = posixpath.dirname(self.path)
        root = folder if self.root == self.path else self.root  # the source may be this one file
        full = posixpath.normpath(posixpath.join(folder, path))
        try:
            if not is_address(self.address) or self.address.startswith("file:"):
                full, root = os.path.realpath(posixpath.join(folder, path)), os.path.realpath(root)
                if _is_below(full, root) and not stat.S_ISREG(os.stat(full).st_mode):
                    return b"", f"{_short(path)} is no file"  # a pipe would be waited for
            if not _is_below(full, root):
                return b"", f"{_short(path)} leads out of the source: only files below it are read"
            with open_file(self.address, full) as file:
                return file.read(), ""
        except FileNotFoundError:
            return b"", (
                f"no bytes, and the file {_short(path)} is not in {folder}: put it there, or "
                "write its bytes into the column"
            )
        except (OSError, ValueError) as error:
            return b"", f"{_short(path)} cannot be read: {reason_of(error)}"


def open_reader(file: pa.NativeFile) -> pq.ParquetFile:
    """A reader that holds little of the file in memory."""
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER)


def unread(error: BaseException) -> str:
    """Why a file or a part of it is not read, in words."""
    reason = reason_of(error)
    if "decrypt" in reason.lower() or "encrypt" in reason.lower():
        reason = "it is encrypted: write it out without"
    return f"cannot be read as Parquet: {reason}"


def plain(column: pa.Array) -> pa.Array:
    """A column without extension types and dictionaries around its values."""
    while True:
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        elif isinstance(column, pa.DictionaryArray):
            column = column.dictionary_decode()
        else:
            return column


def value_of(cell: pa.Scalar) -> object:
    """A value as Python has it; text that is not UTF-8 counts as no value."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return None


def refuse_texts(reader: pq.ParquetFile, name: str, file: str) -> None:
    """Refuse a text column of pictures that are written out as text or lie on the web.

    Raises:
        UserError: the first texts of the column are so.
    """
    batch = next(reader.iter_batches(_BATCH, columns=[name]), None)
    _, paths = _pictures(batch.column(name)) if batch is not None else (None, None)
    for cell in paths if paths is not None else ():
        text = _path_of(cell)
        if text is None:
            continue
        if text.startswith("data:") or _BASE64.fullmatch(text):
            raise UserError(
                f"{file}: column {name} holds pictures as base64 text: decode it and write the "
                "bytes into a column (binary), or name another with --image-column"
            )
        if "://" in text and not text.startswith("file://"):
            raise UserError(
                f"{file}: column {name} holds addresses ({_short(text)}), which are not fetched: "
                "write the pictures' bytes into a column, or name another with --image-column"
            )


def _pictures(column: pa.Array) -> tuple[pa.Array | None, pa.Array | None]:
    """(bytes or lists of bytes, paths) of an image column."""
    column = plain(column)
    if not pa.types.is_struct(column.type):
        holds = is_binary(column.type) or is_list(column.type)
        return (column, None) if holds else (None, column)
    found = {
        name: plain(pc.struct_field(column, [at]))
        for name in ("bytes", "path")
        if (at := column.type.get_field_index(name)) >= 0
    }
    images, paths = found.get("bytes"), found.get("path")
    if images is not None and pa.types.is_null(images.type):
        images = None
    if paths is not None and pa.types.is_null(paths.type):
        paths = None
    return images, paths


def _bytes_of(cell: pa.Scalar) -> bytes | None:
    if not cell.is_valid:
        return None
    if not is_list(cell.type):
        return bytes(cell.as_py())
    if cell.values.null_count:
        return None
    return cell.values.cast(pa.uint8(), safe=False).to_numpy(zero_copy_only=False).tobytes()


def _path_of(cell: pa.Scalar) -> str | None:
    """A path as this machine has it, whatever bytes it is of."""
    if not cell.is_valid:
        return None
    try:
        return str(cell.as_py())
    except UnicodeDecodeError:
        return os.fsdecode(cell.as_buffer().to_pybytes())


def _is_below(path: str, root: str) -> bool:
    return path.startswith(root.rstrip("/") + "/")


def _short(path: str) -> str:
    return path if len(path) <= 100 else path[:97] + "…"
