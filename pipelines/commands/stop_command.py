"""`tokenpool stop NAME`: end a search that runs, in order."""

from __future__ import annotations

import time
from collections import Counter
from typing import Annotated

import typer

from pipelines.commands.shared_options import Name, Storage
from pipelines.errors import UserError
from pipelines.remote import Address, Open, stop_there
from pipelines.search.driver import driver_runs
from pipelines.search.halt import read_request, request_stop
from pipelines.search.refresh import refresh
from pipelines.search.state import SearchState, load_state
from pipelines.storage.search_files import Search

_LOOK_SECONDS = 0.3


def stop(
    name: Name,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for its end; 0: do not wait.")
    ] = 180.0,
    storage: Storage = "runs",
    address: Address = None,
    i_know_this_is_open: Open = False,
) -> None:
    """End a running search in order: trainings may come to their next checkpoint.

    What is finished is kept, and `tokenpool search` goes on from there.
    """
    if address is not None:
        stop_there(address, name, storage, wait, allow_open=i_know_this_is_open)
        return
    search = Search.open(storage, name)
    before = load_state(search)
    if not driver_runs(search):
        how = "is complete" if before.complete else "is not running"
        typer.echo(f"search {name} {how}: there is nothing to stop")
        return
    request_stop(search)
    typer.echo(f"search {name} is asked to stop ({_running(before) or 'no training runs now'})")
    deadline = time.monotonic() + wait
    while driver_runs(search):
        if time.monotonic() > deadline:
            if not wait:
                return
            raise UserError(
                f"search {name} has not ended within {wait:g} s: `tokenpool status {name}` tells "
                "when it has",
                exit_code=1,
            )
        refresh(search)
        if read_request(search) is None and driver_runs(search):
            request_stop(search)  # a driver that was just starting took it for an old one
        time.sleep(_LOOK_SECONDS)
    typer.echo(_said(load_state(search)))


def _running(state: SearchState) -> str:
    return ", ".join(
        f"{model.model_id} is in epoch {model.epochs + 1}"
        for model in [*state.bases, *state.trials.values()]
        if model.status == "running" and model.reports
    )


def _said(state: SearchState) -> str:
    if state.complete:
        return f"search {state.name} was complete before it could be stopped"
    counts: Counter[str] = Counter(trial.status for trial in state.trials.values())
    order = ("done", "paused", "stopped", "failed", "pending")
    kept = [f"{counts[status]} {status}" for status in order if counts[status]]
    cut = [
        f"{trial.model_id} after epoch {trial.epochs}"
        for trial in state.trials.values()
        if trial.status == "running" and trial.reports
    ]
    stage = next(stage for stage, how in state.stages.items() if how != "done")
    trials = f"; trials: {', '.join(kept)}" if kept else ""
    halted = f"; cut short: {', '.join(cut)}" if cut else ""
    why = "" if state.ended else " (by something else than this: its ledger does not say why)"
    return (
        f"search {state.name} stopped in stage {stage}{why}{trials}{halted}; "
        "`tokenpool search` with its config goes on from there"
    )
