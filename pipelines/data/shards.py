"""One unit of a source made into a shard: encoded bytes and a table, both written aside first.

Shards are what a killed run resumes from, and what processes or Ray workers make in parallel. A
shard is complete when its table is there, for that is renamed into place last.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.encode import encode
from pipelines.data.images import RejectedImageError
from pipelines.data.names import storable
from pipelines.data.options import PrepareOptions
from pipelines.data.sources.source import Mode, Sample, Unit
from pipelines.storage.durable import write_durably

DIGEST_BYTES = hashlib.sha1(usedforsecurity=False).digest_size

COLUMNS = (
    "split", "label", "name", "source_sha1", "width", "height", "mode", "size", "offset",
    "sum_r", "sum_g", "sum_b", "square_r", "square_g", "square_b", "error", "converted",
    "warning",
)  # fmt: skip


def schema() -> pa.Schema:
    """The columns of a shard's table; `error` is empty for good rows, other columns count then."""
    kinds = dict.fromkeys(COLUMNS, pa.int64()) | {
        "split": pa.string(),
        "name": pa.string(),
        "source_sha1": pa.binary(DIGEST_BYTES),
        "error": pa.string(),
        "converted": pa.string(),
        "warning": pa.string(),
        **{f"{kind}_{channel}": pa.float64() for kind in ("sum", "square") for channel in "rgb"},
    }
    return pa.schema([(name, kinds[name]) for name in COLUMNS])


@dataclass(frozen=True)
class Recipe:
    """How images are checked and encoded; labels from `num_classes` up are refused."""

    options: PrepareOptions
    mode: Mode
    num_classes: int


def make_shard(unit: Unit, recipe: Recipe) -> tuple[bytes, bytes]:
    """Read, check and encode one unit: (the images' bytes in a row, the table as Parquet)."""
    rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    blobs: list[bytes] = []
    offset = 0
    for sample in unit.read():
        row, blob = _encode_row(sample, recipe)
        if blob is not None:
            row["offset"] = offset
            offset += len(blob)
            blobs.append(blob)
        for name in COLUMNS:
            rows[name].append(row[name])
    sink = io.BytesIO()
    pq.write_table(pa.table(rows, schema=schema()), sink)
    return b"".join(blobs), sink.getvalue()


def _encode_row(sample: Sample, recipe: Recipe) -> tuple[dict[str, Any], bytes | None]:
    raw = sample.data if isinstance(sample.data, bytes) else sample.data.tobytes()
    sha1 = hashlib.sha1(raw, usedforsecurity=False).digest()
    row: dict[str, Any] = dict.fromkeys(COLUMNS, 0) | {
        "split": sample.split,
        "label": sample.label,
        "name": storable(sample.name),
        "source_sha1": sha1,
        "error": storable(sample.error),
        "converted": "",
        "warning": "",
    }
    if not sample.error and not 0 <= sample.label < recipe.num_classes:
        row["error"] = f"label {sample.label} is out of range 0..{recipe.num_classes - 1}"
    if row["error"]:
        return row, None
    # By content and not by place, so that the choice survives any change of sharding.
    as_jpg = recipe.mode == "jpg" or (
        recipe.mode == "proportion" and int.from_bytes(sha1[:4]) / 2**32 < recipe.options.proportion
    )
    try:
        encoded = encode(sample.data, recipe.options, as_jpg=as_jpg)
    except RejectedImageError as error:
        row["error"] = storable(str(error))
        return row, None
    row |= {
        "width": encoded.width,
        "height": encoded.height,
        "mode": encoded.mode,
        "size": len(encoded.blob),
        "converted": encoded.conversion,
        "warning": encoded.warning,
    }
    for i, channel in enumerate("rgb"):
        row[f"sum_{channel}"] = float(encoded.sums[i])
        row[f"square_{channel}"] = float(encoded.squares[i])
    return row, encoded.blob


def shard_paths(folder: Path, number: int) -> tuple[Path, Path]:
    """(data, table) of a shard."""
    return folder / f"{number:06d}.bin", folder / f"{number:06d}.parquet"


def write_shard(folder: Path, number: int, data: bytes | None, table: bytes) -> None:
    """Put a finished shard in place, its table last; without data where only its rows matter."""
    for path, content in zip(shard_paths(folder, number), (data, table), strict=True):
        if content is not None:
            write_durably(path, [content])
