"""Parquet shards as the big hubs publish them: `image`, a struct with `bytes`, and `label`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.data.sources.base import Sample, Source
from pipelines.data.sources.folder import choose_classes
from pipelines.errors import UserError
from pipelines.storage.address import open_filesystem

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BATCH = 64  # rows decoded from Parquet at a time: a row group may be gigabytes


@dataclass(frozen=True)
class ParquetUnit:
    """One row group of one file. `labels` maps the file's labels to ours; None: as they are.

    `stamp` changes with the file, so that a run that is taken up again does not mix two versions.
    """

    address: str
    path: str
    row_group: int
    rows: int
    split: str
    labels: tuple[tuple[int, int], ...] | None
    stamp: str = ""

    @property
    def num_samples(self) -> int:
        """See `Unit`."""
        return self.rows

    def read(self) -> Iterator[Sample]:
        """See `Unit`. Rows of classes that were not chosen are left out."""
        mapping = None if self.labels is None else dict(self.labels)
        filesystem, _ = open_filesystem(self.address)
        row = 0
        with filesystem.open_input_file(self.path) as file:
            for image, label in _rows(file, self.row_group):
                name = f"{self.path}:{self.row_group}:{row}"
                row += 1
                if label is None:
                    yield Sample(name, self.split, 0, b"", "no label")
                    continue
                if mapping is not None:
                    if label not in mapping:
                        continue
                    label = mapping[label]
                if isinstance(image, dict):
                    image = image.get("bytes")
                if not isinstance(image, bytes):
                    yield Sample(name, self.split, label, b"", "no image bytes")
                    continue
                yield Sample(name, self.split, label, image)


def _rows(file: "pa.NativeFile", row_group: int) -> Iterator[tuple[Any, int | None]]:
    import pyarrow.parquet as pq

    reader = pq.ParquetFile(file, pre_buffer=False)
    batches = reader.iter_batches(
        batch_size=_BATCH, row_groups=[row_group], columns=["image", "label"]
    )
    for batch in batches:
        images, labels = batch.column("image"), batch.column("label")
        for i in range(len(batch)):
            yield images[i].as_py(), labels[i].as_py()


def list_parquet(address: str) -> list[str]:
    """The Parquet files at an address (a file or a directory), sorted; empty if there are none.

    Raises:
        UserError: the address cannot be listed.
    """
    import pyarrow as pa
    import pyarrow.fs

    filesystem, path = open_filesystem(address)
    try:
        info = filesystem.get_file_info(path)
        if info.type == pa.fs.FileType.File:
            return [path] if path.endswith(".parquet") else []
        if info.type != pa.fs.FileType.Directory:
            return []
        found = filesystem.get_file_info(pa.fs.FileSelector(path, recursive=True))
    except OSError as error:
        raise UserError(
            f"cannot list {address}: {str(error).splitlines()[0]}", exit_code=1
        ) from None
    return sorted(
        entry.path
        for entry in found
        if entry.type == pa.fs.FileType.File and entry.path.endswith(".parquet")
    )


def split_of(path: str) -> str | None:
    """Which split a file's name speaks of: "train", "val", "" for none, None for a test split."""
    name = path.rsplit("/", 1)[-1].lower()
    for split, words in (("train", ("train",)), ("val", ("val", "dev")), (None, ("test",))):
        if any(name.startswith(word) or f"-{word}" in name or f"_{word}" in name for word in words):
            return split
    return ""


def parquet_source(address: str, paths: list[str], classes: int | list[str] | None) -> Source:
    """List row groups.

    Class names come from the hub's metadata where the files carry it. Without it, classes are
    numbered up to the largest label, or `classes` says how many there are.

    Args:
        address: as the user gave it.
        paths: from `list_parquet`.
        classes: the first so many or the named ones of known classes, or the count of unnamed ones.

    Raises:
        UserError: a file is not Parquet, lacks the columns, or names are given but unknown.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    filesystem, _ = open_filesystem(address)
    names: list[str] | None = None
    largest = -1
    groups: list[tuple[str, int, int, str, str]] = []
    for path in paths:
        split = split_of(path)
        if split is None:
            continue  # hubs' test splits have no true labels
        try:
            info = filesystem.get_file_info(path)
            stamp = f"{info.size} {info.mtime_ns}"
            with filesystem.open_input_file(path) as file:
                reader = pq.ParquetFile(file, pre_buffer=False)
                _check_columns(reader.schema_arrow, path)
                names = names or _hub_names(reader.schema_arrow)
                for group in range(reader.metadata.num_row_groups):
                    rows = reader.metadata.row_group(group).num_rows
                    groups.append((path, group, rows, split, stamp))
                    if names is None and not isinstance(classes, int):
                        largest = max(largest, _largest_label(reader, group))
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} cannot be read as Parquet: {reason}", exit_code=1) from None
    labels: tuple[tuple[int, int], ...] | None = None
    if names is not None:
        chosen = choose_classes(names, classes, address)
        if chosen != names:
            labels = tuple((names.index(name), i) for i, name in enumerate(chosen))
    elif isinstance(classes, list):
        raise UserError(f"--classes: {address} carries no class names, give a number")
    else:
        count = classes if classes is not None else largest + 1
        if count < 1:
            raise UserError(f"{address} has no labels of 0 or more")
        chosen = [str(i) for i in range(count)]
    units = [
        ParquetUnit(address, path, group, rows, split, labels, stamp)
        for path, group, rows, split, stamp in groups
        if rows
    ]
    return Source(address, chosen, units)


def _check_columns(schema: "pa.Schema", path: str) -> None:
    import pyarrow as pa

    for name in ("image", "label"):
        if name not in schema.names:
            raise UserError(
                f"{path} has no column {name!r}, only {', '.join(schema.names)}: "
                "expected image (struct with bytes) and label (integer)"
            )
    image, label = schema.field("image").type, schema.field("label").type
    is_struct = pa.types.is_struct(image) and image.get_field_index("bytes") >= 0
    if not (is_struct or pa.types.is_binary(image) or pa.types.is_large_binary(image)):
        raise UserError(f"{path}: column image is {image}, not a struct with bytes")
    if not pa.types.is_integer(label):
        raise UserError(f"{path}: column label is {label}, not an integer")


def _hub_names(schema: "pa.Schema") -> list[str] | None:
    """Class names from the metadata that hub data sets carry, or None."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    if isinstance(names, dict):  # an older form: {"0": "cat", …}
        names = [names[key] for key in sorted(names, key=int)]
    return [str(name) for name in names]


def _largest_label(reader: "pq.ParquetFile", group: int) -> int:
    import pyarrow.compute as pc

    column = reader.read_row_group(group, columns=["label"])["label"]
    value = pc.max(column).as_py()
    return -1 if value is None else int(value)
