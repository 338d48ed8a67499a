"""Parquet shards, as the hubs publish them and as other tools write them, made into a source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.data.class_choice import order_notes
from pipelines.data.layout import Split
from pipelines.data.options import PrepareOptions
from pipelines.data.sources.parquet_columns import Columns, find_columns
from pipelines.data.sources.parquet_files import ParquetListing, list_parquet, open_file, stamp_of
from pipelines.data.sources.parquet_labels import FileLabels, LabelTable, join_labels, whole
from pipelines.data.sources.parquet_rows import (
    READ_ERRORS,
    ParquetUnit,
    open_reader,
    plain,
    refuse_texts,
    unread,
    value_of,
)
from pipelines.data.sources.parquet_splits import column_splits, splits_of
from pipelines.data.sources.shard_names import missing_shards, origin_of
from pipelines.data.sources.source import LeftOut, Source
from pipelines.errors import UserError

_PIECE_BYTES = 256 << 20  # a larger row group is divided among units
_MOST_PIECES = 16  # each reads past the rows before its own
_SCAN_ROWS = 65_536


@dataclass(frozen=True)
class _File:
    """What listing learns of one file; `groups` are (rows, bytes) of its row groups.

    `texts` counts the values of the column that may tell splits, `counts` those of the label
    column where not all classes are wanted.
    """

    name: str
    path: str
    stamp: str
    split: Split
    groups: tuple[tuple[int, int], ...]
    columns: Columns
    labels: FileLabels
    texts: Counter[str] = field(default_factory=Counter)
    counts: Counter[Any] = field(default_factory=Counter)


def parquet_source(
    address: str, options: PrepareOptions, listing: ParquetListing | None = None
) -> Source:
    """List row groups.

    Class names come from the hub's metadata, or are the labels where these are text. Without
    either, classes are numbered up to the largest label, or `classes` says how many there are.

    Raises:
        UserError: there is no file; one cannot be read (unless `skip_bad`), lacks a column, or
            contradicts another; names of classes are given but unknown.
    """
    listing = listing or list_parquet(address)
    if not listing.files and not listing.problems:
        raise UserError(f"{address} holds no Parquet files")
    taken, not_taken = splits_of(address, listing, options)
    problems = list(listing.problems)
    files: list[_File] = []
    empty: list[str] = []
    for name, split in taken.items():
        try:
            file = _inspect(address, listing, name, split, options)
        except READ_ERRORS as error:
            problems.append((name or address, unread(error)))
            continue
        if file is None:
            empty.append(name)
        else:
            files.append(file)
    if problems and not options.skip_bad:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(
            f"{address}: {problems[0][0]} {problems[0][1]}{more}: mend it or move it away, or add "
            "--skip-bad to go on without",
            exit_code=1,
        )
    left_out = [*listing.left_out, *not_taken]
    if empty:
        left_out.append(LeftOut("without rows", len(empty), empty[0]))
    if not files:
        first = [*(name for name, _ in problems), *empty][0] or address
        raise UserError(f"{address}: no file has any rows, such as {first}", exit_code=1)
    by_rows = column_splits(
        address,
        {file.name: (file.split, file.columns.split, file.texts) for file in files},
        options,
    )
    _check_label_columns(address, files)
    train_first = sorted(files, key=lambda file: file.split == "val")
    classes, tables, notes = join_labels(
        address,
        [file.labels for file in train_first],
        options.classes,
        share_names=options.share_names,
    )
    table_of = dict(zip((file.name for file in train_first), tables, strict=True))
    others = sum(
        many
        for file in files
        for label, many in file.counts.items()
        if table_of[file.name].of(label) == (None, "")
    )
    if others:
        left_out.append(LeftOut("of classes that were not chosen", others, unit="rows"))
    units = [
        unit
        for file in files
        for unit in _units(address, listing.root, file, table_of[file.name], by_rows.splits)
    ]
    origins = by_rows.origins or {
        split: origin_of([file.name or address for file in files if file.split == split])
        for split in ("train", "val", "")
        if any(file.split == split for file in files)
    }
    notes = [*by_rows.notes, *_column_notes(files), *notes]
    notes += order_notes(classes) + missing_shards([file.name for file in files])
    return Source(
        address,
        classes,
        units,
        problems=problems,
        origins=origins,
        left_out=left_out + by_rows.left_out,
        notes=notes,
    )


def _inspect(
    address: str, listing: ParquetListing, name: str, split: Split, options: PrepareOptions
) -> _File | None:
    """Read what one file says of itself; None if it has no rows.

    Raises:
        UserError: it lacks a column.
        READ_ERRORS: it cannot be read.
    """
    path = listing.path(name)
    shown = name or path
    stamp = stamp_of(address, path)
    with open_file(address, path) as file:
        reader = open_reader(file)
        metadata = reader.metadata
        if metadata.num_columns == 0:
            raise OSError("it has no columns")
        if metadata.num_rows == 0:
            return None
        columns = find_columns(reader.schema_arrow, options, shown)
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        labels = FileLabels(shown, columns.label_kind, columns.names)
        if columns.label_kind == "text":
            texts = frozenset(str(text) for text in _values(reader, columns.label) if text)
            labels = replace(labels, texts=texts)
        elif not labels.declared and not isinstance(options.classes, int):
            labels = replace(labels, largest=_largest(reader, columns.label))
        if columns.paths_only:
            refuse_texts(reader, columns.image, shown)
        told = Counter[str]()
        if columns.split is not None:
            told.update(str(text or "") for text in _cells(reader, columns.split))
        counts = Counter(_cells(reader, columns.label) if options.classes is not None else ())
    sizes = tuple((group.num_rows, group.total_byte_size) for group in groups)
    return _File(name, path, stamp, split, sizes, columns, labels, told, counts)


def _units(
    address: str, root: str, file: _File, table: LabelTable, splits: tuple[tuple[str, str], ...]
) -> Iterator[ParquetUnit]:
    """The file's row groups, large ones in pieces that fit in memory."""
    columns = file.columns
    for group, (rows, size) in enumerate(file.groups):
        pieces = max(1, min(_MOST_PIECES, -(-size // _PIECE_BYTES), rows))
        for piece in range(pieces if rows else 0):
            start, end = rows * piece // pieces, rows * (piece + 1) // pieces
            yield ParquetUnit(
                address,
                root,
                file.path,
                group,
                start,
                end - start,
                columns.image,
                columns.label,
                table,
                file.split,
                columns.split if splits else None,
                splits,
                file.stamp,
            )


def _check_label_columns(address: str, files: list[_File]) -> None:
    """Columns of different names may be different things, unless class names tie them together."""
    first = files[0]
    for file in files:
        tied = all(f.labels.declared or f.labels.kind == "text" for f in (first, file))
        if file.columns.label != first.columns.label and not tied:
            raise UserError(
                f"{address}: the labels of {first.labels.file} are in its column "
                f"{first.columns.label}, those of {file.labels.file} in {file.columns.label}: "
                "rename one"
            )


def _column_notes(files: list[_File]) -> list[str]:
    names = {(file.columns.image, file.columns.label) for file in files}
    return [
        f"images are those of column {image}, labels those of column {label}"
        for image, label in sorted(names)
        if (image, label) != ("image", "label")
    ]


def _columns_in_parts(reader: pq.ParquetFile, name: str) -> Iterator[pa.Array]:
    for batch in reader.iter_batches(_SCAN_ROWS, columns=[name]):
        yield plain(batch.column(name))


def _cells(reader: pq.ParquetFile, name: str) -> Iterator[Any]:
    for column in _columns_in_parts(reader, name):
        for cell in column:
            yield value_of(cell)


def _values(reader: pq.ParquetFile, name: str) -> Iterator[Any]:
    """The different values of a column, some of them more than once."""
    for column in _columns_in_parts(reader, name):
        if pa.types.is_string_view(column.type):
            column = column.cast(pa.large_string())
        for cell in pc.unique(column):
            yield value_of(cell)


def _largest(reader: pq.ParquetFile, name: str) -> int:
    """The largest whole number in a column, -1 if there is none above."""
    largest = -1
    for column in _columns_in_parts(reader, name):
        if pa.types.is_integer(column.type):
            values = [pc.max(column).as_py()]
        else:
            values = [value_of(cell) for cell in column]
        numbers = [number for value in values if (number := whole(value)) is not None]
        largest = max([largest, *numbers])
    return largest
