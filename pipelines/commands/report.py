"""`tokenpool report`, `explain`, `import` and `track rebuild`: a search told to others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.front import Name, Storage
from pipelines.search.ledger import LEDGER_NAME, read_events
from pipelines.search.state import load_state
from pipelines.track.explain import explain as explain_model
from pipelines.track.front import build_front, history
from pipelines.track.outside import import_front, load_outside
from pipelines.track.page import split_sizes, write_page
from pipelines.track.store import tracking_store

track = typer.Typer(help="Keep MLflow in step with a search.", no_args_is_help=True)


def report(
    name: Name,
    out: Annotated[
        Path | None, typer.Option(help="Where to write; default report.html in its folder.")
    ] = None,
    storage: Storage = Path("runs"),
) -> None:
    """Write a search's front as one self-contained HTML page."""
    state = load_state(storage, name)
    directory = storage / "searches" / name
    target = out or directory / "report.html"
    write_page(
        build_front(state),
        target,
        history(name, read_events(directory / LEDGER_NAME)),
        load_outside(directory),
        samples=split_sizes(state),
        footer=f"config {state.config_hash}",
    )
    typer.echo(f"wrote {target}")


def explain(
    name: Name,
    model: Annotated[str, typer.Argument(help="A trial's id, or dense-WIDTH.")],
    storage: Storage = Path("runs"),
) -> None:
    """Say why a model was kept, stopped or failed, and how far it is from the front."""
    typer.echo(explain_model(load_state(storage, name), model))


def import_results(
    name: Name,
    source: Annotated[Path, typer.Argument(help="Parquet, CSV or JSON lines: gmacs, top1, label.")],
    label: Annotated[str | None, typer.Option(help="What to call it; default the file.")] = None,
    storage: Storage = Path("runs"),
) -> None:
    """Add a front measured elsewhere to a search's report, for comparison."""
    load_state(storage, name)
    found = import_front(storage / "searches" / name, source, label)
    typer.echo(f"{found.name}: {len(found.points)} models; see `tokenpool report {name}`")


@track.command("rebuild")
def rebuild_command(name: Name, storage: Storage = Path("runs")) -> None:
    """Log a search to MLflow anew, from its ledger alone."""
    from pipelines.track.upkeep import rebuild  # here, as MLflow takes seconds

    load_state(storage, name)
    store = tracking_store(storage)
    count = rebuild(storage, name, store)
    typer.echo(f"{name}: {count} runs logged to {store.shown}")


def register(
    name: Name,
    data: Annotated[
        Path | None, typer.Option(help="The prepared data, if it was moved since the search.")
    ] = None,
    storage: Storage = Path("runs"),
) -> None:
    """Put a search's published models into MLflow's model registry."""
    state = load_state(storage, name)
    from pipelines.track.registry import register_published  # here, as it takes seconds

    store = tracking_store(storage)
    for found in register_published(storage, state, store, data=data):
        known = "" if found.new else " (known already)"
        typer.echo(f"models:/{name}/{found.version}  {found.point_id}{known}")
    typer.echo(
        f'mlflow.pyfunc.load_model("models:/{name}@knee") with MLFLOW_TRACKING_URI={store.shown}'
    )
