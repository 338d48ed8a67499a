"""Finished shards put together: betons, index and manifest, in a directory not yet visible."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np

from pipelines.data.beton import BetonTable, lay_out, write_beton
from pipelines.data.manifest import MANIFEST_NAME, SPLITS, Manifest, SplitManifest, Summary
from pipelines.data.names import storable
from pipelines.data.options import PrepareOptions, options_hash
from pipelines.data.sample_index import write_index
from pipelines.data.shard_rows import Rows, equal_digests, in_chunks
from pipelines.data.shards import shard_paths
from pipelines.data.sources.folder import no_images
from pipelines.data.sources.source import Source
from pipelines.data.splits import NO_SPLIT, assign_splits
from pipelines.storage.durable import write_durably

_PIECE_BYTES = 1 << 22
_TRAIN, _MINIVAL, _VAL = range(len(SPLITS))


def find_rejected(
    rows: Rows, splits: np.ndarray, classes: list[str]
) -> tuple[dict[int, tuple[str, str]], int]:
    """Which rows are refused, and how many good ones are copies of others.

    Besides what reading found, an image whose source bytes occur in two splits is refused in all
    but the most protected of them (val before minival before train): a training image that is
    also tested on makes the test worthless. One that lies in two classes is refused in all of them:
    which is right, nobody knows. Copies within a class of a split only weigh more.

    `splits` [N] are from `split_rows`. Gives ((name, reason) of each refused row in order of the
    rows, the number of copies).
    """
    texts = rows.texts["error"]
    failed = np.flatnonzero(rows["error"])
    reasons = {row: texts[code] for row, code in in_chunks(failed, rows["error"][failed])}
    alike = equal_digests(rows["source_sha1"])
    alike = alike[rows["error"][alike] == 0]
    digests = rows["source_sha1"][alike]
    rank = np.array([2, 1, 0])[splits[alike]]  # of train, minival, val
    picture = np.cumsum(np.concatenate([[False], digests[1:] != digests[:-1]])[: len(alike)])
    alike = alike[np.lexsort((rank, picture))]  # stable: the first of the most protected leads
    lengths = np.bincount(picture)
    first_of: dict[int, int] = {}  # by row, the one it is refused for
    copies = start = 0
    for length in lengths.tolist():
        group = alike[start : start + length].tolist()
        start += length
        first = group[0]
        other = next((i for i in group if rows["label"][i] != rows["label"][first]), None)
        for i in group:
            if other is not None:
                first_of[i] = other if rows["label"][i] == rows["label"][first] else first
            elif splits[i] != splits[first]:
                first_of[i] = first
            elif i != first:
                copies += 1
    names = rows.names({*reasons, *first_of, *first_of.values()})
    for i, first in first_of.items():
        if rows["label"][i] != rows["label"][first]:
            label = classes[rows["label"][first]]
            reasons[i] = f"same picture as {names[first]} of class {label}"
        else:
            reasons[i] = f"duplicate of {names[first]} in {SPLITS[splits[first]]}"
    return {row: (names[row], reasons[row]) for row in sorted(reasons)}, copies


def find_absent_classes(
    rows: Rows, splits: np.ndarray, good: np.ndarray, classes: list[str]
) -> list[tuple[str, str]]:
    """(split/class, reason) for each class that one of train and val has and the other lacks.

    `splits` [N] are from `split_rows`, `good` [N] is False for what is refused. A class without any
    image at all may have been declared for later.
    """
    if not (splits == _VAL).any():
        return []
    labels = rows["label"]
    absent: list[tuple[str, str]] = []
    for here, there in ((_TRAIN, _VAL), (_VAL, _TRAIN)):
        lacking = np.setdiff1d(labels[splits == there], labels[good & (splits == here)])
        for label in lacking[(lacking >= 0) & (lacking < len(classes))].tolist():
            reason = no_images(classes[label], SPLITS[here])
            absent.append((f"{SPLITS[here]}/{classes[label]}", reason))
    return absent


def split_rows(rows: Rows, source: Source, options: PrepareOptions) -> np.ndarray:
    """[N] position in SPLITS of each row; rows that failed do not disturb the choice."""
    good = rows["error"] == 0
    in_val = rows.is_text("split", "val")
    splits = np.where(in_val, _VAL, _TRAIN).astype(np.uint8)
    splits[good] = assign_splits(
        in_val[good],
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
    """Write the betons, `index.parquet` and, last, `manifest.json` of the good rows to `folder`.

    `splits` [N] are positions in SPLITS of each good row, NO_SPLIT for others; the number of
    rejected images and the summary go into the manifest.
    """
    parts: dict[str, SplitManifest] = {}
    pointers = np.zeros(len(rows), np.int64)
    for code, split in enumerate(SPLITS):
        chosen = splits == code
        if not chosen.any():
            continue
        sizes = rows["size"][chosen]
        pointers[chosen], page_size, table_start = lay_out(sizes)
        path = folder / f"{split}.beton"
        mode, width, height, label = (
            rows[name][chosen] for name in ("mode", "width", "height", "label")
        )
        table = BetonTable(path, mode, width, height, pointers[chosen], sizes, label)
        del mode, width, height, label
        with closing(_HashingFile(path, options.processes)) as written:
            write_beton(written.write, table, page_size, table_start, _runs(rows, chosen, pointers))
            sha256 = written.finish()
        parts[split] = SplitManifest(
            file=path.name,
            sha256=sha256,
            size_bytes=path.stat().st_size,
            samples=len(table),
            counts=np.bincount(table.label, minlength=len(source.classes)).tolist(),
        )
        del table, sizes, chosen  # the next split's come beside all rows, and not beside these
    mean, std = _mean_std(*write_index(rows, splits, pointers, source, folder))
    kept = splits != NO_SPLIT
    widths, heights = rows["width"][kept], rows["height"][kept]
    largest = int(widths.max()), int(heights.max())
    side = int(widths[0])
    square = largest == (side, side) and side == widths.min() == heights.min()
    manifest = Manifest(
        source=storable(source.name),
        seed=options.seed,
        classes=[storable(name) for name in source.classes],
        image_size=side if square else None,
        max_width=largest[0],
        max_height=largest[1],
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


def _runs(rows: Rows, chosen: np.ndarray, pointers: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """(pointer, bytes) of as many of the chosen rows [N] as lie together in shard and beton alike.

    Raises:
        ValueError: a shard is shorter than its table says.
    """
    for shard, (start, end) in enumerate(zip(rows.starts[:-1], rows.starts[1:], strict=True)):
        mine = start + np.flatnonzero(chosen[start:end])
        if not len(mine):
            continue
        offsets, sizes, places = rows["offset"][mine], rows["size"][mine], pointers[mine]
        apart = (offsets[1:] != offsets[:-1] + sizes[:-1]) | (
            places[1:] != places[:-1] + sizes[:-1]
        )
        begins = np.concatenate([[0], 1 + np.flatnonzero(apart)])
        lengths = np.add.reduceat(sizes, begins)
        path = shard_paths(rows.folder, shard)[0]
        with path.open("rb", buffering=0) as file:
            for offset, length, pointer in in_chunks(offsets[begins], lengths, places[begins]):
                data = os.pread(file.fileno(), length, offset)
                if len(data) != length:
                    raise ValueError(f"{path} is shorter than its table says")
                yield pointer, data


def _mean_std(
    pixels: int, sums: np.ndarray
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Per channel over so many pixels, as fractions of 255."""
    mean, square = sums[:3] / float(pixels), sums[3:] / float(pixels)
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    # A constant channel has no deviation to divide by.
    std = np.where(std > 0, std, 255.0)
    (r, g, b), (sr, sg, sb) = (mean / 255).tolist(), (std / 255).tolist()
    return (r, g, b), (sr, sg, sb)
