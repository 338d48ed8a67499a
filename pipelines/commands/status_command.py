"""`tokenpool status`: how far searches are."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

from pipelines.commands.shared_options import AsJson, Storage
from pipelines.errors import UserError
from pipelines.remote import Address, Open, run_there
from pipelines.results.front import history
from pipelines.results.status import search_status, status_text
from pipelines.search.ledger import read_events
from pipelines.search.state import load_state, search_names
from pipelines.storage.search_files import Search
from pipelines.storage.working import open_root

_REFRESH_SECONDS = 2.0


def status(
    name: Annotated[str | None, typer.Argument(help="The search; default all.")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again and again until it is over.")
    ] = False,
    as_json: AsJson = False,
    storage: Storage = "runs",
    address: Address = None,
    i_know_this_is_open: Open = False,
) -> None:
    """How far a search is: stages, models, hypervolume against device-seconds."""
    if watch and (as_json or name is None):
        raise UserError("--watch needs the NAME of one search, and no --json")
    if address is not None:
        if watch:
            raise UserError(f"--watch looks at this machine: use `tokenpool logs {name} --follow`")
        words = ["status", *([name] if name else []), *(["--json"] if as_json else [])]
        run_there(address, words, name, storage, allow_open=i_know_this_is_open)
        return
    root = open_root(storage)
    names = [name] if name else search_names(root)
    if not names:
        raise UserError(f"no search under {storage}: run `tokenpool search CONFIG.yaml` first")
    if watch:
        _watch(Search(root, names[0]))
        return
    found, refused = [], None
    for each in names:
        try:
            found.append(_status(Search(root, each)))
        except UserError as error:
            if name:
                raise
            refused = refused or error  # said below: it hides none of the others
    if as_json:
        typer.echo(json.dumps(found[0] if name else found, indent=2))
    else:
        typer.echo("\n".join(status_text(one) for one in found))
    if refused is not None:
        raise refused


def _status(search: Search) -> dict[str, Any]:
    state = load_state(search)
    return search_status(state, search, history(search.name, read_events(search.ledger)))


def _watch(search: Search) -> None:
    from rich.live import Live  # here: only this way of looking needs it
    from rich.text import Text

    now = _status(search)
    try:
        with Live(Text(status_text(now)), auto_refresh=False) as live:
            while now["state"] == "running":
                time.sleep(_REFRESH_SECONDS)
                now = _status(search)
                live.update(Text(status_text(now)), refresh=True)
    except KeyboardInterrupt:
        return
