"""`tokenpool pick NAME`: one model of the front, and why."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pipelines.commands.shared_options import AsJson, Name, Storage
from pipelines.errors import UserError
from pipelines.results import pick as choose
from pipelines.results.front import build_front
from pipelines.search.state import load_state
from pipelines.storage.search_files import Search


def pick(
    name: Name,
    max_gmacs: Annotated[
        float | None, typer.Option(help="The most accurate within this cost.")
    ] = None,
    min_top1: Annotated[
        float | None, typer.Option(help="The cheapest with this top-1 on minival, as 0.97 or 97.")
    ] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="The most accurate within this time per batch.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Batch size of the latency; default the smallest measured.")
    ] = None,
    knee: Annotated[
        bool, typer.Option("--knee", help="Where paying more stops being worth it.")
    ] = False,
    as_json: AsJson = False,
    storage: Storage = "runs",
) -> None:
    """Choose one model of a search's front by a bound, or its knee."""
    given = sum([max_gmacs is not None, min_top1 is not None, max_latency_ms is not None, knee])
    if given != 1:
        raise UserError(
            "pick needs exactly one of --max-gmacs, --min-top1, --max-latency-ms and --knee"
        )
    found = build_front(load_state(Search.open(storage, name)))
    if max_gmacs is not None:
        choice = choose.pick_max_gmacs(found, max_gmacs)
    elif min_top1 is not None:
        choice = choose.pick_min_top1(found, min_top1)
    elif max_latency_ms is not None:
        choice = choose.pick_max_latency(
            found, max_latency_ms, None if batch is None else str(batch)
        )
    else:
        choice = choose.pick_knee(found)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    **choice.point.as_dict(),
                    "why": choice.why,
                    "one_step_cheaper": choice.cheaper and choice.cheaper.point_id,
                    "one_step_better": choice.better and choice.better.point_id,
                },
                indent=2,
            )
        )
    else:
        typer.echo(choose.explain_choice(found, choice))
