"""What lies on a search's parent run: the front's files and the description."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from pipelines.results.front import Front, build_front
from pipelines.results.page import summary
from pipelines.results.result_files import write_results
from pipelines.results.table import compact_schedule, with_spread
from pipelines.search.state import SearchState
from pipelines.storage.durable import write_text
from pipelines.storage.search_files import Search

if TYPE_CHECKING:
    from mlflow import MlflowClient


def send_front(client: MlflowClient, run_id: str, state: SearchState, search: Search) -> None:
    """Puts the front on the parent run as files, with config and description."""
    with tempfile.TemporaryDirectory(prefix="tokenpool-front-") as folder:
        out = Path(folder)
        write_results(state, search, out)
        write_text(out / "config.yaml", yaml.safe_dump(state.config.resolved(), sort_keys=False))
        client.log_artifacts(run_id, folder)
    client.set_tag(run_id, "mlflow.note.content", description(build_front(state)))


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
