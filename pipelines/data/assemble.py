"""Finished shards put together: betons, index and manifest, in a directory not yet visible."""

import hashlib
import io
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from pipelines.data.beton import BetonTable, lay_out, write_beton
from pipelines.data.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    SPLITS,
    Manifest,
    SplitManifest,
    Summary,
)
from pipelines.data.names import storable
from pipelines.data.options import PrepareOptions, options_hash
from pipelines.data.shards import schema, shard_paths, write_durably
from pipelines.data.sources.base import Source
from pipelines.data.sources.folder import no_images
from pipelines.data.splits import assign_splits

_PIECE_BYTES = 1 << 22


@dataclass
class Rows:
    """All shards' rows in source order, by column; `shard` says which shard holds the bytes."""

    columns: dict[str, np.ndarray]
    shard: np.ndarray

    def __len__(self) -> int:
        return len(self.shard)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def keep(self, mask: np.ndarray) -> "Rows":
        """Only the rows where `mask` [N] is true."""
        return Rows({k: v[mask] for k, v in self.columns.items()}, self.shard[mask])


def read_rows(folder: Path, num_shards: int) -> Rows:
    """Load every shard's table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [pq.read_table(shard_paths(folder, i)[1]) for i in range(num_shards)]
    merged = pa.concat_tables(tables) if tables else schema().empty_table()
    columns = {name: merged[name].to_numpy(zero_copy_only=False) for name in merged.column_names}
    counts = [len(table) for table in tables]
    return Rows(columns, np.repeat(np.arange(len(counts)), counts))


def find_rejected(rows: Rows, splits: np.ndarray, classes: list[str]) -> tuple[np.ndarray, int]:
    """Why each row is refused, "" for good ones, and how many good ones are copies of others.

    Besides what reading found, an image whose source bytes occur in two splits is refused in all
    but the most protected of them (val before minival before train): a training image that is
    also tested on makes the test worthless. One that lies in two classes is refused in all of them:
    which is right, nobody knows. Copies within a class of a split only weigh more.

    Args:
        rows: N rows.
        splits: [N] split of each.
        classes: their names.

    Returns:
        ([N] object array of reasons, the number of copies).
    """
    import pyarrow as pa

    reasons = rows["error"].astype(object)
    good = np.flatnonzero(reasons == "")
    rank = np.select([splits[good] == "val", splits[good] == "minival"], [0, 1], 2)
    digests = pa.array(rows["source_sha1"][good], pa.string()).dictionary_encode()
    picture = np.asarray(digests.indices, np.int64)
    labels = rows["label"][good]
    order = np.lexsort((rank, picture))  # stable: the first of the most protected leads its group
    begins = np.flatnonzero(np.diff(picture[order], prepend=-1))
    lengths = np.diff(begins, append=len(order))
    copies = 0
    for begin, length in zip(
        begins[lengths > 1].tolist(), lengths[lengths > 1].tolist(), strict=True
    ):
        group = order[begin : begin + length]
        for i in group.tolist():
            others = group[labels[group] != labels[i]]
            if len(others):
                name, label = rows["name"][good[others[0]]], classes[labels[others[0]]]
                reasons[good[i]] = f"same picture as {name} of class {label}"
            elif rank[i] > rank[group[0]]:
                first = good[group[0]]
                reasons[good[i]] = f"duplicate of {rows['name'][first]} in {splits[first]}"
            elif i != group[0]:
                copies += 1
    return reasons, copies


def find_absent_classes(
    rows: Rows, splits: np.ndarray, reasons: np.ndarray, classes: list[str]
) -> list[tuple[str, str]]:
    """(split/class, reason) for each class that one of train and val has and the other lacks.

    Args:
        rows: N rows.
        splits: [N] split of each.
        reasons: [N] from `find_rejected`.
        classes: names; one without any image at all may have been declared for later.
    """
    if not (splits == "val").any():
        return []
    usable, labels = reasons == "", rows["label"]
    absent: list[tuple[str, str]] = []
    for split, other in (("train", "val"), ("val", "train")):
        here, there = set(labels[usable & (splits == split)]), set(labels[splits == other])
        for label in sorted(there - here):
            if 0 <= label < len(classes):
                absent.append((f"{split}/{classes[label]}", no_images(classes[label], split)))
    return absent


def split_rows(rows: Rows, source: Source, options: PrepareOptions) -> np.ndarray:
    """The split of each row; rows that failed to be read do not disturb the choice."""
    good = rows["error"] == ""
    splits = np.where(rows["split"] == "val", "val", "train").astype("<U7")
    splits[good] = assign_splits(
        rows["split"][good],
        rows["label"][good],
        val=source.default_val if options.val is None else options.val,
        minival=source.default_minival if options.minival is None else options.minival,
        seed=options.seed,
    )
    return splits


def assemble(
    source: Source,
    options: PrepareOptions,
    rows: Rows,
    splits: np.ndarray,
    folder: Path,
    rejected: int = 0,
    summary: Summary | None = None,
) -> Manifest:
    """Write the betons, `index.parquet` and `manifest.json` of the given good rows to `folder`.

    Args:
        source: names and classes.
        options: what they were prepared with.
        rows: N good rows.
        splits: [N] split of each.
        folder: where shards lie (in `shards/`) and results go; the manifest comes last.
        rejected: how many images were refused, for the manifest.
        summary: what became of the source, for the manifest.
    """
    parts: dict[str, SplitManifest] = {}
    pointers = np.zeros(len(rows), np.int64)
    in_split = np.zeros(len(rows), np.int64)
    for split in SPLITS:
        chosen = np.flatnonzero(splits == split)
        if not len(chosen):
            continue
        selected = rows.keep(splits == split)
        pointers[chosen], page_size, table_start = lay_out(selected["size"])
        in_split[chosen] = np.arange(len(chosen))
        path = folder / f"{split}.beton"
        table = BetonTable(
            path,
            selected["mode"].astype(np.uint8),
            selected["width"],
            selected["height"],
            pointers[chosen],
            selected["size"],
            selected["label"],
        )
        with closing(_HashingFile(path, options.processes)) as written:
            runs = _runs(folder, selected, pointers[chosen])
            write_beton(written.write, table, page_size, table_start, runs)
            sha256 = written.finish()
        parts[split] = SplitManifest(
            file=path.name,
            sha256=sha256,
            size_bytes=path.stat().st_size,
            samples=len(chosen),
            counts=np.bincount(selected["label"], minlength=len(source.classes)).tolist(),
        )
    _write_index(rows, splits, in_split, pointers, source, folder)
    mean, std = _mean_std(rows.keep(splits == "train"))
    side = int(rows["width"][0])
    square = bool((rows["width"] == side).all() and (rows["height"] == side).all())
    manifest = Manifest(
        source=storable(source.name),
        seed=options.seed,
        classes=[storable(name) for name in source.classes],
        image_size=side if square else None,
        max_width=int(rows["width"].max()),
        max_height=int(rows["height"].max()),
        mean=mean,
        std=std,
        splits=parts,
        rejected=rejected,
        options=options.content(),
        options_hash=options_hash(source.name, options),
        summary=summary,
    )
    write_durably(folder / MANIFEST_NAME, [manifest.model_dump_json(indent=2).encode()])
    return manifest


class _HashingFile:
    """Hashes what is written to it, in large pieces on `workers` threads; fsynced when finished.

    All other work of `prepare` is spread over the cores; what is left to one process must not
    decide how fast it is.
    """

    def __init__(self, path: Path, workers: int) -> None:
        self._file = path.open("wb", buffering=0)
        self._digest = hashlib.sha256()
        self._piece, self._position = bytearray(), 0
        self._workers = workers
        self._writers = ThreadPoolExecutor(workers, "tokenpool-write")
        self._hasher = ThreadPoolExecutor(1, "tokenpool-hash")
        self._pending: deque[Future[None]] = deque()

    def write(self, data: bytes) -> None:
        if len(data) >= _PIECE_BYTES // 4:  # large enough to go as it is, without a copy
            self._flush()
            self._put(data)
            return
        self._piece += data
        if len(self._piece) >= _PIECE_BYTES:
            self._flush()

    def _flush(self) -> None:
        piece, self._piece = self._piece, bytearray()
        if piece:
            self._put(piece)

    def _put(self, piece: bytes | bytearray) -> None:
        position = self._position
        self._position += len(piece)
        if self._workers == 1:
            self._digest.update(piece)
            self._write_at(piece, position)
            return
        self._pending.append(self._hasher.submit(self._digest.update, piece))
        self._pending.append(self._writers.submit(self._write_at, piece, position))
        while len(self._pending) > 4 * self._workers:  # memory stays small
            self._pending.popleft().result()

    def _write_at(self, piece: bytes | bytearray, position: int) -> None:
        rest = memoryview(piece)
        while rest:
            written = os.pwrite(self._file.fileno(), rest, position)
            rest, position = rest[written:], position + written

    def finish(self) -> str:
        """Write what is left and give the SHA-256 of all of it, as hex digits."""
        self._flush()
        while self._pending:
            self._pending.popleft().result()
        os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def close(self) -> None:
        for pool in (self._writers, self._hasher):
            pool.shutdown(cancel_futures=True)
        self._file.close()


def _runs(folder: Path, rows: Rows, pointers: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """(pointer, bytes) of as many rows at a time as lie together in shard and beton alike.

    Rows are in shard order, so one file is open at a time.

    Raises:
        ValueError: a shard is shorter than its table says.
    """
    shards, offsets, sizes = rows.shard, rows["offset"], rows["size"]
    apart = (
        (shards[1:] != shards[:-1])
        | (offsets[1:] != offsets[:-1] + sizes[:-1])
        | (pointers[1:] != pointers[:-1] + sizes[:-1])
    )
    begins = np.concatenate([[0], 1 + np.flatnonzero(apart)])
    lengths = np.add.reduceat(sizes, begins)
    columns = (shards[begins], offsets[begins], lengths, pointers[begins])
    runs = zip(*(column.tolist() for column in columns), strict=True)
    for shard, in_shard in groupby(runs, key=itemgetter(0)):
        path = shard_paths(folder / "shards", shard)[0]
        with path.open("rb", buffering=0) as file:
            for _, offset, length, pointer in in_shard:
                data = os.pread(file.fileno(), length, offset)
                if len(data) != length:
                    raise ValueError(f"{path} is shorter than its table says")
                yield pointer, data


def _write_index(
    rows: Rows,
    splits: np.ndarray,
    in_split: np.ndarray,
    pointers: np.ndarray,
    source: Source,
    folder: Path,
) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    classes = np.array([storable(name) for name in source.classes], dtype=object)
    table = pa.table(
        {
            "split": pa.array(splits.tolist()).dictionary_encode(),
            "position": in_split,
            "label": rows["label"],
            "class": pa.array(classes[rows["label"]].tolist(), pa.string()).dictionary_encode(),
            "source_name": pa.array(rows["name"].tolist(), pa.string()),
            "source_sha1": pa.array(rows["source_sha1"].tolist(), pa.string()),
            "width": rows["width"].astype(np.int32),
            "height": rows["height"].astype(np.int32),
            "offset": pointers,
            "size": rows["size"],
        }
    )
    sink = io.BytesIO()
    pa.parquet.write_table(table, sink, compression="zstd")
    write_durably(folder / INDEX_NAME, [sink.getvalue()])


def _mean_std(
    rows: Rows,
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Per channel over all pixels, as fractions of 255."""
    pixels = float((rows["width"] * rows["height"]).sum())
    mean = np.array([rows[f"sum_{c}"].sum() for c in "rgb"]) / pixels
    square = np.array([rows[f"square_{c}"].sum() for c in "rgb"]) / pixels
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    # A constant channel has no deviation to divide by.
    std = np.where(std > 0, std, 255.0)
    (r, g, b), (sr, sg, sb) = (mean / 255).tolist(), (std / 255).tolist()
    return (r, g, b), (sr, sg, sb)
