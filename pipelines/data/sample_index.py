"""`index.parquet`: what became of every image, written from the shards' tables some at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.manifest import INDEX_NAME, SPLITS
from pipelines.data.names import storable
from pipelines.data.shard_rows import Rows, coded, hexadecimal, read_shard
from pipelines.data.shards import DIGEST_BYTES
from pipelines.data.sources.source import Source
from pipelines.data.splits import NO_SPLIT
from pipelines.storage.durable import made_aside

_ROWS = 1 << 15  # of a row group, at least
_SUMS = [f"{kind}_{channel}" for kind in ("sum", "square") for channel in "rgb"]
_TRAIN = SPLITS.index("train")


def write_index(
    rows: Rows, splits: np.ndarray, pointers: np.ndarray, source: Source, folder: Path
) -> tuple[int, np.ndarray]:
    """Write the index to `folder`, and sum up the training pixels on the way.

    `splits` [N] are positions in SPLITS of each good row, NO_SPLIT for others, `pointers` [N] where
    its image lies in its beton. Gives (the number of training pixels, [6] the sums of their R, G, B
    and of the squares of these).
    """
    classes = pa.array([storable(name) for name in source.classes], pa.string())
    written = np.zeros(len(SPLITS), np.int64)
    pixels, sums = 0, np.zeros(len(_SUMS))
    with made_aside(folder / INDEX_NAME) as aside, ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for first, end in _shard_groups(rows.starts):
            span = slice(rows.starts[first], rows.starts[end])
            kept = span.start + np.flatnonzero(splits[span] != NO_SPLIT)
            names, digests = _read_texts(rows, splits, range(first, end), sums)
            codes, width, height = splits[kept], rows["width"][kept], rows["height"][kept]
            position = np.zeros(len(kept), np.int64)
            for code in range(len(SPLITS)):
                mine = codes == code
                position[mine] = written[code] + np.arange(mine.sum())
                written[code] += mine.sum()
            mine = codes == _TRAIN
            pixels += int((width[mine].astype(np.int64) * height[mine]).sum())
            table = pa.table(
                {
                    "split": coded(codes, pa.array(SPLITS, pa.string())),
                    "position": position,
                    "label": rows["label"][kept].astype(np.int64),
                    "class": coded(rows["label"][kept], classes),
                    "source_name": names,
                    "source_sha1": hexadecimal(digests),
                    "width": width,
                    "height": height,
                    "offset": pointers[kept],
                    "size": rows["size"][kept],
                }
            )
            if writer is None:
                # Opened here: pyarrow refuses a path that is no UTF-8.
                file = stack.enter_context(aside.open("wb"))
                writer = pq.ParquetWriter(file, table.schema, compression="zstd")
                stack.enter_context(writer)
            writer.write_table(table)
    return pixels, sums


def _shard_groups(starts: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, end) of the shards that make a row group together: so many rows, or the rest."""
    first = 0
    for end in range(1, len(starts)):
        if starts[end] - starts[first] >= _ROWS or end == len(starts) - 1:
            yield first, end
            first = end


def _read_texts(
    rows: Rows, splits: np.ndarray, shards: range, sums: np.ndarray
) -> tuple[pa.Array, pa.Array]:
    """(names, digests) of the good rows of some shards; adds to `sums` of the training pixels."""
    names: list[pa.Array] = []
    digests: list[pa.Array] = []
    for shard in shards:
        mine = splits[rows.starts[shard] : rows.starts[shard + 1]]
        table = read_shard(rows.folder, shard, ["name", "source_sha1", *_SUMS])
        for i, name in enumerate(_SUMS):
            sums[i] += table[name].to_numpy()[mine == _TRAIN].sum()
        table = table.filter(pa.array(mine != NO_SPLIT))
        names += table["name"].chunks
        digests += table["source_sha1"].chunks
    return (
        pa.chunked_array(names, pa.string()).combine_chunks(),
        pa.chunked_array(digests, pa.binary(DIGEST_BYTES)).combine_chunks(),
    )
