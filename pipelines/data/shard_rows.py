"""All shards' tables as columns, small enough for a million images in one process."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.data.shards import DIGEST_BYTES, schema, shard_paths

if TYPE_CHECKING:
    import pyarrow as pa

_SMALL = {"width": np.int32, "height": np.int32, "mode": np.uint8}
_CHUNK = 1 << 16


@dataclass
class Rows:
    """All shards' rows in source order, by column; `shard` says which shard holds the bytes.

    `names` [N] are the samples' names and `columns` the rest of a shard's table, [N] each; texts
    are objects, and `source_sha1` has the digests themselves, of 20 bytes.
    """

    columns: dict[str, np.ndarray]
    shard: np.ndarray
    names: "pa.Array"

    def __len__(self) -> int:
        return len(self.shard)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def name(self, row: int | np.integer[Any]) -> str:
        """The name of one sample."""
        return str(self.names[int(row)].as_py())

    def keep(self, mask: np.ndarray) -> "Rows":
        """Only the rows where `mask` [N] is true."""
        if mask.all():
            return self
        import pyarrow as pa

        columns = {name: column[mask] for name, column in self.columns.items()}
        return Rows(columns, self.shard[mask], self.names.filter(pa.array(mask)))


def read_rows(folder: Path, num_shards: int) -> Rows:
    """Load every shard's table.

    Args:
        folder: where they lie.
        num_shards: their tables are numbered from 0.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    empty = schema().empty_table()
    columns = [name for name in empty.column_names if name != "name"]
    # A piece of nothing, so that a source of nothing has columns of the right kinds.
    pieces = {name: [_compact(name, empty[name].combine_chunks(), {})] for name in columns}
    names: list[pa.Array] = []
    counts: list[int] = []
    known: dict[str, str] = {}
    for i in range(num_shards):
        with shard_paths(folder, i)[1].open("rb") as file:  # pyarrow wants paths to be UTF-8
            table = pq.read_table(file, use_threads=False)
        counts.append(len(table))
        names += table["name"].cast(pa.large_string()).chunks
        for name, column in pieces.items():
            column.append(_compact(name, table[name].combine_chunks(), known))
    # One column at a time is held twice.
    joined = {name: np.concatenate(pieces.pop(name)) for name in columns}
    every = pa.chunked_array(names, pa.large_string()).combine_chunks()
    shards = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return Rows(joined, shards, every)


def _compact(name: str, column: "pa.Array", known: dict[str, str]) -> np.ndarray:
    import pyarrow as pa

    if name == "source_sha1":
        data = column.buffers()[1]
        if data is None:  # of no rows
            return np.zeros(0, f"S{DIGEST_BYTES}")
        return np.frombuffer(data, f"S{DIGEST_BYTES}", len(column), column.offset * DIGEST_BYTES)
    if pa.types.is_string(column.type):  # few different ones: each is held once
        coded = column.dictionary_encode()
        texts = [known.setdefault(text, text) for text in coded.dictionary.to_pylist()]
        return np.array(texts, dtype=object)[coded.indices.to_numpy()]
    numbers: np.ndarray = column.to_numpy()
    return numbers.astype(_SMALL.get(name, numbers.dtype))


def in_chunks(*columns: np.ndarray) -> Iterator[tuple[int, ...]]:
    """Rows of several columns [N] as Python numbers, without all of them at once."""
    for start in range(0, len(columns[0]), _CHUNK):
        yield from zip(*(c[start : start + _CHUNK].tolist() for c in columns), strict=True)


def hexadecimal(digests: np.ndarray) -> "pa.Array":
    """The digests [N] as text."""
    import pyarrow as pa

    text = digests.tobytes().hex().encode()
    ends = np.arange(len(digests) + 1, dtype=np.int64) * (2 * DIGEST_BYTES)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(text)]
    return pa.Array.from_buffers(pa.large_string(), len(digests), buffers).cast(pa.string())


def coded(codes: np.ndarray, texts: list[str]) -> "pa.Array":
    """Texts by their positions [N] in a list."""
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(codes.astype(np.int32), pa.array(texts, pa.string()))
