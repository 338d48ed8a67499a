"""What a search has found as files: CSV, JSON and Parquet for other programs, picture and page."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.results.front import Front, Point, build_front, history
from pipelines.results.imported_fronts import load_outside
from pipelines.results.page import render_page, split_sizes
from pipelines.search.ledger import read_events
from pipelines.search.state import SearchState
from pipelines.storage.durable import write_atomic, write_text
from pipelines.storage.search_files import Search

# In the order in which they are written: where the last is, the others are.
RESULTS = ("results.parquet", "front.csv", "front.png", "front.html")


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


def write_page(state: SearchState, search: Search, target: Path) -> None:
    """The front as one HTML file, from the search's folder with its ledger and imported fronts.

    Raises:
        UserError: The target cannot be written.
    """
    growth = history(state.name, read_events(search.ledger))
    footer = f"config {state.config_hash}"
    others, samples = load_outside(search), split_sizes(state)
    write_text(target, render_page(build_front(state), growth, others, samples, footer))


def write_results(state: SearchState, search: Search, folder: Path) -> None:
    """Writes what a search has found: the same files beside its ledger and in MLflow.

    `results.parquet` has all models, `front.csv` those on the front, `front.png` and `front.html`
    show both.

    Raises:
        UserError: The folder cannot be written.
    """
    from pipelines.results.plot import front_figure  # here, as matplotlib takes a second

    front = build_front(state)
    write_parquet(front.points, folder / "results.parquet")
    write_text(folder / "front.csv", to_csv(front.on_front))
    figure = front_figure(front, load_outside(search), split_sizes(state).get("minival"))
    write_atomic(folder / "front.png", lambda aside: figure.savefig(aside, format="png"))
    write_page(state, search, folder / RESULTS[-1])
