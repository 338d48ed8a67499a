"""The front as files and text for other programs: CSV, JSON, Parquet."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.storage.room import lacks_room
from pipelines.streams import as_utf8
from pipelines.track.front import Front, Point


def rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """One flat dict per point, all with the same keys."""
    dicts = [point.as_dict() for point in points]
    keys = list(dict.fromkeys(key for row in dicts for key in row))
    return [{key: row.get(key) for key in keys} for row in dicts]


def to_csv(points: Sequence[Point]) -> str:
    """The points as CSV with a header; a missing value is an empty cell."""
    table = rows(points)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(table[0]) if table else ["id"])
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def to_json(front: Front, points: Sequence[Point]) -> str:
    """The front's totals and the points as JSON."""
    return json.dumps(
        {
            "name": front.name,
            "hypervolume": front.hypervolume,
            "reference_gmacs": front.reference_gmacs,
            "points": rows(points),
        },
        indent=2,
    )


def write_parquet(points: Sequence[Point], path: Path) -> None:
    """The points as a Parquet file, the schedule as a list of integers too."""
    import pyarrow as pa  # here, as it takes a third of a second
    import pyarrow.parquet as pq

    table = [
        {**row, "tokens": list(point.schedule)}
        for row, point in zip(rows(points), points, strict=True)
    ]
    write_atomic(path, lambda aside: pq.write_table(pa.Table.from_pylist(table), aside))


def write_text(path: Path, text: str) -> None:
    """Writes a text file aside and makes it visible whole.

    Raises:
        UserError: The target cannot be written.
    """
    write_atomic(path, lambda aside: aside.write_text(as_utf8(text), encoding="utf-8"))


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file beside `path`, syncs it to disk and renames it.

    Raises:
        UserError: The target cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; "
            + ("make room there" if lacks_room(error) else "choose another target"),
            exit_code=1,
        ) from None
