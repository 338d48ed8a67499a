"""What all shards' tables say, as columns, small enough for a million images in one process.

Held is what decides where an image goes; names, digests and sums of pixels stay in the tables and
are read from there, shard by shard, where they are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.shards import DIGEST_BYTES, shard_paths

_NUMBERS: dict[str, type[np.generic]] = {
    "label": np.int32,
    "width": np.int32,
    "height": np.int32,
    "mode": np.uint8,
    "size": np.int64,
    "offset": np.int64,
}
_TEXTS: dict[str, type[np.generic]] = {
    "split": np.uint8,
    "error": np.int32,
    "converted": np.int32,
    "warning": np.int32,
}
_DIGEST = "source_sha1"
_CHUNK = 1 << 16
_LARGEST_LABEL = np.iinfo(np.int32).max


@dataclass
class Rows:
    """All shards' rows in source order, by column.

    `starts` [shards + 1] are the first row of each shard in `folder`, and the number of rows.
    `columns` are [N] each; those of `texts` hold positions in that list, where 0 is "". Labels
    beyond 32 bits are cut off there: they are no class anyhow.
    """

    folder: Path
    starts: np.ndarray
    columns: dict[str, np.ndarray]
    texts: dict[str, list[str]]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def is_text(self, name: str, text: str) -> np.ndarray:
        """[N] bool: where a column of texts has this one."""
        known = self.texts[name]
        return self.columns[name] == (known.index(text) if text in known else len(known))

    def shards_of(self, rows: np.ndarray) -> np.ndarray:
        """The number of the shard of each row."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def names(self, rows: Iterable[int]) -> dict[int, str]:
        """The names of some rows, read from their shards."""
        wanted = np.unique(np.fromiter(rows, np.int64))
        found: dict[int, str] = {}
        places = zip(self.shards_of(wanted).tolist(), wanted.tolist(), strict=True)
        for shard, places_there in groupby(places, key=lambda place: place[0]):
            column = read_shard(self.folder, shard, ["name"])["name"]
            start = int(self.starts[shard])
            found |= {row: column[row - start].as_py() for _, row in places_there}
        return found


def read_shard(folder: Path, number: int, columns: list[str]) -> pa.Table:
    """Some columns of a shard's table, each in one piece."""
    with shard_paths(folder, number)[1].open("rb") as file:  # pyarrow wants paths to be UTF-8
        return pq.ParquetFile(file).read(columns, use_threads=False).combine_chunks()


def read_rows(folder: Path, num_shards: int) -> Rows:
    """Load the tables of shards 0 to `num_shards` - 1, with the digests of the sources' bytes."""
    kinds = {name: np.dtype(kind) for name, kind in (_NUMBERS | _TEXTS).items()}
    kinds[_DIGEST] = np.dtype(f"S{DIGEST_BYTES}")
    held = {name: bytearray() for name in kinds}  # they grow in place, and are never held twice
    codes: dict[str, dict[str, int]] = {name: {"": 0} for name in _TEXTS}
    starts = [0]
    for number in range(num_shards):
        table = read_shard(folder, number, list(kinds))
        starts.append(starts[-1] + len(table))
        if not len(table):
            continue
        for name, buffer in held.items():
            column = table[name].chunk(0)
            if name == _DIGEST:
                buffer += _digests(column)
            elif name in codes:
                buffer += _coded(column, codes[name]).astype(kinds[name]).tobytes()
            else:
                numbers: np.ndarray = column.to_numpy()
                if name == "label":
                    numbers = numbers.clip(-1, _LARGEST_LABEL)
                buffer += numbers.astype(kinds[name]).tobytes()
    columns = {name: np.frombuffer(held[name], kind) for name, kind in kinds.items()}
    return Rows(folder, np.array(starts), columns, {name: list(codes[name]) for name in codes})


def _digests(column: pa.Array) -> memoryview:
    start = column.offset * DIGEST_BYTES
    return memoryview(column.buffers()[1])[start : start + len(column) * DIGEST_BYTES]


def _coded(column: pa.Array, known: dict[str, int]) -> np.ndarray:
    """The positions of texts among all that are known, to which new ones are added."""
    encoded = column.dictionary_encode()
    codes = [known.setdefault(text, len(known)) for text in encoded.dictionary.to_pylist()]
    return np.array(codes, np.int32)[encoded.indices.to_numpy()]


def equal_digests(digests: np.ndarray) -> np.ndarray:
    """The rows whose digest [N] occurs more than once, those of one digest after each other."""
    order = np.argsort(digests, kind="stable")
    same = np.zeros(len(order) + 1, np.bool_)
    for start in range(1, len(order), _CHUNK):
        part = digests[order[start - 1 : start + _CHUNK]]
        same[start : start + len(part) - 1] = part[1:] == part[:-1]
    return order[same[1:] | same[:-1]]


def in_chunks(*columns: np.ndarray) -> Iterator[tuple[int, ...]]:
    """Rows of several columns [N] as Python numbers, without all of them at once."""
    for start in range(0, len(columns[0]), _CHUNK):
        yield from zip(*(c[start : start + _CHUNK].tolist() for c in columns), strict=True)


def hexadecimal(digests: pa.Array) -> pa.Array:
    """The digests [N] as text."""
    text = bytes(_digests(digests)).hex().encode()
    ends = np.arange(len(digests) + 1, dtype=np.int32) * (2 * DIGEST_BYTES)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(text)]
    return pa.Array.from_buffers(pa.string(), len(digests), buffers)


def coded(codes: np.ndarray, texts: pa.Array) -> pa.Array:
    """Texts by their positions [N] among all of them."""
    return pa.DictionaryArray.from_arrays(codes.astype(np.int32), texts)
