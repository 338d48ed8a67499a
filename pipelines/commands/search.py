"""`tokenpool search CONFIG.yaml`: run a search, or go on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.remote import Open, refuse_open_cluster

INTERRUPTED = 130  # what shells give a command that Ctrl-C ended


def search(
    config: Annotated[Path, typer.Argument(help="YAML file, e.g. tune_spaces/presets/digits.yaml")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a setting: finals.trials=12. May be repeated."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Running Ray cluster; default: a local one for this search.")
    ] = None,
    i_know_this_is_open: Open = False,
) -> None:
    """Search widths and token schedules; resumes where an earlier run of this name stopped."""
    from pipelines.config_file import load_config
    from pipelines.console import Screen

    loaded = load_config(config, overrides)
    refuse_open_cluster(address, i_know_this_is_open)
    screen = Screen()
    # Imported only now: Ray and torch take seconds that a wrong config need not wait for.
    from pipelines.search.runner import run_search

    try:
        ended = run_search(loaded, screen, address)
    except KeyboardInterrupt:
        screen.say(
            "\ninterrupted: what is finished is kept; type the same command to go on",
            style="yellow",
        )
        raise typer.Exit(INTERRUPTED) from None
    if ended is not None and ended.why == "interrupt":
        raise typer.Exit(INTERRUPTED)
