"""`tokenpool logs NAME`: what a search that was submitted to a cluster has printed."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.errors import UserError
from pipelines.remote import Address, Open, Remote, one_line


def logs(
    name: Annotated[str, typer.Argument(help="The search.")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until it ends; Ctrl-C leaves it running.")
    ] = False,
    address: Address = None,
    i_know_this_is_open: Open = False,
) -> None:
    """What a submitted search has printed; --follow attaches to it again."""
    if address is None:
        raise UserError(
            "logs are kept where a search was submitted to: give --address http://HOST:8265 "
            f"(`tokenpool status {name}` shows a search of this machine)"
        )
    remote = Remote(address, allow_open=i_know_this_is_open)
    job_id = remote.newest(name)
    if follow:
        raise typer.Exit(remote.follow(job_id, name))
    with one_line():
        typer.echo(remote.api.logs(job_id), nl=False)
