"""What lies on a search's parent run: the front's files and the description."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from pipelines.search.ledger import Event
from pipelines.search.state import SearchState
from pipelines.track import files
from pipelines.track.front import Front, build_front, history
from pipelines.track.outside import load_outside
from pipelines.track.page import split_sizes, summary, write_page
from pipelines.track.table import compact_schedule, with_spread

if TYPE_CHECKING:
    from mlflow import MlflowClient


def send_front(
    client: MlflowClient, run_id: str, state: SearchState, events: Iterable[Event], directory: Path
) -> None:
    """Puts the front on the parent run as CSV, Parquet, PNG and page, with config and description.

    Args:
        client: Of the store the run is in.
        run_id: The parent run.
        state: The search as it stands.
        events: Its whole ledger.
        directory: Its folder, which may hold imported fronts.
    """
    from pipelines.track.plot import write_png  # here, as matplotlib takes a second

    front = build_front(state)
    with tempfile.TemporaryDirectory(prefix="tokenpool-front-") as folder:
        out = Path(folder)
        files.write_text(out / "front.csv", files.to_csv(front.points))
        files.write_parquet(front.points, out / "front.parquet")
        files.write_text(out / "config.yaml", yaml.safe_dump(state.config, sort_keys=False))
        others, samples = load_outside(directory), split_sizes(state)
        write_png(front, out / "front.png", others, samples=samples)
        write_page(
            front,
            out / "front.html",
            history(state.name, events),
            others,
            samples=samples,
            footer=f"config {state.config_hash}",
        )
        client.log_artifacts(run_id, folder)
    client.set_tag(run_id, "mlflow.note.content", description(front))


def description(front: Front) -> str:
    """The parent's description: what was found, in a few sentences and a table."""
    rows = [
        f"| {point.point_id} | {point.width} | {compact_schedule(point.schedule)} | "
        f"{point.gmacs:.4g} | {100 * point.dense_share:.0f} | "
        f"{with_spread(point.top1_minival, point.minival_spread)} | "
        f"{with_spread(point.top1_val, point.val_spread)} |"
        for point in front.on_front
    ]
    return "\n".join(
        [
            f"Search `{front.name}`: {summary(front)}",
            "",
            "| model | width | patch tokens | GMACs | % of dense | minival | val |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            "The interactive front is the artifact `front.html`. "
            f"`tokenpool pick {front.name} --knee` chooses, `tokenpool export` takes away.",
        ]
    )
