"""Finished shards put together: betons, index and manifest, in a directory not yet visible."""

import hashlib
import io
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
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
from pipelines.data.shard_rows import Rows, coded, hexadecimal, in_chunks
from pipelines.data.shards import shard_paths, write_durably
from pipelines.data.sources.base import Source
from pipelines.data.sources.folder import no_images
from pipelines.data.splits import assign_splits

_PIECE_BYTES = 1 << 22


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
    reasons = rows["error"].copy()
    good = np.flatnonzero(reasons == "")
    rank = np.select([splits[good] == "val", splits[good] == "minival"], [0, 1], 2)
    _, picture = np.unique(rows["source_sha1"][good], return_inverse=True)
    labels = rows["label"][good]
    order = np.lexsort((rank, picture))  # stable: the first of the most protected leads its group
    begins = np.flatnonzero(np.diff(picture[order], prepend=-1))
    lengths = np.diff(begins, append=len(order))
    copies = 0
    for begin, length in zip(
        begins[lengths > 1].tolist(), lengths[lengths > 1].tolist(), strict=True
    ):
        group = order[begin : begin + length]
        first = group[0]
        others = group[labels[group] != labels[first]]
        for i in group.tolist():
            if len(others):
                other = good[others[0] if labels[i] == labels[first] else first]
                label = classes[rows["label"][other]]
                reasons[good[i]] = f"same picture as {rows.name(other)} of class {label}"
            elif rank[i] > rank[first]:
                where = splits[good[first]]
                reasons[good[i]] = f"duplicate of {rows.name(good[first])} in {where}"
            elif i != first:
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
        sizes = rows["size"][chosen]
        pointers[chosen], page_size, table_start = lay_out(sizes)
        in_split[chosen] = np.arange(len(chosen))
        path = folder / f"{split}.beton"
        table = BetonTable(
            path,
            rows["mode"][chosen],
            rows["width"][chosen],
            rows["height"][chosen],
            pointers[chosen],
            sizes,
            rows["label"][chosen],
        )
        with closing(_HashingFile(path, options.processes)) as written:
            runs = _runs(folder, rows.shard[chosen], rows["offset"][chosen], sizes, table.pointer)
            write_beton(written.write, table, page_size, table_start, runs)
            sha256 = written.finish()
        parts[split] = SplitManifest(
            file=path.name,
            sha256=sha256,
            size_bytes=path.stat().st_size,
            samples=len(chosen),
            counts=np.bincount(table.label, minlength=len(source.classes)).tolist(),
        )
    _write_index(rows, splits, in_split, pointers, source, folder)
    mean, std = _mean_std(rows, splits == "train")
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


def _runs(
    folder: Path, shards: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, pointers: np.ndarray
) -> Iterator[tuple[int, bytes]]:
    """(pointer, bytes) of as many rows at a time as lie together in shard and beton alike.

    Rows are in shard order, so one file is open at a time.

    Raises:
        ValueError: a shard is shorter than its table says.
    """
    apart = (
        (shards[1:] != shards[:-1])
        | (offsets[1:] != offsets[:-1] + sizes[:-1])
        | (pointers[1:] != pointers[:-1] + sizes[:-1])
    )
    begins = np.concatenate([[0], 1 + np.flatnonzero(apart)])
    lengths = np.add.reduceat(sizes, begins)
    runs = in_chunks(shards[begins], offsets[begins], lengths, pointers[begins])
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

    classes = [storable(name) for name in source.classes]
    codes = np.select([splits == split for split in SPLITS], list(range(len(SPLITS))))
    table = pa.table(
        {
            "split": coded(codes, list(SPLITS)),
            "position": in_split,
            "label": rows["label"],
            "class": coded(rows["label"], classes),
            "source_name": rows.names.cast(pa.string()),
            "source_sha1": hexadecimal(rows["source_sha1"]),
            "width": rows["width"],
            "height": rows["height"],
            "offset": pointers,
            "size": rows["size"],
        }
    )
    sink = io.BytesIO()
    pa.parquet.write_table(table, sink, compression="zstd")
    write_durably(folder / INDEX_NAME, [sink.getbuffer()])


def _mean_std(
    rows: Rows, chosen: np.ndarray
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Per channel over all pixels of the chosen rows, as fractions of 255."""
    pixels = float((rows["width"][chosen].astype(np.int64) * rows["height"][chosen]).sum())
    mean = np.array([rows[f"sum_{c}"][chosen].sum() for c in "rgb"]) / pixels
    square = np.array([rows[f"square_{c}"][chosen].sum() for c in "rgb"]) / pixels
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    # A constant channel has no deviation to divide by.
    std = np.where(std > 0, std, 255.0)
    (r, g, b), (sr, sg, sb) = (mean / 255).tolist(), (std / 255).tolist()
    return (r, g, b), (sr, sg, sb)
