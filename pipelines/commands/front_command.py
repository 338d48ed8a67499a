"""`tokenpool front NAME`: the Pareto table of a search."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from pipelines.commands.shared_options import AsJson, Name, Storage
from pipelines.errors import UserError
from pipelines.remote import Address, Open, run_there
from pipelines.results.front import build_front
from pipelines.results.result_files import to_csv, to_json
from pipelines.results.table import front_table
from pipelines.search.state import load_state
from pipelines.storage.search_files import Search

_UNBOUNDED = 160


def front(
    name: Name,
    everything: Annotated[
        bool, typer.Option("--all", help="Dominated, stopped and failed models too.")
    ] = False,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    storage: Storage = "runs",
    address: Address = None,
    i_know_this_is_open: Open = False,
) -> None:
    """The Pareto front of a search: GMACs against top-1."""
    if as_json and as_csv:
        raise UserError("--json and --csv exclude each other: give one of them")
    if address is not None:
        flags = {"--all": everything, "--json": as_json, "--csv": as_csv}
        words = ["front", name, *(flag for flag, given in flags.items() if given)]
        run_there(address, words, name, storage, allow_open=i_know_this_is_open)
        return
    found = build_front(load_state(Search.open(storage, name)))
    points = found.points if everything else found.on_front
    if as_json:
        typer.echo(to_json(found, points))
    elif as_csv:
        typer.echo(to_csv(points), nl=False)
    else:
        # In a pipe or a file there is no edge to fit.
        console = Console(width=None if sys.stdout.isatty() else _UNBOUNDED)
        console.print(front_table(found, points, width=console.width))
