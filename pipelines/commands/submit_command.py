"""`tokenpool submit CONFIG --address URL`: a search on a cluster elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.shared_options import Overrides
from pipelines.remote import Open, Remote


def submit(
    config: Annotated[Path, typer.Argument(help="YAML file, as for `search`.")],
    address: Annotated[
        str,
        typer.Option(
            envvar="TOKENPOOL_ADDRESS", help="Dashboard of the Ray cluster, http://HOST:8265."
        ),
    ],
    overrides: Overrides = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return as soon as it is submitted.")
    ] = False,
    installed: Annotated[
        str | None,
        typer.Option(
            help="Use the program installed on the cluster, of this version, and send no code."
        ),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(help="Python on the cluster; default: the first on its PATH that has Ray."),
    ] = None,
    i_know_this_is_open: Open = False,
) -> None:
    """Submit a search to a Ray cluster and show it; Ctrl-C leaves it running.

    A search that runs there already, under this name and with this config, is shown; one that
    was stopped or failed goes on.
    """
    from pipelines.config_file import load_config

    loaded = load_config(config, overrides)
    remote = Remote(address, allow_open=i_know_this_is_open)
    job_id, new = remote.submit(loaded, installed=installed, python=python)
    what = "submitted" if new else "runs already"
    typer.echo(f"search {loaded.name} {what} as job {job_id} of {remote.url}")
    if detach:
        return
    raise typer.Exit(remote.follow(job_id, loaded.name))
