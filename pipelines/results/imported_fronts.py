"""Fronts measured elsewhere, kept beside a search for side-by-side plots."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.results.page import OutsideFront, OutsidePoint
from pipelines.storage.durable import write_text
from pipelines.storage.search_files import Search


def import_front(search: Search, source: Path, name: str | None = None) -> OutsideFront:
    """Reads a table of models and keeps it under a search's folder.

    Args:
        search: Where it is kept.
        source: Parquet, CSV or JSON-lines with the columns `gmacs` and `top1` (fraction, or
            percent if any is above 1), and `label`, `top1_std` and `params` where there are.
        name: What the front is called; default the file's name. The same name replaces.

    Raises:
        UserError: The file cannot be read, or a column or value is missing.
    """
    rows = _read_table(source)
    if not rows:
        raise UserError(f"{source} holds no rows: each model needs gmacs and top1")
    for column in ("gmacs", "top1"):
        if column not in rows[0]:
            raise UserError(
                f"{source} has no column {column}: it has {', '.join(map(str, rows[0]))}"
            )
    numbers = [(_number(row, "gmacs", i, source), _number(row, "top1", i, source))
               for i, row in enumerate(rows, start=1)]  # fmt: skip
    scale = 100.0 if max(top1 for _, top1 in numbers) > 1 else 1.0
    for i, (gmacs, top1) in enumerate(numbers, start=1):
        if gmacs <= 0 or not 0 <= top1 / scale <= 1:
            raise UserError(f"{source} row {i}: gmacs {gmacs:g} with top1 {top1:g} is impossible")
    found = OutsideFront(
        name or source.stem,
        tuple(
            OutsidePoint(
                str(row.get("label") or f"{gmacs:g} GMACs"),
                gmacs,
                top1 / scale,
                _optional(row, "top1_std", i, source, scale),
                _optional(row, "params", i, source),
            )
            for i, (row, (gmacs, top1)) in enumerate(zip(rows, numbers, strict=True), start=1)
        ),
    )
    points = [asdict(point) for point in found.points]
    file = re.sub(r"[^A-Za-z0-9_.-]+", "-", found.name).strip(".-") or "front"
    write_text(
        search.outside / f"{file}.json",
        json.dumps({"name": found.name, "points": points}, indent=1),
    )
    return found


def load_outside(search: Search) -> list[OutsideFront]:
    """The fronts that were imported for a search, by name."""
    found = []
    for path in sorted(search.outside.glob("*.json")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        points = tuple(OutsidePoint(**point) for point in kept["points"])
        found.append(OutsideFront(kept["name"], points))
    return found


def _read_table(source: Path) -> list[dict[str, Any]]:
    if not source.is_file():
        raise UserError(f"no file {source}: give a Parquet, CSV or JSON-lines file")
    try:
        if source.suffix == ".parquet":
            import pyarrow.parquet as pq  # here, as it takes a third of a second

            rows: list[dict[str, Any]] = pq.read_table(source).to_pylist()
            return rows
        text = source.read_text(encoding="utf-8")
        if source.suffix in (".jsonl", ".json"):
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return list(csv.DictReader(text.splitlines()))
    except (OSError, ValueError) as error:
        problem = str(error).splitlines()[0]
        raise UserError(f"{source} is no Parquet, CSV or JSON-lines table: {problem}") from None


def _optional(
    row: dict[str, Any], column: str, number: int, source: Path, scale: float = 1.0
) -> float | None:
    if row.get(column) in (None, ""):
        return None
    value = _number(row, column, number, source)
    if value < 0:
        raise UserError(f"{source} row {number}: {column} {value:g} is below 0")
    return value / scale


def _number(row: dict[str, Any], column: str, number: int, source: Path) -> float:
    try:
        value = float(row[column])
    except (KeyError, TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{source} row {number}: {column} is {row.get(column)!r}, no number")
    return value
