"""`tokenpool logs NAME`: what a search has printed on a cluster, or what happened in one here."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from pipelines.commands.shared_options import Name, Storage
from pipelines.remote import Address, Open, Remote, one_line
from pipelines.results.ledger_text import story
from pipelines.search.driver import driver_runs
from pipelines.search.ledger import read_events
from pipelines.search.refresh import refresh
from pipelines.search.state import load_state
from pipelines.storage.search_files import Search

_LOOK_SECONDS = 1.0


def logs(
    name: Name,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until it ends; Ctrl-C leaves it running.")
    ] = False,
    storage: Storage = "runs",
    address: Address = None,
    i_know_this_is_open: Open = False,
) -> None:
    """What a search has printed on a cluster, or its ledger's events on this machine.

    With --follow it attaches again to a search that was submitted.
    """
    if address is None:
        _here(Search.open(storage, name), follow)
        return
    remote = Remote(address, allow_open=i_know_this_is_open)
    job_id = remote.newest(name)
    if follow:
        raise typer.Exit(remote.follow(job_id, name))
    with one_line():
        typer.echo(remote.api.logs(job_id), nl=False)


def _here(search: Search, follow: bool) -> None:
    load_state(search)  # an unknown name is said
    shown = 0
    try:
        while True:
            runs = driver_runs(search)
            refresh(search)
            lines = list(story(read_events(search.ledger)))
            for line in lines[shown:]:
                typer.echo(line)
            shown = len(lines)
            if not (follow and runs):
                return
            time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:
        return
