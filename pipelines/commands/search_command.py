"""`tokenpool search CONFIG.yaml`: run a search, or go on with it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.shared_options import Overrides
from pipelines.config import SearchConfig
from pipelines.console import Screen, program
from pipelines.remote import Open, refuse_open_cluster
from pipelines.results.front import build_front
from pipelines.results.result_files import RESULTS, write_results
from pipelines.results.table import front_table
from pipelines.search.halt import SearchEnded
from pipelines.search.refresh import send
from pipelines.search.state import SearchState
from pipelines.storage.search_files import Search
from pipelines.tracking.mlflow_errors import first_line
from pipelines.tracking.tracking_store import tracking_store

INTERRUPTED = 130  # what shells give a command that Ctrl-C ended


def search(
    config: Annotated[Path, typer.Argument(help="YAML file, e.g. tune_spaces/presets/digits.yaml")],
    overrides: Overrides = None,
    address: Annotated[
        str | None, typer.Option(help="Running Ray cluster; default: a local one for this search.")
    ] = None,
    i_know_this_is_open: Open = False,
) -> None:
    """Search widths and token schedules; resumes where an earlier run of this name stopped."""
    from pipelines.config_file import load_config

    loaded = load_config(config, overrides)
    refuse_open_cluster(address, i_know_this_is_open)
    screen = Screen()
    with going_on_later(screen, "what is finished is kept; "):
        ended = carry_out(loaded, screen, address)
    if ended is not None and ended.why == "interrupt":
        raise typer.Exit(INTERRUPTED)


@contextmanager
def going_on_later(screen: Screen, kept: str = "") -> Iterator[None]:
    """Ends the command on Ctrl-C, with what is to be done to go on."""
    try:
        yield
    except KeyboardInterrupt:
        screen.say(f"\ninterrupted: {kept}type the same command to go on", style="yellow")
        raise typer.Exit(INTERRUPTED) from None


def carry_out(
    config: SearchConfig, screen: Screen, address: str | None = None
) -> SearchEnded | None:
    """Runs a search followed by MLflow, writes its results, registers and shows its front.

    Returns:
        Why it has ended before all is done, if it has.

    Raises:
        UserError: As `run_search` says.
    """
    # Imported only now: Ray and torch take seconds that a wrong config need not wait for.
    from pipelines.search.runner import how_to_go_on, run_search
    from pipelines.tracking.mlflow_tracker import MlflowTracker

    outcome = run_search(
        config,
        screen,
        follow=lambda: MlflowTracker(config.search, tracking_store(config.root)),
        write=write_into_folder,
        address=address,
    )
    state, ended = outcome.state, outcome.ended
    if state.complete and not (config.search.folder / RESULTS[-1]).exists():
        write_into_folder(state, config.search)  # killed before they were written
    if outcome.ran and ended is None:
        _register(state, config, screen)
    _show_front(state, config, screen)
    if ended is not None:
        said = f"search {state.name} has ended: {ended}; {how_to_go_on(ended)}"
        screen.say(said, style="yellow")
    return ended


def write_into_folder(state: SearchState, search: Search) -> None:
    """The search's results beside its ledger, wherever that is."""

    write_results(state, search, search.folder)
    send(search, search.config_file.name, *RESULTS)


def _register(state: SearchState, config: SearchConfig, screen: Screen) -> None:
    """Puts the published models into MLflow's registry; a search is complete without it too."""
    from pipelines.tracking.registry import register_published

    try:
        found = register_published(config.search, state, tracking_store(config.root))
    except Exception as error:  # whatever MLflow, its database or its server throws
        screen.say(
            f"not in MLflow's model registry ({first_line(error)}): `{program()} register "
            f"{state.name}` puts the front there",
            style="yellow",
        )
        return
    screen.say(f"{len(found)} models in MLflow's registry, the knee as models:/{state.name}@knee")


def _show_front(state: SearchState, config: SearchConfig, screen: Screen) -> None:
    """Prints the front and what to type next."""

    front = build_front(state)
    screen.console.print(front_table(front, width=screen.console.width))
    storage = config.storage
    option = "" if storage == Path("runs") else f" --storage {shlex.quote(str(storage))}"
    screen.say(f"picture and page: {config.search.shown}/front.png, front.html")
    screen.say("next:")
    for words, what in (
        (f"ui{option}", "browse the runs in MLflow"),
        (f"pick {state.name} --knee{option}", "choose a model"),
    ):
        screen.say(f"  {program()} {words:<{30 + len(option)}} {what}")
